"""Embedding, RMSNorm and MLP, alone and cut over two ranks that never meet a process group."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.errors import ConfigError
from dsv3.layers.basic import MLP, Embedding, RMSNorm
from dsv3.parallel.group import Group
from tests.model_helpers import assert_close, randomise
from tests.parallel.slices import fill


@dataclass(frozen=True)
class Alone(Group):
    """A rank whose collectives see nobody else: its results are the partial ones."""

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        return x


def test_rms_norm_is_its_formula_in_fp32() -> None:
    norm = RMSNorm(96, 1e-3, dtype=torch.float32)
    randomise(norm)
    x = torch.randn(5, 96) * 0.05  # small, so that epsilon weighs
    expected = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    assert_close(norm(x), expected, 1e-6)


def test_rms_norm_takes_the_mean_of_a_bf16_input_in_fp32() -> None:
    # 4096 ones after a 16: in BF16 a running sum of squares stops growing at 256.
    x = torch.ones(1, 4097, dtype=torch.bfloat16)
    x[0, 0] = 16
    norm = RMSNorm(4097, 1e-6, dtype=torch.bfloat16)
    torch.nn.init.ones_(norm.weight)
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert y[0, 1].item() == pytest.approx((4097 / (4096 + 256)) ** 0.5, rel=2**-8)


def test_mlp_is_swiglu() -> None:
    mlp = MLP(24, 40, dtype=torch.float32)
    randomise(mlp)
    x = torch.randn(2, 3, 24)
    gate, up = x @ mlp.w1.weight.T, x @ mlp.w3.weight.T
    assert_close(mlp(x), (gate / (1 + (-gate).exp()) * up) @ mlp.w2.weight.T)


def test_mlp_of_two_ranks_sums_to_the_whole() -> None:
    whole = MLP(24, 40, dtype=torch.float32)
    randomise(whole)
    x = torch.randn(3, 24)
    parts = []
    for rank in range(2):
        group = Alone(rank, 2)
        part = MLP(24, 40, dtype=torch.float32, tp=group)
        assert part.w1.weight.shape == part.w3.weight.shape == (20, 24)
        assert part.w2.weight.shape == (24, 20)
        fill(part, whole, group)
        parts.append(part(x))
    assert_close(parts[0] + parts[1], whole(x))


def test_embedding_of_two_ranks_sums_to_the_whole() -> None:
    weight = torch.randn(10, 6)
    tokens = torch.tensor([[0, 4, 5], [9, 5, 0]])
    parts = []
    for rank in range(2):
        part = Embedding(10, 6, dtype=torch.float32, tp=Alone(rank, 2))
        part.weight.data.copy_(weight.chunk(2)[rank])
        parts.append(part(tokens))
    # Each token is found on exactly one rank; the other adds zeros, not a row of its own.
    assert torch.equal(parts[0] + parts[1], F.embedding(tokens, weight))
    assert parts[0][0, 2].abs().sum() == 0


def test_sizes_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="vocab_size = 9 does not divide by 2 ranks"):
        Embedding(9, 6, dtype=torch.float32, tp=Group(0, 2))
    with pytest.raises(ConfigError, match="= 41 does not divide by 2 ranks"):
        MLP(24, 41, dtype=torch.float32, tp=Group(0, 2))
