"""MLA decoding in its absorbed form, on the paged latent cache (V3 §2.1.1; `layers.mla` says why all heads share it).

All heads of a sequence attend to the same C + R numbers of each cached token, so a step that decodes one token reads
the cache once and uses each number for H heads: 2 H multiply-adds per number. With 16 heads that is little, and the
kernel is bound by the bytes of the cache; with 128 it is about as much as the tensor cores can follow.

**One tile.** A program holds BLOCK_X rows of queries (the H heads of S query tokens, flattened) and walks over tiles of
BLOCK_L cached tokens. The latents of a tile serve twice, as keys and as values, and are loaded once:

    scores_XL = q_latent_XC @ latents_LC.T + q_pe_XR @ k_pe_LR.T         acc_XC += softmax(scores)_XL @ latents_LC

The softmax is the running one: a larger maximum rescales what was summed before.

**Splits.** One sequence alone would keep one program busy and 131 multiprocessors idle. So the context is cut into
splits, each attended by a program of its own, and a second kernel adds their results up, weighted by the logarithm of
their softmax sums. How many there are follows from shapes alone, so that a recorded step serves all lengths; which
tokens a split takes follows from `kv_lens_B`, which only the device knows. Splits without tokens leave at once.

Slots behind a sequence's end are never read: they may hold anything, and 0 times NaN is NaN.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dsv3.kernels.chain import can_overlap, follow

_LOG2E = 1.4426950408889634
_MAX_SPLITS = 32


class Shape(NamedTuple):
    """How a launch is cut: query rows and cached tokens of a tile, splits of the context, warps, pipeline stages."""

    block_x: int
    block_l: int
    splits: int
    warps: int
    stages: int


def choose_shape(B: int, rows: int, context: int, multiprocessors: int) -> Shape:
    """From static sizes: B sequences with `rows` query rows each (S * H), and the longest `context` possible."""
    if rows <= 16:
        block_x, block_l, warps, stages, resident = 16, 64, 4, 2, 1
    elif rows <= 32:
        block_x, block_l, warps, stages, resident = 32, 64, 4, 2, 1
    else:
        block_x, block_l, warps, stages, resident = 64, 64, 8, 2, 1
    programs = B * triton.cdiv(rows, block_x)
    splits = max(1, min(resident * multiprocessors // programs, triton.cdiv(context, block_l), _MAX_SPLITS))
    return Shape(block_x, block_l, splits, warps, stages)


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def latent_attention(
    q_latent_THC: torch.Tensor,
    q_pe_THR: torch.Tensor,
    latents_Xc: torch.Tensor,
    page_table_BP: torch.Tensor,
    kv_lens_B: torch.Tensor,
    *,
    page_size: int,
    scale: float,
    shape: Shape | None = None,
) -> torch.Tensor:
    """As `reference.latent_attention`; `shape` overrides `choose_shape`, for the tuner."""
    (T, H, C), R, (B, P) = q_latent_THC.shape, q_pe_THR.shape[2], page_table_BP.shape
    o_HTC = torch.empty(H, T, C, dtype=q_latent_THC.dtype, device=q_latent_THC.device)
    o_THC = o_HTC.transpose(0, 1)
    if T == 0:
        return o_THC
    S = T // B
    if shape is None:
        shape = choose_shape(B, S * H, P * page_size, _multiprocessors(o_HTC.device))
    block_x, block_l, splits, warps, stages = shape
    whole = splits == 1
    parts = o_HTC if whole else torch.empty(splits, T * H, C, dtype=torch.float32, device=o_HTC.device)
    sums = o_HTC if whole else torch.empty(splits, T * H, dtype=torch.float32, device=o_HTC.device)
    overlap = can_overlap(o_HTC)
    block_c = max(16, triton.next_power_of_2(C))
    with torch.cuda.device_of(o_HTC):
        _attend_kernel[(triton.cdiv(S * H, block_x), splits, B)](
            q_latent_THC, q_pe_THR, latents_Xc, page_table_BP, kv_lens_B, o_HTC, parts, sums,
            scale * _LOG2E, S, T, q_latent_THC.stride(0), q_latent_THC.stride(1), q_pe_THR.stride(0),
            q_pe_THR.stride(1), latents_Xc.stride(0), page_table_BP.stride(0),
            H=H, C=C, R=R, PAGE=page_size, SPLITS=splits, BLOCK_X=block_x, BLOCK_L=block_l, BLOCK_C=block_c,
            BLOCK_R=max(16, triton.next_power_of_2(R)), OVERLAP=overlap, num_warps=warps, num_stages=stages,
            launch_pdl=overlap,
        )  # fmt: skip
        if not whole:
            _add_splits_kernel[(T * H,)](
                parts, sums, o_HTC, T, T * H, H=H, C=C, SPLITS=splits,
                BLOCK_S=triton.next_power_of_2(splits), BLOCK_C=block_c, OVERLAP=overlap, num_warps=4,
                launch_pdl=overlap,
            )  # fmt: skip
    return o_THC


@triton.jit
def _attend_kernel(
    q_ptr, q_pe_ptr, latents_ptr, table_ptr, lens_ptr, o_ptr, parts_ptr, sums_ptr,
    scale, S, T, q_stride_t, q_stride_h, pe_stride_t, pe_stride_h, latents_stride, table_stride,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    split, b = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    real = rows < S * H
    s, head = rows // H, rows % H
    token = (b * S + s).to(tl.int64)
    kv_len = tl.load(lens_ptr + b)
    sees = kv_len - (S - 1 - s)  # each query sees itself and what is before it

    tiles = tl.cdiv(kv_len, BLOCK_L)
    each = tl.cdiv(tiles, SPLITS)
    first, last = split * each, min(tiles, split * each + each)

    c, r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    q_at = q_ptr + token * q_stride_t + head * q_stride_h
    q = tl.load(q_at[:, None] + c[None, :], mask=real[:, None] & (c < C)[None, :], other=0.0)
    pe_at = q_pe_ptr + token * pe_stride_t + head * pe_stride_h
    q_pe = tl.load(pe_at[:, None] + r[None, :], mask=real[:, None] & (r < R)[None, :], other=0.0)

    best = tl.full([BLOCK_X], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_X], tl.float32)
    acc = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    for tile in range(first, last):
        place = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        inside = place < kv_len
        if PAGE % BLOCK_L == 0:  # the whole tile lies in one page
            page = tl.load(table_ptr + b * table_stride + tile * BLOCK_L // PAGE)
        else:
            page = tl.load(table_ptr + b * table_stride + place // PAGE, mask=inside, other=0)
        at = latents_ptr + (page.to(tl.int64) * PAGE + place % PAGE) * latents_stride
        latent = tl.load(at[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
        k_pe = tl.load(at[:, None] + C + r[None, :], mask=inside[:, None] & (r < R)[None, :], other=0.0)
        scores = tl.dot(q_pe, tl.trans(k_pe))
        scores = tl.dot(q, tl.trans(latent), scores) * scale
        scores = tl.where(place[None, :] < sees[:, None], scores, float("-inf"))
        now = tl.maximum(best, tl.max(scores, axis=1))
        settled = tl.where(now == float("-inf"), 0.0, now)  # a row that saw nothing yet: exp2(-inf - 0) = 0, not NaN
        weights = tl.exp2(scores - settled[:, None])
        fade = tl.exp2(best - settled)
        total = total * fade + tl.sum(weights, axis=1)
        acc = tl.dot(weights.to(latent.dtype), latent, acc * fade[:, None])
        best = now

    result = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    mask = real[:, None] & (c < C)[None, :]
    if SPLITS == 1:
        tl.store(o_ptr + (head * T + token)[:, None] * C + c[None, :], result.to(o_ptr.dtype.element_ty), mask=mask)
    else:
        row = split.to(tl.int64) * T * H + token * H + head
        if first < last:
            tl.store(parts_ptr + row[:, None] * C + c[None, :], result, mask=mask)
        log_sum = tl.where(total > 0.0, best + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))
        tl.store(sums_ptr + row, log_sum, mask=real)


@triton.jit
def _add_splits_kernel(
    parts_ptr, sums_ptr, o_ptr, T, rows,
    H: tl.constexpr, C: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """One row of (T, H): the sum of its splits, each weighted by its share of the whole softmax sum."""
    follow(OVERLAP)
    row = tl.program_id(0)
    splits, c = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_C)
    log_sums = tl.load(sums_ptr + splits.to(tl.int64) * rows + row, mask=splits < SPLITS, other=float("-inf"))
    best = tl.max(log_sums, axis=0)
    best = tl.where(best == float("-inf"), 0.0, best)
    whole = tl.sum(tl.exp2(log_sums - best), axis=0)
    whole = tl.where(whole > 0.0, whole, 1.0)
    acc = tl.zeros([BLOCK_C], tl.float32)
    for split in range(SPLITS):
        at = tl.cast(split, tl.int64) * rows + row
        log_sum = tl.load(sums_ptr + at)
        width = tl.where(log_sum > float("-inf"), C, 0)  # a split without tokens wrote nothing
        part = tl.load(parts_ptr + at * C + c, mask=c < width, other=0.0)
        acc += part * (tl.exp2(log_sum - best) / whole)
    t, head = row // H, row % H
    tl.store(o_ptr + (head.to(tl.int64) * T + t) * C + c, acc.to(o_ptr.dtype.element_ty), mask=c < C)
