"""The parts that every Transformer has: embedding, RMSNorm, the gated MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.layers.linear import RowParallelLinear, column_parallel
from dsv3.parallel.group import Group


class Embedding(nn.Module):
    """Token ids to vectors. With tensor parallelism each rank holds V / tp rows and the partial results are summed."""

    def __init__(self, vocab_size: int, dim: int, *, dtype: torch.dtype, tp: Group = Group()) -> None:
        super().__init__()
        self.tp = tp
        rows = tp.split(vocab_size, "vocab_size")
        self.first = tp.rank * rows
        self.weight = nn.Parameter(torch.empty(rows, dim, dtype=dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.tp.size == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.first
        absent = (local < 0) | (local >= self.weight.shape[0])
        x = F.embedding(local.masked_fill(absent, 0), self.weight)
        return self.tp.all_reduce(x.masked_fill(absent.unsqueeze(-1), 0))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight; the mean is taken in FP32 whatever the type of x."""

    def __init__(self, dim: int, eps: float, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.shape = (dim,)
        self.weight = nn.Parameter(torch.empty(dim, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, self.weight, self.eps)

    def rows(self, x_TD: Tensor) -> Tensor:
        """The same for inference, where a kernel of ours may follow its neighbours more closely."""
        return kernels.rms_norm(x_TD, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x). The dense layers and the shared experts; ``inter_dim`` is split over ``tp``."""

    def __init__(
        self, dim: int, inter_dim: int, *, dtype: torch.dtype, scale_fmt: str | None = None, tp: Group = Group()
    ) -> None:
        super().__init__()
        self.w1 = column_parallel(dim, inter_dim, dtype=dtype, scale_fmt=scale_fmt, tp=tp)
        self.w2 = RowParallelLinear(inter_dim, dim, dtype=dtype, scale_fmt=scale_fmt, tp=tp)
        self.w3 = column_parallel(dim, inter_dim, dtype=dtype, scale_fmt=scale_fmt, tp=tp)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))
