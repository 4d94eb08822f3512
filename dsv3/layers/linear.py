"""Linear layers whose weights are FP32, BF16, or FP8 with one scale per 128 x 128 block (V3 §3.3).

What happens to x is decided by the type of the weight, nothing else. An FP8 weight quantises x on the fly in tiles of
1 x 128 and multiplies in FP8:

    y = (x_q * s_x) (w_q * s_w)^T        s_x: one scale per token and 128 columns, s_w: one per block

Tensor parallelism cuts a weight along its rows (column parallel: each rank computes some of the outputs) or along its
columns (row parallel: each rank sees some of the inputs, and the partial sums are added over the group).
"""

import torch
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.config import BLOCK
from dsv3.errors import ConfigError
from dsv3.parallel.group import Group

FP8 = torch.float8_e4m3fn


def act_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of activations, norms and whatever else is never quantised, in a model whose big weights have ``dtype``."""
    return torch.bfloat16 if dtype == FP8 else dtype


def blocks(size: int) -> int:
    """How many blocks of 128 cover ``size``; the last one may be partial."""
    return -(-size // BLOCK)


def linear(x: Tensor, weight: Tensor, scale: Tensor | None, scale_fmt: str | None) -> Tensor:
    """x (..., in) -> (..., out) in the type of x, by a plain weight (out, in), or one of FP8 codes with its scales."""
    return kernels.linear(x, weight) if scale is None else kernels.fp8_linear(x, weight, scale, scale_fmt)


class Linear(nn.Module):
    """y = x W^T without bias. x (..., in_features) -> (..., out_features), in the type of x.

    An FP8 layer has a second parameter, ``scale`` (blocks(out), blocks(in)) in FP32: W = weight * scale by blocks.
    ``scale_fmt`` "ue8m0" rounds the scales of x up to powers of two, as V3.1 was trained.
    """

    def __init__(
        self, in_features: int, out_features: int, *, dtype: torch.dtype, scale_fmt: str | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scale_fmt = in_features, out_features, scale_fmt
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype), requires_grad=dtype != FP8)
        self.scale: nn.Parameter | None = None
        if dtype == FP8:
            scale = torch.empty(blocks(out_features), blocks(in_features), dtype=torch.float32)
            self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.scale, self.scale_fmt)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight (out_features, in_features) in ``dtype``: a view of the parameter where nothing has to change."""
        if self.scale is None:
            return self.weight.to(dtype)
        return kernels.weight_dequant(self.weight, self.scale, BLOCK, dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, dtype={self.weight.dtype}"


def _share(total: int, what: str, dtype: torch.dtype, tp: Group) -> int:
    share = tp.split(total, what)
    if dtype == FP8 and tp.size > 1 and share % BLOCK:
        raise ConfigError(
            f"{what} = {total} over {tp.size} ranks is {share} each, which cuts through an FP8 scale block of {BLOCK}: "
            "use fewer ranks, or BF16 weights"
        )
    return share


def column_parallel(
    in_features: int, out_features: int, *, dtype: torch.dtype, scale_fmt: str | None = None, tp: Group
) -> Linear:
    """A Linear that computes this rank's share of the outputs. No communication: it is a plain, smaller layer."""
    return Linear(in_features, _share(out_features, "out_features", dtype, tp), dtype=dtype, scale_fmt=scale_fmt)


class RowParallelLinear(Linear):
    """A Linear that sees this rank's share of the inputs and sums the partial outputs over the group."""

    def __init__(
        self, in_features: int, out_features: int, *, dtype: torch.dtype, scale_fmt: str | None = None, tp: Group
    ) -> None:
        share = _share(in_features, "in_features", dtype, tp)
        super().__init__(share, out_features, dtype=dtype, scale_fmt=scale_fmt)
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        return self.tp.all_reduce(super().forward(x))


@torch.no_grad()
def side_by_side(first: nn.Parameter, second: nn.Parameter) -> Tensor:
    """Move two matrices into one storage, the second's rows behind the first's, and return both.

    Where they lie so already they stay. Made in inference mode it turns no parameter into an inference tensor: the
    model may be trained later.
    """
    a, b = first.detach(), second.detach()
    same_storage = a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    if same_storage and b.storage_offset() == a.storage_offset() + a.numel():
        return a.as_strided((len(a) + len(b), a.shape[1]), a.stride())
    with torch.inference_mode(first.is_inference()):
        joined = torch.cat((a, b))
    first.data, second.data = joined[: len(a)], joined[len(a) :]
    return joined
