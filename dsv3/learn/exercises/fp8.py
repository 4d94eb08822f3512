"""Chapter 05: tiles and blocks, scales, the promoted product."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3 import kernels
from dsv3.learn.exercises.base import Exercise, normal
from dsv3.learn.solutions import fp8 as solutions

CHAPTER = "05_fp8"

FP32 = torch.float32
E4M3 = torch.float8_e4m3fn


# --- inputs ---------------------------------------------------------------------------------------------------------


def _outliers(g: torch.Generator, M: int, K: int) -> Tensor:
    """Channels and tokens of very different size: what one scale for all cannot hold."""
    x_MK = normal(g, M, K) * torch.exp(normal(g, M, 1)) * torch.exp(normal(g, K))
    x_MK[0, 1] = 300.0
    return x_MK


def _activations(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield (_outliers(g, 2, 256),)
    yield (torch.cat((torch.zeros(1, 128), normal(g, 1, 128)), dim=0),)  # a tile of zeros
    yield (_outliers(g, 5, 384),)


def _weight(g: torch.Generator, N: int, K: int) -> tuple[Tensor, Tensor]:
    """Blocks of very different size."""
    rows, columns = torch.arange(N) // 128, torch.arange(K) // 128
    size = torch.exp(2 * normal(g, -(-N // 128), -(-K // 128)))
    return kernels.weight_quant(normal(g, N, K) * size[rows][:, columns])


def _weights(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for N, K in ((256, 256), (200, 130), (128, 100)):
        yield _weight(g, N, K)


def _products(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for M, N, K in ((2, 128, 256), (3, 256, 384), (1, 128, 128)):
        yield *kernels.act_quant(_outliers(g, M, K)), *_weight(g, N, K)


def _factors(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for M, N, K in ((3, 130, 256), (5, 200, 384)):
        yield _outliers(g, M, K), _outliers(g, N, K)


def _layers(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for M, N, K in ((1, 128, 128), (3, 200, 256)):
        yield normal(g, M, K), *_weight(g, N, K)


# --- specifications -------------------------------------------------------------------------------------------------


def _act_quant(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return kernels.act_quant(x_MK)


def _dequant(codes_NK: Tensor, scale: Tensor) -> Tensor:
    return kernels.weight_dequant(codes_NK, scale, dtype=FP32)


def _gemm(a_MK: Tensor, a_s: Tensor, b_NK: Tensor, b_s: Tensor) -> Tensor:
    return kernels.fp8_gemm(a_MK, a_s, b_NK, b_s, out_dtype=FP32)


def _linear(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    return _gemm(*kernels.act_quant(x_MK), *kernels.weight_quant(w_NK))


def _restored_linear(x_MK: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    return F.linear(x_MK, _dequant(weight, weight_scale_inv))


# --- known mistakes -------------------------------------------------------------------------------------------------


def _quantised(x_MK: Tensor, amax_Mk: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    scales = amax_Mk.expand(x_MK.shape[0], x_MK.shape[1] // 128).clamp_min(1e-4) / 448
    codes = (x_MK.unflatten(-1, (-1, 128)) / scales.unsqueeze(-1)).flatten(1).to(E4M3)
    return codes, 1 / scales if inverse else scales.contiguous()


def _tensor_wise(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantised(x_MK, x_MK.abs().amax().view(1, 1))


def _row_wise(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantised(x_MK, x_MK.abs().amax(-1, keepdim=True))


def _column_blocks(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantised(x_MK, x_MK.abs().unflatten(-1, (-1, 128)).amax((0, 2)))


def _inverse(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantised(x_MK, x_MK.abs().unflatten(-1, (-1, 128)).amax(-1), inverse=True)


def _signed_maximum(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    return _quantised(x_MK, x_MK.unflatten(-1, (-1, 128)).amax(-1))


def _divided(codes_NK: Tensor, scale: Tensor) -> Tensor:
    return _dequant(codes_NK, 1 / scale)


def _transposed(codes_NK: Tensor, scale: Tensor) -> Tensor:
    return _dequant(codes_NK, scale.T.contiguous())


def _unscaled(codes_NK: Tensor, scale: Tensor) -> Tensor:
    return codes_NK.float()


def _scaled_once(a_MK: Tensor, a_s: Tensor, b_NK: Tensor, b_s: Tensor) -> Tensor:
    first = torch.ones_like(a_s) * a_s[:, :1]
    return _gemm(a_MK, first, b_NK, torch.ones_like(b_s) * b_s[:, :1])


def _activation_scales_only(a_MK: Tensor, a_s: Tensor, b_NK: Tensor, b_s: Tensor) -> Tensor:
    return _gemm(a_MK, a_s, b_NK, torch.ones_like(b_s))


def _weight_scales_only(a_MK: Tensor, a_s: Tensor, b_NK: Tensor, b_s: Tensor) -> Tensor:
    return _gemm(a_MK, torch.ones_like(a_s), b_NK, b_s)


def given_swapped_scales(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    x_q, x_s = kernels.weight_quant(x_MK)
    w_q, w_s = kernels.act_quant(w_NK)
    x_MK = kernels.weight_dequant(x_q, x_s, dtype=torch.float32)
    w_NK = w_q.float() * w_s.repeat_interleave(128, -1)[:, : w_q.shape[1]]
    return x_MK @ w_NK.T


def _both_tiles(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    x_q, x_s = kernels.act_quant(x_MK)
    w_q, w_s = kernels.act_quant(w_NK)
    return (x_q.float() * x_s.repeat_interleave(128, -1)) @ (w_q.float() * w_s.repeat_interleave(128, -1)).T


def _both_blocks(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    return _dequant(*kernels.weight_quant(x_MK)) @ _dequant(*kernels.weight_quant(w_NK)).T


def _not_quantised(x_MK: Tensor, w_NK: Tensor) -> Tensor:
    return x_MK @ w_NK.T


def given_inverse_scale(x_MK: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    w_NK = kernels.weight_dequant(weight, 1.0 / weight_scale_inv, dtype=torch.float32)
    return F.linear(x_MK, w_NK)


def _codes_as_weights(x_MK: Tensor, weight: Tensor, weight_scale_inv: Tensor) -> Tensor:
    return F.linear(x_MK, weight.float())


EXERCISES = (
    Exercise(
        id="fp8-1",
        chapter=CHAPTER,
        specification=_act_quant,
        cases=_activations,
        wrong={
            "tensor_wise": _tensor_wise,
            "row_wise": _row_wise,
            "column_blocks": _column_blocks,
            "inverse": _inverse,
            "signed_maximum": _signed_maximum,
        },
        solution=solutions.fp8_1,
    ),
    Exercise(
        id="fp8-2",
        chapter=CHAPTER,
        specification=_dequant,
        cases=_weights,
        wrong={"divided": _divided, "transposed": _transposed, "unscaled": _unscaled},
        solution=solutions.fp8_2,
    ),
    Exercise(
        id="fp8-3",
        chapter=CHAPTER,
        specification=_gemm,
        cases=_products,
        wrong={
            "scaled_once": _scaled_once,
            "activation_scales_only": _activation_scales_only,
            "weight_scales_only": _weight_scales_only,
        },
        solution=solutions.fp8_3,
        tolerance=1e-2,
    ),
    Exercise(
        id="bug-swapped-scales",
        chapter=CHAPTER,
        specification=_linear,
        cases=_factors,
        wrong={
            "as_given": given_swapped_scales,
            "both_tiles": _both_tiles,
            "both_blocks": _both_blocks,
            "not_quantised": _not_quantised,
        },
        solution=solutions.bug_swapped_scales,
        given=given_swapped_scales,
        tolerance=1e-3,
    ),
    Exercise(
        id="bug-inverse-scale",
        chapter=CHAPTER,
        specification=_restored_linear,
        cases=_layers,
        wrong={"as_given": given_inverse_scale, "codes_as_weights": _codes_as_weights},
        solution=solutions.bug_inverse_scale,
        given=given_inverse_scale,
        tolerance=1e-3,
    ),
)
