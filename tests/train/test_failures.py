"""What goes wrong in a run, seen from the command line: one line that says what to do, and nothing lost."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dsv3.cli import main
from dsv3.train.checkpoint import load_state, state_paths
from dsv3.train.log import RunLog, read_log


@pytest.fixture
def command(micro_run, tmp_path, capsys) -> Callable[..., tuple[int, str]]:
    """``command("--resume", total_steps=4)``: the exit code of a tiny ``dsv3 train``, and its last line on stderr."""

    def run(*flags: str, **changes: object) -> tuple[int, str]:
        preset = tmp_path / "preset.json"
        values = {"total_steps": 6, "save_every": 2, "log_every": 2, "keep": 9} | changes
        preset.write_text(json.dumps(micro_run(**values).to_dict()))
        code = main(["train", "--config", str(preset), "--quiet", *flags])
        lines = capsys.readouterr().err.splitlines()
        assert not any(line.startswith("Traceback") for line in lines)
        return code, lines[-1]

    return run


def steps(out: Path) -> list[int]:
    return [load_state(path)["step"] for path in state_paths(out / "states")]


def test_a_disk_that_fills_up_leaves_the_states_and_the_run_can_go_on(command, tmp_path):
    out = tmp_path / "out"
    assert command(total_steps=2)[0] == 0
    (out / "states" / "step-00000004.tmp").symlink_to("/dev/full")
    code, line = command("--resume")
    assert code == 1
    assert line.startswith("dsv3: error: cannot write")
    assert "the last good state is" in line
    assert "step-00000002.pt" in line
    assert steps(out) == [2]
    assert command("--resume")[0] == 0  # there is room again
    assert steps(out) == [2, 4, 6]


@pytest.mark.parametrize("table", ["log.csv", "eval.csv"])
def test_a_full_disk_for_the_tables_is_said_too(command, tmp_path, table):
    out = tmp_path / "out"
    out.mkdir()
    (out / f"{table}.tmp").symlink_to("/dev/full")
    code, line = command()
    assert code == 1
    assert f"{table}: No space left on device; free space" in line
    assert command("--resume")[0] == 0


def test_a_full_disk_for_the_log_is_said_and_the_line_cut_short_does_no_harm(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("train", 1, loss=1.0)
    whole = log.path.read_text()
    log.path.unlink()
    log.path.symlink_to("/dev/full")
    with pytest.raises(Exception, match=r"cannot write .*log.jsonl: No space left.*--resume"):
        log.write("train", 2, loss=1.0)
    log.path.unlink()
    log.path.write_text(whole + '{"kind": "train", "st')
    RunLog(log.path, after_step=2).write("train", 2, loss=0.5)
    assert [record["loss"] for record in read_log(log.path)] == [1.0, 0.5]


def flip(path: Path) -> None:
    """One bit in the middle of the tokens."""
    with zipfile.ZipFile(path) as archive:
        tokens = next(info for info in archive.infolist() if info.filename == "low.tokens.npy")
    content = bytearray(path.read_bytes())
    content[tokens.header_offset + 200 + tokens.file_size // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", ["train.npz", "val.npz"])
def test_damaged_data_is_named_before_anything_is_written(command, tmp_path, monkeypatch, damage, name):
    from dsv3.train import trainer

    load = trainer.TokenStore.load

    def load_damaged(path):
        if Path(path).name == name:
            damage(Path(path))
        return load(path)

    monkeypatch.setattr(trainer.TokenStore, "load", load_damaged)  # the command writes the data anew
    code, line = command()
    assert code == 1
    assert str(tmp_path / name) in line
    assert "Make it" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_state_is_named_and_the_one_before_serves_once_it_is_gone(command, tmp_path, damage):
    assert command()[0] == 0
    newest = state_paths(tmp_path / "out" / "states")[-1]
    damage(newest)
    code, line = command("--resume")
    assert code == 1
    assert str(newest) in line
    assert "remove the file to resume from the state before it" in line
    newest.unlink()
    assert command("--resume")[0] == 0
    assert steps(tmp_path / "out") == [2, 4, 6]


def test_a_loss_that_is_no_number_ends_the_run_with_the_last_good_state(command, tmp_path):
    code, line = command("--lr", "1e38", "--clip", "1e30")
    assert code == 1
    assert "stopped being finite at step" in line
    assert "last good state" in line


def test_configurations_that_do_not_fit_are_refused(command, tmp_path):
    assert command()[0] == 0
    code, line = command("--resume", "--lr", "0.5")
    assert (code, "lr: 0.01 then, 0.5 now" in line) == (1, True)
    shape = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "small.json").write_text(json.dumps(shape | {"vocab_size": 32}))
    code, line = command("--model", str(tmp_path / "small.json"), "--out", str(tmp_path / "other"))
    assert (code, "vocabulary of 64 ids, the model has vocab_size 32" in line) == (1, True)
    code, line = command("--lr", "-1", "--out", str(tmp_path / "other"))
    assert (code, "lr is -1.0; it must be above 0" in line) == (1, True)
    with pytest.raises(SystemExit) as usage:
        command("--lr", "fast")
    assert usage.value.code == 2
