"""The experts of an MoE layer for inference: gather, two grouped products, weighted sum, in three launches.

    launch 1   h = silu(x W1^T) * (x W3^T)     a program: one expert, BLOCK_N columns of both W1 and W3
    launch 2   y = h W2^T                      a program: one expert, BLOCK_N columns of W2
    launch 3   sum of each token's K rows, the shared experts' row and the residual, in that order

**Decode is a matter of bytes.** With 64 tokens and 6 of 64 experts each, every expert is touched, by six rows on
average: 1.1 GB of weights pass through the multipliers once, for very few multiplications. What counts is that enough
loads are under way at any time. So a program takes a narrow strip of weights (many programs), walks along it with a
pipeline of asynchronous copies, and multiplies by 16 rows at once on the tensor cores, however few of them are real.

**No sort, no copies.** How a program finds its rows is said in `expert_rows.py`.

**The shared experts ride along** as further programs of the same launches, put first, because in launch 2 their strips
are the longest.

**FP8.** x and h are quantised in 1x128 tiles once, by `act_quant`, between the launches. Left to the programs that load
them, every program would do the same again: measured, that cost more than the weights it stood beside. The products of
128 are promoted to FP32 as in `gemm.py`.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dsv3.kernels import moe_reference, one_token, quant
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.expert_rows import BY_PLACE, find_unit, pairs_by_order, pairs_by_rank, place, where_rows
from dsv3.kernels.moe_reference import ExpertWeights, Routed, SharedWeights
from dsv3.kernels.reference import BLOCK, E4M3

_SCALE_BLOCK = tl.constexpr(BLOCK)


class Tile(NamedTuple):
    """One launch's tile and pipeline. FP8 needs block_k = 128 and a block_n that divides 128."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    swap: bool = False
    """Multiply weights x rows^T: 64 weights' rows fill the warp-group instruction, which few tokens never would."""


def choose_tiles(n_tokens: int, top_k: int, n_experts: int, dtype: torch.dtype) -> tuple[Tile, Tile]:
    """Tiles of launch 1 and launch 2 for weights of `dtype`, by the mean number of rows of an expert."""
    if dtype == torch.float32:  # for tests and small models: no tensor cores, and twice the shared memory
        return Tile(16, 32, 32, 4, 2), Tile(16, 32, 32, 4, 2)
    fp8 = dtype == E4M3
    if n_tokens > BY_PLACE:
        if fp8:
            return Tile(128, 64, 128, 8, 4), Tile(128, 128, 128, 8, 4)
        return Tile(128, 128, 64, 8, 3), Tile(128, 256, 64, 8, 3)
    rows = n_tokens * top_k / n_experts
    most = rows + 1.5 * math.sqrt(rows)  # with tokens spread at random, few experts have more; they take two rounds
    block_m = 16 if most <= 16 else 32 if most <= 32 else 64
    if fp8:  # swapped, as codes are multiplied as such by the warp-group instruction only
        return Tile(block_m, 128, 128, 8, 3, swap=True), Tile(block_m, 128, 128, 4, 3, swap=True)
    if block_m == 16:
        return Tile(16, 32, 128, 4, 5), Tile(16, 64, 128, 4, 5, swap=True)
    return Tile(block_m, 32, 128, 4, 4), Tile(block_m, 64, 128, 4, 4)


def moe_experts(
    x_TD: torch.Tensor,
    routed: Routed,
    experts: ExpertWeights,
    shared: SharedWeights | None = None,
    residual_TD: torch.Tensor | None = None,
    scale_fmt: str | None = None,
    tiles: tuple[Tile, Tile] | None = None,
) -> torch.Tensor:
    """As `moe_reference.moe_experts`; `tiles` overrides the choice, for tests and tuning."""
    if len(x_TD) == 1 and tiles is None:
        return one_token.moe_experts(x_TD, routed, experts, shared, residual_TD, scale_fmt)
    moe_reference.check_experts(x_TD, routed, experts, shared, residual_TD)
    w13, w2, w13_scale, w2_scale = experts
    (T, D), (E, _, F, _), K = x_TD.shape, w13.shape, routed.indices_TK.shape[1]
    x_TD, residual_TD = x_TD.contiguous(), None if residual_TD is None else residual_TD.contiguous()
    y_TD = torch.empty_like(x_TD)
    if T == 0:
        return y_TD
    w1, w3, w2_shared, *shared_scales = shared or SharedWeights(w13, w13, w2, w13_scale, w13_scale, w2_scale)
    F_shared = w1.shape[0] if shared else 0
    fp8 = w13.dtype == E4M3
    first, second = tiles or choose_tiles(T, K, E, w13.dtype)
    by_place = T <= BY_PLACE
    overlap = can_overlap(x_TD)
    flags = {
        "FP8": fp8,
        "OVERLAP": overlap,
        "launch_pdl": overlap,
        "TOKENS": max(64, triton.next_power_of_2(T)) if by_place else 0,
    }

    h_MF = torch.empty(T * K, F, dtype=x_TD.dtype, device=x_TD.device)
    h_TF = torch.empty(T, F_shared, dtype=x_TD.dtype, device=x_TD.device)
    y_XD = torch.empty(T * (K + (shared is not None)), D, dtype=x_TD.dtype, device=x_TD.device)
    with torch.cuda.device_of(x_TD):
        where, n_tiles = where_rows(routed, E, first.block_m, by_place)
        x, x_s = quant.act_quant(x_TD, scale_fmt=scale_fmt) if fp8 else (x_TD, None)
        shared_tiles = triton.cdiv(T, first.block_m) * triton.cdiv(F_shared, first.block_n)
        even = D % first.block_k == 0
        _gate_up_kernel[(shared_tiles + n_tiles * triton.cdiv(F, first.block_n),)](
            x, x_s, *where, w13, w13_scale, w1, w3, *shared_scales[:2], h_MF, h_TF,
            T, K, D, F, F_shared, shared_tiles, **flags, **_meta(first), EVEN_K=even, **_launch(first),
        )  # fmt: skip
        if second.block_m != first.block_m:
            where, n_tiles = where_rows(routed, E, second.block_m, by_place)
        h, h_s = quant.act_quant(h_MF, scale_fmt=scale_fmt) if fp8 else (h_MF, None)
        hs, hs_s = (quant.act_quant(h_TF, scale_fmt=scale_fmt) if fp8 else (h_TF, None)) if shared else (h, h_s)
        n_columns = triton.cdiv(D, second.block_n)
        shared_tiles = triton.cdiv(T, second.block_m) * n_columns if shared else 0
        even = F % second.block_k == 0 and F_shared % second.block_k == 0
        _down_kernel[(shared_tiles + n_tiles * n_columns,)](
            h, h_s, hs, hs_s, *where, w2, w2_scale, w2_shared, shared_scales[2], y_XD,
            T, K, D, F, F_shared, shared_tiles, **flags, **_meta(second), EVEN_K=even, **_launch(second),
        )  # fmt: skip
        block = min(1024, triton.next_power_of_2(D))
        _combine_kernel[(T, triton.cdiv(D, block))](
            y_XD, routed.weights_TK.contiguous(), residual_TD, y_TD, T, D,
            K=K, SHARED=shared is not None, BLOCK=block, OVERLAP=overlap, num_warps=4, launch_pdl=overlap,
        )  # fmt: skip
    return y_TD


def _meta(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "SWAP": tile.swap}


def _launch(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


# --- the products ---------------------------------------------------------------------------------------------------


@triton.jit
def _load_rows(row_ptrs, scale_ptrs, inside, k, step, width, FP8: tl.constexpr, EVEN: tl.constexpr):
    """Columns k of the rows, ready to be multiplied, and the rows' scales (FP8; else 1)."""
    mask = inside[:, None] if EVEN else inside[:, None] & (k < width)[None, :]
    rows = tl.load(row_ptrs[:, None] + k[None, :], mask=mask, other=0.0)
    scale = 1.0
    if FP8:
        scale = tl.load(scale_ptrs + step, mask=inside, other=0.0)
    return rows, scale


@triton.jit
def _multiply(
    acc, rows, scale, w_ptrs, w_s_ptr, k, step, width, FP8: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr
):
    """acc += rows times the strip of weights w_ptrs (BLOCK_N,) in columns k; with SWAP all of it transposed."""
    if EVEN:
        w = tl.load(w_ptrs[:, None] + k[None, :])
    else:
        w = tl.load(w_ptrs[:, None] + k[None, :], mask=(k < width)[None, :], other=0.0)
    if SWAP:
        left, right = w, tl.trans(rows)
    else:
        left, right = rows, tl.trans(w)
    if FP8:
        scale = scale * tl.load(w_s_ptr + step)
        acc += tl.dot(left, right) * (scale[None, :] if SWAP else scale[:, None])
    else:
        acc = tl.dot(left, right, acc, input_precision="ieee")
    return acc


@triton.jit
def _zeros(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SWAP: tl.constexpr):
    return tl.zeros((BLOCK_N, BLOCK_M) if SWAP else (BLOCK_M, BLOCK_N), dtype=tl.float32)


@triton.jit
def _store(acc, ptr, rows, columns, width, inside, SWAP: tl.constexpr):
    y = (tl.trans(acc) if SWAP else acc).to(ptr.dtype.element_ty)
    to = ptr + rows[:, None] * width + columns[None, :]
    tl.store(to, y, mask=inside[:, None] & (columns < width)[None, :])


@triton.jit(do_not_specialize=["n_tokens", "top_k", "shared_programs"])
def _gate_up_kernel(
    x_ptr, x_s_ptr, places_ptr, order_ptr, tiles_ptr, w13_ptr, w13_s_ptr, w1_ptr, w3_ptr, w1_s_ptr, w3_s_ptr,
    h_ptr, h_shared_ptr, n_tokens, top_k, d, f, f_shared, shared_programs, FP8: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SWAP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    is_shared = tl.program_id(0) < shared_programs
    unit, column_tile = place(tl.program_id(0), shared_programs, n_tokens, f, f_shared, BLOCK_M, BLOCK_N)
    expert, first, end, tokens, places = find_unit(places_ptr, tiles_ptr, unit, is_shared, n_tokens, TOKENS, BLOCK_M)
    d_blocks = tl.cdiv(d, _SCALE_BLOCK)
    if is_shared:
        gate_ptr, up_ptr, gate_s_ptr, up_s_ptr, out_ptr, width = (
            w1_ptr,
            w3_ptr,
            w1_s_ptr,
            w3_s_ptr,
            h_shared_ptr,
            f_shared,
        )
    else:
        matrix = (f * d).to(tl.int64)
        gate_ptr = w13_ptr + expert * (2 * matrix)
        up_ptr = gate_ptr + matrix
        gate_s_ptr, up_s_ptr, out_ptr, width = w13_s_ptr, w13_s_ptr, h_ptr, f
        if FP8:
            gate_s_ptr += expert * (2 * tl.cdiv(f, _SCALE_BLOCK) * d_blocks)
            up_s_ptr = gate_s_ptr + tl.cdiv(f, _SCALE_BLOCK) * d_blocks
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    real = tl.where(columns < width, columns, 0)  # what the others compute is not stored
    gate_ptrs, up_ptrs = gate_ptr + real * d, up_ptr + real * d
    if FP8:
        gate_s_ptr += (column_tile * BLOCK_N // _SCALE_BLOCK) * d_blocks
        up_s_ptr += (column_tile * BLOCK_N // _SCALE_BLOCK) * d_blocks

    for start in range(first, end, BLOCK_M):
        if TOKENS:
            pairs = pairs_by_rank(places, tokens, top_k, start // BLOCK_M, BLOCK_M)
        else:
            pairs = pairs_by_order(order_ptr, start, end, top_k, is_shared, BLOCK_M)
        inside = pairs >= 0
        token = pairs // top_k
        x_ptrs = x_ptr + token.to(tl.int64) * d
        x_s_ptrs = None if x_s_ptr is None else x_s_ptr + token * d_blocks
        gate, up = _zeros(BLOCK_M, BLOCK_N, SWAP), _zeros(BLOCK_M, BLOCK_N, SWAP)
        for step in range(tl.cdiv(d, BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            x, scale = _load_rows(x_ptrs, x_s_ptrs, inside, k, step, d, FP8, EVEN_K)
            gate = _multiply(gate, x, scale, gate_ptrs, gate_s_ptr, k, step, d, FP8, EVEN_K, SWAP)
            up = _multiply(up, x, scale, up_ptrs, up_s_ptr, k, step, d, FP8, EVEN_K, SWAP)
        h = gate / (1.0 + tl.exp(-gate)) * up
        row = tl.where(is_shared, token, pairs).to(tl.int64)
        _store(h, out_ptr, row, columns, width, inside, SWAP)


@triton.jit(do_not_specialize=["n_tokens", "top_k", "shared_programs"])
def _down_kernel(
    h_ptr, h_s_ptr, h_shared_ptr, h_shared_s_ptr, places_ptr, order_ptr, tiles_ptr,
    w2_ptr, w2_s_ptr, w2_shared_ptr, w2_shared_s_ptr, y_ptr,
    n_tokens, top_k, d, f, f_shared, shared_programs, FP8: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
    SWAP: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    is_shared = tl.program_id(0) < shared_programs
    unit, column_tile = place(tl.program_id(0), shared_programs, n_tokens, d, d, BLOCK_M, BLOCK_N)
    expert, first, end, tokens, places = find_unit(places_ptr, tiles_ptr, unit, is_shared, n_tokens, TOKENS, BLOCK_M)
    if is_shared:
        in_ptr, in_s_ptr, w_ptr, w_s_ptr, width = h_shared_ptr, h_shared_s_ptr, w2_shared_ptr, w2_shared_s_ptr, f_shared
    else:
        in_ptr, in_s_ptr, w_ptr, w_s_ptr, width = h_ptr, h_s_ptr, w2_ptr + expert * (f * d).to(tl.int64), w2_s_ptr, f
        if FP8:
            w_s_ptr += expert * (tl.cdiv(d, _SCALE_BLOCK) * tl.cdiv(f, _SCALE_BLOCK))
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    w_ptrs = w_ptr + tl.where(columns < d, columns, 0) * width
    width_blocks = tl.cdiv(width, _SCALE_BLOCK)
    if FP8:
        w_s_ptr += (column_tile * BLOCK_N // _SCALE_BLOCK) * width_blocks

    for start in range(first, end, BLOCK_M):
        if TOKENS:
            pairs = pairs_by_rank(places, tokens, top_k, start // BLOCK_M, BLOCK_M)
        else:
            pairs = pairs_by_order(order_ptr, start, end, top_k, is_shared, BLOCK_M)
        inside = pairs >= 0
        row = tl.where(is_shared, pairs // top_k, pairs).to(tl.int64)
        in_ptrs = in_ptr + row * width
        in_s_ptrs = None if h_s_ptr is None else in_s_ptr + row * width_blocks
        acc = _zeros(BLOCK_M, BLOCK_N, SWAP)
        for step in range(tl.cdiv(width, BLOCK_K)):
            k = step * BLOCK_K + tl.arange(0, BLOCK_K)
            h, scale = _load_rows(in_ptrs, in_s_ptrs, inside, k, step, width, FP8, EVEN_K)
            acc = _multiply(acc, h, scale, w_ptrs, w_s_ptr, k, step, width, FP8, EVEN_K, SWAP)
        row += tl.where(is_shared, n_tokens * top_k, 0)  # the shared experts' rows stand behind the T * K others
        _store(acc, y_ptr, row, columns, d, inside, SWAP)


@triton.jit(do_not_specialize=["n_tokens"])
def _combine_kernel(
    rows_ptr, weights_ptr, residual_ptr, y_ptr, n_tokens, d,
    K: tl.constexpr, SHARED: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < d
    y = tl.zeros((BLOCK,), dtype=tl.float32)
    for k in tl.static_range(K):
        row = tl.load(rows_ptr + (token * K + k) * d + columns, mask=inside, other=0.0)
        y += tl.load(weights_ptr + token * K + k) * row.to(tl.float32)
    if SHARED:
        row = tl.load(rows_ptr + (tl.cast(n_tokens, tl.int64) * K + token) * d + columns, mask=inside, other=0.0)
        y += row.to(tl.float32)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + token * d + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + token * d + columns, y.to(y_ptr.dtype.element_ty), mask=inside)
