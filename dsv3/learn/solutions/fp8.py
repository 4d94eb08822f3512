"""Chapter 05."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3 import kernels


def fp8_1(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise in tiles of 1 x 128; K is a multiple of 128 -> codes (M, K) in torch.float8_e4m3fn, scales (M, K / 128).

    x is about codes * scales. An amax below 1e-4 counts as 1e-4.
    """
    tiles = x_MK.unflatten(-1, (-1, 128))
    scales = tiles.abs().amax(-1).clamp_min(1e-4) / 448
    return (tiles / scales.unsqueeze(-1)).flatten(1).to(torch.float8_e4m3fn), scales


def fp8_2(codes_NK: Tensor, scale: Tensor) -> Tensor:
    """Restore a weight in FP32 from e4m3 codes and one scale for each 128 x 128 block; edge blocks may be smaller."""
    N, K = codes_NK.shape
    by_row = scale.repeat_interleave(128, 0)[:N]
    return codes_NK.float() * by_row.repeat_interleave(128, 1)[:, :K]


def fp8_3(a_MK: Tensor, a_s: Tensor, b_NK: Tensor, b_s: Tensor) -> Tensor:
    """a @ b.T in FP32 from e4m3 codes. a_s: (M, K / 128), one per 1 x 128 tile; b_s: (N / 128, K / 128), per block.

    The sum over each 128 columns is promoted by itself: that is where both scales belong.
    """
    y_MN = torch.zeros(len(a_MK), len(b_NK))
    for k in range(a_s.shape[1]):
        columns = slice(128 * k, 128 * (k + 1))
        partial_MN = a_MK[:, columns].float() @ b_NK[:, columns].float().T
        y_MN += partial_MN * a_s[:, k, None] * b_s[:, k].repeat_interleave(128)[: len(b_NK)]
    return y_MN


def bug_swapped_scales(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    x_q, x_s = kernels.act_quant(x_MK)
    w_q, w_s = kernels.weight_quant(w_NK)
    return kernels.fp8_gemm(x_q, x_s, w_q, w_s, out_dtype=torch.float32)


def bug_inverse_scale(x_MK: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    w_NK = kernels.weight_dequant(weight, weight_scale_inv, dtype=torch.float32)
    return F.linear(x_MK, w_NK)
