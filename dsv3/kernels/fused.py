"""Triton kernels that do several small things to a row while it is in registers.

A decode step is bound by the bytes of its weights, but between two products stand a norm, a sum, a rotation: each
reads and writes a few kilobytes, and costs a launch of two or three microseconds all the same. Twenty-seven layers of
ten such operations would take half of the step. So what happens to a row between two products is one kernel here.

`rms_norm` is torch's, `add_rms_norm` is `reference.add_rms_norm`. `rotate_and_cache` is what `layers.mla` does between
its projections and the attention: norm of the latent, rotation of the keys and queries (`layers.rope.rotate`), and the
write to the cache.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

from dsv3.kernels import latent_bytes
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.quant import _make_scale
from dsv3.kernels.reference import BLOCK

_BLOCK = tl.constexpr(BLOCK)

_HEADS = 16
"""Heads whose queries one program rotates."""


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """As `F.rms_norm`; x_TD may be columns of a wider matrix."""
    return _norm(x_TD, None, weight_D, eps)[1]


def add_rms_norm(
    h_TD: torch.Tensor, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.add_rms_norm`."""
    return _norm(h_TD.contiguous(), x_TD.contiguous(), weight_D, eps)


def _norm(
    h_TD: torch.Tensor, x_TD: torch.Tensor | None, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """h + x and its norm; without x, h itself and its norm."""
    (n, d) = h_TD.shape
    assert h_TD.stride(1) == 1
    y_TD = torch.empty(n, d, dtype=h_TD.dtype, device=h_TD.device)
    sum_TD = h_TD if x_TD is None else torch.empty_like(y_TD)
    if n:
        block, overlap = triton.next_power_of_2(d), can_overlap(h_TD)
        with torch.cuda.device_of(h_TD):
            _norm_kernel[(n,)](
                h_TD, x_TD, weight_D, sum_TD, y_TD, d, h_TD.stride(0), eps, BLOCK=block, ADD=x_TD is not None,
                OVERLAP=overlap, num_warps=min(16, max(1, block // 512)), launch_pdl=overlap,
            )  # fmt: skip
    return sum_TD, y_TD


def rotate_and_cache(
    q_THX: torch.Tensor,
    kv_Tc: torch.Tensor,
    norm_weight_C: torch.Tensor,
    eps: float,
    turns_TR2: torch.Tensor,
    latents_Xc: torch.Tensor,
    slots_T: torch.Tensor,
) -> torch.Tensor:
    """Write each token's latent and key to the cache, and return its rotated queries q_pe_THR.

    Args:
        q_THX: queries (T, H, N + R); only the last R columns are read.
        kv_Tc: (T, C + R), the latent before its norm and the key before its rotation.
        turns_TR2: cosine and sine of each pair, (T, R/2, 2) in FP32.
        latents_Xc: one layer's cache (slots, C + R), or its bytes (`latent_bytes.py`): then the latent is quantised as
            it is written. slots_T says which slots receive the T tokens.
    """
    (n, h, x), c, r = q_THX.shape, norm_weight_C.shape[0], 2 * turns_TR2.shape[1]
    q_pe_THR = torch.empty(n, h, r, dtype=q_THX.dtype, device=q_THX.device)
    if n:
        assert (q_THX.stride(2), kv_Tc.stride(1), latents_Xc.stride(1)) == (1, 1, 1)
        block_c = triton.next_power_of_2(c)
        if latents_Xc.dtype == torch.uint8:
            latents, scales, keys = latent_bytes.views(latents_Xc, c, r)
            block_c = max(block_c, BLOCK)
        else:
            latents, scales, keys = latents_Xc, None, latents_Xc[:, c:]
        turns_TR2, overlap = turns_TR2.contiguous(), can_overlap(q_THX)
        with torch.cuda.device_of(q_THX):
            _rotate_and_cache_kernel[(n, 1 + triton.cdiv(h, _HEADS))](
                q_THX, kv_Tc, norm_weight_C, turns_TR2, latents, scales, keys, slots_T, q_pe_THR,
                h, x - r, c, eps, q_THX.stride(0), q_THX.stride(1), kv_Tc.stride(0), latents.stride(0),
                0 if scales is None else scales.stride(0), keys.stride(0),
                HALF=r // 2, HEADS=_HEADS, BLOCK_C=block_c,
                BLOCK_HALF=triton.next_power_of_2(r // 2), OVERLAP=overlap, num_warps=4, launch_pdl=overlap,
            )  # fmt: skip
    return q_pe_THR


@triton.jit
def _norm_kernel(
    h_ptr, x_ptr, weight_ptr, sum_ptr, y_ptr, d, h_stride, eps,
    BLOCK: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < d
    h = tl.load(h_ptr + row * h_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x = tl.load(x_ptr + row * d + columns, mask=inside, other=0.0).to(tl.float32)
        # The sum is rounded first: the norm sees what the next layer will read.
        total = (h + x).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * d + columns, total, mask=inside)
        h = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, axis=0) / d + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * d + columns, (h * scale * weight).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotated(even, odd, turns_ptr, row, pairs, inside, HALF: tl.constexpr):
    # pairs times (cos, sin), as layers.rope.rotate
    cos = tl.load(turns_ptr + row * (2 * HALF) + 2 * pairs, mask=inside, other=0.0)
    sin = tl.load(turns_ptr + row * (2 * HALF) + 2 * pairs + 1, mask=inside, other=0.0)
    return even * cos - odd * sin, even * sin + odd * cos


@triton.jit
def _cache_latent(
    token, kv_ptr, weight_ptr, turns_ptr, latents_ptr, scales_ptr, keys_ptr, slots_ptr, c, eps, kv_stride,
    latents_stride, scales_stride, keys_stride,
    HALF: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    columns, pairs = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_HALF)
    inside, real = columns < c, pairs < HALF
    kv = kv_ptr + token * kv_stride
    slot = tl.load(slots_ptr + token).to(tl.int64)
    latent = tl.load(kv + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(latent * latent, axis=0) / c + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    latent = latent * scale * weight
    to = latents_ptr + slot * latents_stride
    if scales_ptr is None:
        tl.store(to + columns, latent.to(latents_ptr.dtype.element_ty), mask=inside)
    else:
        latent = latent.to(kv_ptr.dtype.element_ty).to(tl.float32)  # as a cache of numbers would hold it
        blocks = tl.reshape(latent, (BLOCK_C // _BLOCK, _BLOCK))
        scales = _make_scale(tl.max(tl.abs(blocks), axis=1), False)
        codes = tl.div_rn(blocks, tl.broadcast_to(scales[:, None], blocks.shape))
        tl.store(to + columns, tl.reshape(codes, (BLOCK_C,)).to(latents_ptr.dtype.element_ty), mask=inside)
        groups = tl.arange(0, BLOCK_C // _BLOCK)
        tl.store(scales_ptr + slot * scales_stride + groups, scales, mask=groups * _BLOCK < c)
    even = tl.load(kv + c + 2 * pairs, mask=real, other=0.0).to(tl.float32)
    odd = tl.load(kv + c + 2 * pairs + 1, mask=real, other=0.0).to(tl.float32)
    even, odd = _rotated(even, odd, turns_ptr, token, pairs, real, HALF)
    to = keys_ptr + slot * keys_stride + 2 * pairs
    tl.store(to, even.to(keys_ptr.dtype.element_ty), mask=real)
    tl.store(to + 1, odd.to(keys_ptr.dtype.element_ty), mask=real)


@triton.jit
def _rotate_queries(
    token, first, q_ptr, turns_ptr, q_pe_ptr, h, n_nope, stride_t, stride_h,
    HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    heads, pairs = first + tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK_HALF)[None, :]
    real = pairs < HALF
    inside = (heads < h) & real
    at = q_ptr + token * stride_t + heads * stride_h + n_nope + 2 * pairs
    even = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(at + 1, mask=inside, other=0.0).to(tl.float32)
    even, odd = _rotated(even, odd, turns_ptr, token, pairs, real, HALF)
    to = q_pe_ptr + (token * h + heads) * (2 * HALF) + 2 * pairs
    tl.store(to, even.to(q_pe_ptr.dtype.element_ty), mask=inside)
    tl.store(to + 1, odd.to(q_pe_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_and_cache_kernel(
    q_ptr, kv_ptr, weight_ptr, turns_ptr, latents_ptr, scales_ptr, keys_ptr, slots_ptr, q_pe_ptr,
    h, n_nope, c, eps, q_stride_t, q_stride_h, kv_stride, latents_stride, scales_stride, keys_stride,
    HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HALF: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Programs (token, 0) take the token's latent and key, programs (token, 1 + i) its i-th share of the heads."""
    follow(OVERLAP)
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if part == 0:
        _cache_latent(
            token, kv_ptr, weight_ptr, turns_ptr, latents_ptr, scales_ptr, keys_ptr, slots_ptr, c, eps, kv_stride,
            latents_stride, scales_stride, keys_stride, HALF, BLOCK_C, BLOCK_HALF,
        )  # fmt: skip
    else:
        first = (part - 1) * HEADS
        _rotate_queries(
            token, first, q_ptr, turns_ptr, q_pe_ptr, h, n_nope, q_stride_t, q_stride_h, HALF, HEADS, BLOCK_HALF
        )
