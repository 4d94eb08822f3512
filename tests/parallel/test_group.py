"""Groups without processes, and with two: tensor parallelism of the whole model over gloo."""

import dataclasses
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dsv3.config import ModelConfig
from dsv3.errors import ConfigError
from dsv3.layers.cache import LatentCache
from dsv3.parallel.group import Group, Parallel
from tests.conftest import SmallConfig
from tests.model_helpers import assert_close, make_model, run_in_chunks
from tests.parallel.slices import slice_for_rank

PAGES = [[0, 2], [3, 1]]
CHUNKS = [[5, 1], [5, 1, 1]]


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_lies_inside_its_group(rank: int, size: int) -> None:
    with pytest.raises(ConfigError, match=f"rank {rank} is outside a group of {size}"):
        Group(rank=rank, size=size)


def test_split() -> None:
    assert Group(rank=1, size=4).split(12, "n_heads") == 3
    with pytest.raises(ConfigError, match="n_heads = 10 does not divide by 4 ranks: choose a divisor of 10"):
        Group(rank=1, size=4).split(10, "n_heads")


def test_collectives_of_one_return_their_input() -> None:
    x, group = torch.randn(3, 2), Group()
    assert group.all_reduce(x) is x
    assert group.all_gather(x) is x


def test_groups_are_frozen_and_default_to_one_process() -> None:
    for group in (Parallel().tp, Parallel().ep, Parallel().pp, Parallel().dp):
        assert (group.rank, group.size) == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Parallel().tp.rank = 1  # type: ignore[misc]


def test_outside_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert Parallel.from_torchrun() == Parallel()


def test_half_of_torchruns_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2 but LOCAL_RANK, MASTER_ADDR, MASTER_PORT is unset"):
        Parallel.from_torchrun()


def test_each_process_takes_its_own_gpu_before_nccl_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[object] = []
    for name, value in (("WORLD_SIZE", 2), ("RANK", 3), ("LOCAL_RANK", 1), ("MASTER_ADDR", "x"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(dist, "init_process_group", done.append)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    Parallel.from_torchrun()
    assert done == [1, "nccl"]


def two_ranks(rank: int, folder: str, port: int, config: ModelConfig) -> None:
    """One process of two: its slice of the weights, the same tokens, its logits into a file."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    group = Parallel.from_torchrun().dp
    assert (group.rank, group.size) == (rank, 2)
    gathered = group.all_gather(torch.full((1, 2), float(rank)), dim=0)
    assert gathered.tolist() == [[0, 0], [1, 1]]
    assert group.all_reduce(torch.tensor([1.0 + rank])).item() == 3
    torch.manual_seed(0)
    whole = make_model(config)
    model = slice_for_rank(whole, group)
    inputs = torch.load(Path(folder) / "tokens.pt")
    with torch.no_grad():
        full = model(torch.stack([t[:6] for t in inputs]))
        draft = model.predict_next(0, model.hidden(inputs[0][None, :-1]), inputs[0][None, 1:])
    cached = run_in_chunks(model, LatentCache(config, 4, 4, dtype=torch.float32), PAGES, inputs, CHUNKS)
    torch.save({"full": full, "cached": cached, "draft": draft}, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.dist
def test_two_ranks_compute_what_one_does(small_config: SmallConfig, tmp_path: Path) -> None:
    config = small_config("v3")
    tokens = [torch.randint(config.vocab_size, (n,)) for n in (6, 7)]
    torch.save(tokens, tmp_path / "tokens.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(two_ranks, args=(str(tmp_path), port, config), nprocs=2)
    torch.manual_seed(0)
    model = make_model(config)
    with torch.no_grad():
        full = model(torch.stack([t[:6] for t in tokens]))
        draft = model.predict_next(0, model.hidden(tokens[0][None, :-1]), tokens[0][None, 1:])
    cached = run_in_chunks(model, LatentCache(config, 4, 4, dtype=torch.float32), PAGES, tokens, CHUNKS)
    for rank in range(2):
        theirs = torch.load(tmp_path / f"rank{rank}.pt")
        assert_close(theirs["full"], full)
        assert_close(theirs["draft"], draft)
        for ours, other in zip(theirs["cached"], cached, strict=True):
            assert_close(ours, other)
