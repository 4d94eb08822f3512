"""MLA decoding in its absorbed form, on the paged latent cache (V3 §2.1.1; `layers.mla` says why all heads share it).

All heads of a sequence attend to the same C + R numbers of each cached token, so a step that decodes one token reads
the cache once and uses each number for H heads: 2 H multiply-adds per number. With 16 heads that is little, and the
kernel is bound by the bytes of the cache; with 128 it is about as much as the tensor cores can follow.

**One tile.** A program holds BLOCK_X rows of queries (the H heads of S query tokens, flattened) and walks over tiles of
BLOCK_L cached tokens. The latents of a tile serve twice, as keys and as values, and are loaded once:

    scores_XL = q_latent_XC @ latents_LC.T + q_pe_XR @ k_pe_LR.T         acc_XC += softmax(scores)_XL @ latents_LC

The softmax is the running one: a larger maximum rescales what was summed before.

**Bytes on their way.** At 3 TB/s, each of 132 multiprocessors has to receive 23 bytes per nanosecond, about a
microsecond after it asked: some 30 KB must be on their way at any time. Either a program orders tiles ahead (STAGES),
or it owns one buffer and a neighbour on the same multiprocessor computes while it waits (RESIDENT programs). Where a
tile lies is looked up one tile earlier still, or its order would wait for the page table.

**Splits.** One sequence alone would keep one program busy and 131 multiprocessors idle. So the context is cut into
splits, each attended by a program of its own, and a second kernel adds their results up, weighted by the logarithm of
their softmax sums. How many there are follows from shapes alone, so that a recorded step serves all lengths; which
tokens a split takes follows from its sequence's `kv_lens_B`, which only the device knows. A result does not depend on
the other sequences. Splits without tokens leave at once.

Slots behind a sequence's end never count: they may hold anything, and 0 times NaN is NaN.

**On Hopper** `attention_hopper.py` computes the same splits of the released models' shape, with warps that share a
tile's work; the kernel here is its twin for every other shape and GPU, for few rows, and for the interpreter.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalMemberAccess=false

import functools
import importlib
from types import ModuleType
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dsv3.kernels import latent_bytes
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.reference import BLOCK, ceil_div
from dsv3.kernels.tiles import sm_count

LOG2E = 1.4426950408889634
"""exp(x) = 2^(x log2 e): the softmax is taken in base 2, for which there is an instruction."""

_BLOCK = tl.constexpr(BLOCK)

MAX_SPLITS = 256

_SUMMED = 8192
"""Numbers that one program adds up: a few columns of all splits."""


class Shape(NamedTuple):
    """How a launch is cut: query rows and cached tokens of a tile, splits of the context, warps, pipeline stages.

    hopper: by the kernel in `attention_hopper.py`, which has chosen all but the splits.
    """

    block_x: int
    block_l: int
    splits: int
    warps: int
    stages: int
    hopper: bool = False


def choose_shape(B: int, rows: int, context: int, sms: int, hopper: bool = False, in_fp8: bool = False) -> Shape:
    """From static sizes: B sequences with `rows` query rows each (S * H), and the longest `context` possible.

    `hopper`: that kernel can run. `in_fp8`: the cache holds codes. Making numbers of them takes longer than the
    products, and for tiles of 64 query rows it happens once; smaller ones are multiplied by instructions that want keys
    and values in registers, in two different orders.
    """
    resident = 1
    if in_fp8:
        cut = (64, 64, 8, 2)
    elif rows <= 16:
        cut, resident = (16, 64, 8, 2), 2
    elif hopper:
        cut = (64, 64, 16, 1)
    elif rows <= 32:
        cut = (32, 64, 8, 2)
    else:
        cut = (64, 64, 8, 2)
    block_x, block_l, warps, stages = cut
    splits = count_splits(B, rows, context, block_x, block_l, resident * sms)
    return Shape(block_x, block_l, splits, warps, stages, hopper and rows > 16)


def count_splits(B: int, rows: int, context: int, block_x: int, block_l: int, programs: int) -> int:
    """As many as `programs` run at a time, if each has a tile."""
    return max(1, min(programs // (B * ceil_div(rows, block_x)), ceil_div(context, block_l), MAX_SPLITS))


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
    """As `reference.latent_attention`; `shape` overrides `choose_shape`, for the tuner.

    The result is a view of (H, T, C), as the product that follows wants it.
    """
    (T, H, C), R, (B, P) = q_latent_THC.shape, q_pe_THR.shape[2], page_table_BP.shape
    device = q_latent_THC.device
    o_HTC = torch.empty(H, T, C, dtype=q_latent_THC.dtype, device=device)
    if T == 0:
        return o_HTC.transpose(0, 1)
    if shape is None:
        hopper, in_fp8 = _runs_on_hopper(q_latent_THC, latents_Xc, R, page_size), latents_Xc.dtype == torch.uint8
        shape = choose_shape(B, T // B * H, P * page_size, sm_count(device), hopper, in_fp8)
    parts, sums = _split_buffers(o_HTC, shape.splits)
    with torch.cuda.device_of(o_HTC):
        attend = _hopper_module().launch if shape.hopper else _attend
        attend(
            q_latent_THC, q_pe_THR, latents_Xc, page_table_BP, kv_lens_B, o_HTC, parts, sums,
            page_size=page_size, scale=scale * LOG2E, shape=shape,
        )  # fmt: skip
        if shape.splits > 1:
            _add_splits(parts, sums, o_HTC)
    return o_HTC.transpose(0, 1)


def _runs_on_hopper(q_latent_THC: torch.Tensor, latents_Xc: torch.Tensor, R: int, page_size: int) -> bool:
    """Whether GPU, triton and tensors are what `attention_hopper.py` is made for."""
    if not q_latent_THC.is_cuda or torch.cuda.get_device_capability(q_latent_THC.device)[0] != 9:
        return False
    module = _hopper_module()
    sixteen_bytes = latents_Xc.data_ptr() % 16 == 0 and latents_Xc.stride(0) % 8 == 0
    bf16 = q_latent_THC.dtype == latents_Xc.dtype == torch.bfloat16
    return module is not None and sixteen_bytes and bf16 and module.fits(q_latent_THC.shape[2], R, page_size)


@functools.cache
def _hopper_module() -> ModuleType | None:
    """None where this triton has no Gluon with Hopper's instructions: it is experimental, and its names may change."""
    try:
        return importlib.import_module("dsv3.kernels.attention_hopper")
    except (ImportError, AttributeError):
        return None


def _attend(
    q_latent_THC: torch.Tensor,
    q_pe_THR: torch.Tensor,
    latents_Xc: torch.Tensor,
    page_table_BP: torch.Tensor,
    kv_lens_B: torch.Tensor,
    o_HTC: torch.Tensor,
    parts_ZXC: torch.Tensor,
    sums_ZX: torch.Tensor,
    *,
    page_size: int,
    scale: float,
    shape: Shape,
) -> None:
    """Fills o_HTC, or parts_ZXC and sums_ZX where there are several splits. `scale` is that of base 2."""
    (H, T, C), R, B = o_HTC.shape, q_pe_THR.shape[2], len(page_table_BP)
    S, overlap, block_c = T // B, can_overlap(o_HTC), _power(C)
    if latents_Xc.dtype == torch.uint8:
        latents, scales, keys = latent_bytes.views(latents_Xc, C, R)
        block_c = max(block_c, BLOCK)
    else:
        latents, scales, keys = latents_Xc, None, latents_Xc[:, C:]
    _attend_kernel[(ceil_div(S * H, shape.block_x), shape.splits, B)](
        q_latent_THC, q_pe_THR, latents, scales, keys, page_table_BP, kv_lens_B, o_HTC, parts_ZXC, sums_ZX,
        scale, S, T, shape.splits, q_latent_THC.stride(0), q_latent_THC.stride(1), q_pe_THR.stride(0),
        q_pe_THR.stride(1), page_table_BP.stride(0),
        LATENT_STRIDE=latents.stride(0), SCALE_STRIDE=0 if scales is None else scales.stride(0),
        KEY_STRIDE=keys.stride(0), H=H, C=C, R=R, PAGE=page_size, WHOLE=shape.splits == 1, BLOCK_X=shape.block_x,
        BLOCK_L=shape.block_l, BLOCK_C=block_c, BLOCK_R=_power(R), OVERLAP=overlap, num_warps=shape.warps,
        num_stages=shape.stages, launch_pdl=overlap,
    )  # fmt: skip


def _split_buffers(o_HTC: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What each split sums up, and the logarithm (base 2) of its softmax sum; rows are (token, head)."""
    if splits == 1:
        return o_HTC, o_HTC  # not used
    (H, T, C), device = o_HTC.shape, o_HTC.device
    parts_ZXC = torch.empty(splits, T * H, C, dtype=torch.float32, device=device)
    return parts_ZXC, torch.empty(splits, T * H, dtype=torch.float32, device=device)


def _add_splits(parts_ZXC: torch.Tensor, sums_ZX: torch.Tensor, o_HTC: torch.Tensor) -> None:
    (H, T, C), splits, overlap = o_HTC.shape, len(parts_ZXC), can_overlap(o_HTC)
    block_z = int(triton.next_power_of_2(splits))
    block_c = min(128, _power(C), _SUMMED // block_z)
    _add_splits_kernel[(T * H, ceil_div(C, block_c))](
        parts_ZXC, sums_ZX, o_HTC, T, T * H, splits, H=H, C=C, BLOCK_Z=block_z, BLOCK_C=block_c, OVERLAP=overlap,
        num_warps=4, launch_pdl=overlap,
    )  # fmt: skip


def _power(size: int) -> int:
    """The width of a tile that holds `size` columns: what the tensor cores take is a power of two, and at least 16."""
    return max(16, int(triton.next_power_of_2(size)))


@triton.jit
def _page_of(table_at, tile, last, kv_len, PAGE: tl.constexpr, BLOCK_L: tl.constexpr):
    """The page of each of the tile's tokens; one number where all lie in the same."""
    if PAGE % BLOCK_L == 0:
        return tl.load(table_at + tile * BLOCK_L // PAGE, mask=tile < last, other=0)
    else:
        place = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        return tl.load(table_at + place // PAGE, mask=(place < kv_len) & (tile < last), other=0)


@triton.jit
def _scaled(
    codes_at, scales_at, slots, inside,
    LATENT_STRIDE: tl.constexpr, SCALE_STRIDE: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The latents that codes and scales mean: each scale is loaded once, for its 128 codes."""
    GROUPS: tl.constexpr = BLOCK_C // _BLOCK
    groups = tl.arange(0, GROUPS)[None, :]
    c = (groups * _BLOCK)[:, :, None] + tl.arange(0, _BLOCK)[None, None, :]
    codes = tl.load(codes_at + (slots * LATENT_STRIDE)[:, :, None] + c, mask=inside[:, :, None] & (c < C), other=0.0)
    scales = tl.load(scales_at + slots * SCALE_STRIDE + groups, mask=inside & (groups * _BLOCK < C), other=0.0)
    latent = codes.to(tl.float32) * scales[:, :, None]
    return tl.reshape(latent.to(DTYPE), (slots.shape[0], BLOCK_C))


# One compiled kernel serves all batches and contexts: their sizes are plain numbers, and no 1 among them is special.
@triton.jit(do_not_specialize=["S", "T", "splits", "table_stride"])
def _attend_kernel(
    q_ptr, q_pe_ptr, latents_ptr, scales_ptr, keys_ptr, table_ptr, lens_ptr, o_ptr, parts_ptr, sums_ptr,
    scale, S, T, splits, q_stride_t, q_stride_h, pe_stride_t, pe_stride_h, table_stride,
    LATENT_STRIDE: tl.constexpr, SCALE_STRIDE: tl.constexpr, KEY_STRIDE: tl.constexpr,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr, WHOLE: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Without scales the latents are numbers, with them e4m3 codes: see `latent_bytes.py`."""
    follow(OVERLAP)
    split, b = tl.program_id(1), tl.program_id(2)
    rows = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    real = rows < S * H
    s, head = rows // H, rows % H
    token = (b * S + s).to(tl.int64)
    kv_len = tl.load(lens_ptr + b).to(tl.int32)
    sees = kv_len - (S - 1 - s)  # each query sees itself and what is before it

    tiles = tl.cdiv(kv_len, BLOCK_L)
    each = tl.cdiv(tiles, splits)
    first, last = split * each, min(tiles, split * each + each)

    c, r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    q_at = q_ptr + token * q_stride_t + head * q_stride_h
    q = tl.load(q_at[:, None] + c[None, :], mask=real[:, None] & (c < C)[None, :], other=0.0)
    pe_at = q_pe_ptr + token * pe_stride_t + head * pe_stride_h
    q_pe = tl.load(pe_at[:, None] + r[None, :], mask=real[:, None] & (r < R)[None, :], other=0.0)

    best = tl.full([BLOCK_X], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_X], tl.float32)
    acc = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    table_at = table_ptr + b.to(tl.int64) * table_stride
    page = _page_of(table_at, first, last, kv_len, PAGE, BLOCK_L)
    for tile in range(first, last):
        place = tile * BLOCK_L + tl.arange(0, BLOCK_L)
        inside = (place < kv_len)[:, None]
        first_slot = page.to(tl.int64) * PAGE
        if PAGE % BLOCK_L == 0:  # one number, plus what is the same for all tiles
            first_slot += tile * BLOCK_L % PAGE
            slots = tl.arange(0, BLOCK_L)[:, None]
        else:
            slots = (first_slot + place % PAGE)[:, None]
            first_slot = 0
        latents_at = latents_ptr + first_slot * LATENT_STRIDE
        if scales_ptr is None:
            latent = tl.load(latents_at + slots * LATENT_STRIDE + c[None, :], mask=inside & (c < C)[None, :], other=0.0)
        else:
            scales_at = scales_ptr + first_slot * SCALE_STRIDE
            latent = _scaled(latents_at, scales_at, slots, inside, LATENT_STRIDE, SCALE_STRIDE, C, BLOCK_C, q.dtype)
        at = keys_ptr + first_slot * KEY_STRIDE + slots * KEY_STRIDE + r[None, :]
        k_pe = tl.load(at, mask=inside & (r < R)[None, :], other=0.0)
        page = _page_of(table_at, tile + 1, last, kv_len, PAGE, BLOCK_L)

        scores = tl.dot(q_pe, tl.trans(k_pe.to(q_pe.dtype)))
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
    if WHOLE:
        tl.store(o_ptr + (head * T + token)[:, None] * C + c[None, :], result.to(o_ptr.dtype.element_ty), mask=mask)
    else:
        row = split.to(tl.int64) * T * H + token * H + head
        if first < last:
            tl.store(parts_ptr + row[:, None] * C + c[None, :], result, mask=mask)
        log_sum = tl.where(total > 0.0, best + tl.log2(tl.where(total > 0.0, total, 1.0)), float("-inf"))
        tl.store(sums_ptr + row, log_sum, mask=real)


@triton.jit(do_not_specialize=["T", "rows", "n_splits"])
def _add_splits_kernel(
    parts_ptr, sums_ptr, o_ptr, T, rows, n_splits,
    H: tl.constexpr, C: tl.constexpr, BLOCK_Z: tl.constexpr, BLOCK_C: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """BLOCK_C columns of one row of (T, H): the sum of its splits, weighted by their shares of the softmax sum."""
    follow(OVERLAP)
    row = tl.program_id(0)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    splits = tl.arange(0, BLOCK_Z).to(tl.int64)
    log_sums = tl.load(sums_ptr + splits * rows + row, mask=splits < n_splits, other=float("-inf"))
    best = tl.max(log_sums, axis=0)
    weights = tl.exp2(log_sums - tl.where(best == float("-inf"), 0.0, best))
    # A split without tokens has the weight 0 and wrote nothing.
    mask = (weights > 0.0)[:, None] & (c < C)[None, :]
    parts = tl.load(parts_ptr + (splits * rows + row)[:, None] * C + c[None, :], mask=mask, other=0.0)
    whole = tl.sum(weights, axis=0)
    result = tl.sum(parts * weights[:, None], axis=0) / tl.where(whole > 0.0, whole, 1.0)
    t, head = row // H, row % H
    tl.store(o_ptr + (head.to(tl.int64) * T + t) * C + c, result.to(o_ptr.dtype.element_ty), mask=c < C)
