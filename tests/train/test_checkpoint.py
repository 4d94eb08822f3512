"""States: what is written is read back, what goes wrong leaves the states before it and is said."""

import errno
import re

import pytest
import torch

from dsv3.errors import CapacityError, CheckpointError
from dsv3.train import checkpoint
from dsv3.train.checkpoint import load_state, require_same, save_state, state_paths

STATE = {"tensor": torch.arange(5), "nested": {"rate": 0.5, "name": None}}


def names(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_round_trip_keeps_the_newest(tmp_path):
    for step in (5, 90, 1000):
        path = save_state(tmp_path / "states", step, STATE, keep=2)
    assert names(tmp_path / "states") == ["step-00000090.pt", "step-00001000.pt"]
    assert state_paths(tmp_path / "states")[-1] == path
    state = load_state(path)
    assert state["step"] == 1000
    assert torch.equal(state["tensor"], STATE["tensor"])
    assert state["nested"] == STATE["nested"]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def short_write(*_):
    raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")


@pytest.mark.parametrize("failure", [full_disk, short_write])
def test_a_full_disk_leaves_the_state_before_and_names_it(tmp_path, monkeypatch, failure):
    save_state(tmp_path, 1, STATE, keep=1)
    monkeypatch.setattr(checkpoint.torch, "save", failure)
    with pytest.raises(CapacityError, match=r"step-00000002.pt.*last good state is .*step-00000001.pt"):
        save_state(tmp_path, 2, STATE, keep=1)
    assert names(tmp_path) == ["step-00000001.pt"]
    assert load_state(tmp_path / "step-00000001.pt")["step"] == 1


def test_an_interrupt_while_writing_leaves_the_state_before(tmp_path, monkeypatch):
    save_state(tmp_path, 1, STATE, keep=1)

    def interrupted(_, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 2, STATE, keep=1)
    assert names(tmp_path) == ["step-00000001.pt"]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"text, no state"])
def test_a_damaged_state_is_named_with_what_to_do(tmp_path, damage):
    path = save_state(tmp_path, 3, STATE, keep=1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + r".*remove the file"):
        load_state(path)


def test_another_file_of_torch_is_no_state(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no training state of format 2"):
        load_state(tmp_path / "other.pt")


def test_differences_are_listed_unless_free():
    require_same({"a": 1, "b": 2}, {"a": 1, "b": 3}, free=frozenset({"b"}), what="shape")
    with pytest.raises(CheckpointError, match=r"another shape \(a: 1 then, 2 now; c: 5 then, None now\)"):
        require_same({"a": 1, "b": 2, "c": 5}, {"a": 2, "b": 3}, free=frozenset({"b"}), what="shape")
