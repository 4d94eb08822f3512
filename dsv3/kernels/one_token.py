"""The experts of an MoE layer for one token: two launches, in which nothing happens but reading weights.

    launch 1   h_k = silu(x W1_k^T) * (x W3_k^T)       a program: a few rows of one expert's W1 and W3
    launch 2   y = sum_k g_k h_k W2_k^T (+ shared, + residual)   a program: a few rows of W2, of every expert in turn

One token has K different experts, so no weight is needed twice and there is nothing to gather, sort or combine:
`experts.py` with one row per expert would fill a sixteenth of the tensor cores' rows and launch a third kernel for the
sum. A matrix times a vector takes two operations per weight; at 3 TB/s an SM receives seven BF16 weights per clock, and
it can multiply and add 128. So plain FP32 arithmetic does, and the kernels' only art is to keep enough loads under way.

In launch 2 the K experts are one long row of K * F weights, whose pieces lie in different places: a loop over experts
inside a loop over columns would let the pipeline of loads run dry at each change of expert.

With FP8 weights x and h are rounded to what their 1x128 codes stand for; then a code times a scale is a weight.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dsv3.kernels import moe_reference
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.moe_reference import ExpertWeights, Routed, SharedWeights
from dsv3.kernels.quant import _make_scale
from dsv3.kernels.reference import BLOCK, E4M3

_SCALE_BLOCK = tl.constexpr(BLOCK)


class Strip(NamedTuple):
    """Rows and columns of weights that a program loads at once, and how many such loads are under way."""

    rows: int
    columns: int
    warps: int
    stages: int


def choose_strips(fp8: bool) -> tuple[Strip, Strip]:
    """For launch 1 (rows of W1 and as many of W3) and launch 2. FP8 needs rows that divide 128 and columns that 128
    divides."""
    if fp8:
        return Strip(8, 1024, 4, 3), Strip(8, 1024, 4, 3)
    return Strip(8, 512, 4, 3), Strip(8, 512, 4, 4)


def moe_experts(
    x_TD: torch.Tensor,
    routed: Routed,
    experts: ExpertWeights,
    shared: SharedWeights | None = None,
    residual_TD: torch.Tensor | None = None,
    scale_fmt: str | None = None,
    strips: tuple[Strip, Strip] | None = None,
) -> torch.Tensor:
    """As `moe_reference.moe_experts` for T = 1, but the experts' outputs are not rounded before their sum."""
    moe_reference.check_experts(x_TD, routed, experts, shared, residual_TD)
    w13, w2, w13_scale, w2_scale = experts
    (_, _, F, D), K = w13.shape, routed.indices_TK.shape[1]
    w1, w3, w2_shared, w1_scale, w3_scale, w2_shared_scale = shared or SharedWeights(w13, w13, w2)
    F_shared = w1.shape[0] if shared else 0
    indices_TK = routed.indices_TK.contiguous()
    fp8 = w13.dtype == E4M3
    first, second = strips or choose_strips(fp8)
    h = torch.empty(K * F + F_shared, dtype=x_TD.dtype, device=x_TD.device)
    y_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    overlap = can_overlap(x_TD)
    flags = {"FP8": fp8, "UE8M0": scale_fmt == "ue8m0", "OVERLAP": overlap, "launch_pdl": overlap}
    with torch.cuda.device_of(x_TD):
        shared_programs = triton.cdiv(F_shared, first.rows)
        _gate_up_kernel[(shared_programs + K * triton.cdiv(F, first.rows),)](
            x_TD.contiguous(), indices_TK, w13, w13_scale, w1, w3, w1_scale, w3_scale, h,
            K, D, F, F_shared, shared_programs, **flags, EVEN=D % first.columns == 0, **_meta(first),
        )  # fmt: skip
        _down_kernel[(triton.cdiv(D, second.rows),)](
            h, indices_TK, routed.weights_TK.contiguous(), w2, w2_scale, w2_shared, w2_shared_scale, residual_TD, y_TD,
            K, D, F, F_shared, **flags, SHARED=shared is not None, K_POW2=triton.next_power_of_2(K),
            EVEN=F % second.columns == 0 and F_shared % second.columns == 0, **_meta(second),
        )  # fmt: skip
    return y_TD


def _meta(strip: Strip) -> dict[str, int]:
    return {"ROWS": strip.rows, "COLUMNS": strip.columns, "STAGES": strip.stages, "num_warps": strip.warps}


@triton.jit
def _as_quantised(x, UE8M0: tl.constexpr):
    """The numbers that x (a multiple of 128 of them) becomes when it is quantised 1x128."""
    tiles = tl.reshape(x.to(tl.float32), (x.shape[0] // _SCALE_BLOCK, _SCALE_BLOCK))
    scale = tl.broadcast_to(_make_scale(tl.max(tl.abs(tiles), axis=1), UE8M0)[:, None], tiles.shape)
    return tl.reshape(tl.div_rn(tiles, scale).to(tl.float8e4nv).to(tl.float32) * scale, x.shape)


@triton.jit
def _scaled(x, s_ptr, first_block, n_blocks):
    """x times the scales of the blocks of weights that it will be multiplied by."""
    blocks = first_block + tl.arange(0, x.shape[0] // _SCALE_BLOCK)
    s = tl.load(s_ptr + blocks, mask=blocks < n_blocks, other=0.0)
    tiles = tl.reshape(x, (x.shape[0] // _SCALE_BLOCK, _SCALE_BLOCK))
    return tl.reshape(tiles * s[:, None], x.shape)


@triton.jit
def _load(ptrs, columns, width, EVEN: tl.constexpr):
    """Weights (ROWS, COLUMNS), or with one pointer numbers (COLUMNS,)."""
    return tl.load(ptrs + columns) if EVEN else tl.load(ptrs + columns, mask=columns < width, other=0.0)


@triton.jit
def _gate_up_kernel(
    x_ptr, indices_ptr, w13_ptr, w13_s_ptr, w1_ptr, w3_ptr, w1_s_ptr, w3_s_ptr, h_ptr,
    top_k, d, f, f_shared, shared_programs, FP8: tl.constexpr, UE8M0: tl.constexpr, EVEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    program = tl.program_id(0)
    d_blocks = tl.cdiv(d, _SCALE_BLOCK)
    k = 0
    if program < shared_programs:
        first, width = program * ROWS, f_shared
        gate_ptr, up_ptr, gate_s_ptr, up_s_ptr = w1_ptr, w3_ptr, w1_s_ptr, w3_s_ptr
        h_ptr += top_k * f
    else:
        tiles = tl.cdiv(f, ROWS)
        k = (program - shared_programs) // tiles
        first, width = (program - shared_programs) % tiles * ROWS, f
        expert = tl.load(indices_ptr + k).to(tl.int64)
        gate_ptr = w13_ptr + expert * 2 * (f * d)
        up_ptr = gate_ptr + f * d
        gate_s_ptr, up_s_ptr = w13_s_ptr, w13_s_ptr
        if FP8:
            gate_s_ptr += expert * (2 * tl.cdiv(f, _SCALE_BLOCK) * d_blocks)
            up_s_ptr = gate_s_ptr + tl.cdiv(f, _SCALE_BLOCK) * d_blocks
        h_ptr += k * f
    rows = first + tl.arange(0, ROWS)
    real = tl.where(rows < width, rows, 0)[:, None]
    if FP8:
        gate_s_ptr += (first // _SCALE_BLOCK) * d_blocks
        up_s_ptr += (first // _SCALE_BLOCK) * d_blocks
    gate = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    up = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in tl.range(tl.cdiv(d, COLUMNS), num_stages=STAGES):
        columns = step * COLUMNS + tl.arange(0, COLUMNS)
        x = _load(x_ptr, columns, d, EVEN)
        w_gate = _load(gate_ptr + real * d, columns[None, :], d, EVEN).to(tl.float32)
        w_up = _load(up_ptr + real * d, columns[None, :], d, EVEN).to(tl.float32)
        if FP8:
            x = _as_quantised(x, UE8M0)
            block = step * (COLUMNS // _SCALE_BLOCK)
            gate += w_gate * _scaled(x, gate_s_ptr, block, d_blocks)[None, :]
            up += w_up * _scaled(x, up_s_ptr, block, d_blocks)[None, :]
        else:
            gate += w_gate * x.to(tl.float32)[None, :]
            up += w_up * x.to(tl.float32)[None, :]
    gate_R, up_R = tl.sum(gate, axis=1), tl.sum(up, axis=1)
    h = gate_R / (1.0 + tl.exp(-gate_R)) * up_R
    tl.store(h_ptr + rows, h.to(h_ptr.dtype.element_ty), mask=rows < width)


@triton.jit
def _add_product(
    acc, h_ptr, w_ptr, w_s_ptr, weight, rows, columns, width, FP8: tl.constexpr, UE8M0: tl.constexpr,
    EVEN: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """acc (ROWS, COLUMNS) + weight * h * w, one addend for each of the columns."""
    h = _load(h_ptr, columns, width, EVEN)
    w = _load(w_ptr + rows * width, columns[None, :], width, EVEN).to(tl.float32)
    if FP8:
        h = _as_quantised(h, UE8M0)
        block = tl.min(columns, axis=0) // _SCALE_BLOCK
        h = _scaled(h, w_s_ptr, block, tl.cdiv(width, _SCALE_BLOCK))
    return acc + w * (h.to(tl.float32) * weight)[None, :]


@triton.jit
def _down_kernel(
    h_ptr, indices_ptr, weights_ptr, w2_ptr, w2_s_ptr, w2_shared_ptr, w2_shared_s_ptr, residual_ptr, y_ptr,
    top_k, d, f, f_shared, FP8: tl.constexpr, UE8M0: tl.constexpr, SHARED: tl.constexpr, EVEN: tl.constexpr,
    K_POW2: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    first = tl.program_id(0) * ROWS
    rows = first + tl.arange(0, ROWS)
    real = tl.where(rows < d, rows, 0)[:, None]
    row_block = first // _SCALE_BLOCK
    choices = tl.arange(0, K_POW2)
    experts_K = tl.load(indices_ptr + choices, mask=choices < top_k, other=0).to(tl.int32)
    weights_K = tl.load(weights_ptr + choices, mask=choices < top_k, other=0.0)
    f_blocks, shared_blocks = tl.cdiv(f, _SCALE_BLOCK), tl.cdiv(f_shared, _SCALE_BLOCK)
    steps = tl.cdiv(f, COLUMNS)
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in tl.range(top_k * steps, num_stages=STAGES):
        k = step // steps
        columns = step % steps * COLUMNS + tl.arange(0, COLUMNS)
        expert = tl.sum(tl.where(choices == k, experts_K, 0), axis=0).to(tl.int64)
        weight = tl.sum(tl.where(choices == k, weights_K, 0.0), axis=0)
        w_s_ptr = w2_s_ptr
        if FP8:
            w_s_ptr += (expert * tl.cdiv(d, _SCALE_BLOCK) + row_block) * f_blocks
        acc = _add_product(
            acc, h_ptr + k * f, w2_ptr + expert * (d * f), w_s_ptr, weight, real, columns, f, FP8, UE8M0, EVEN, COLUMNS
        )
    if SHARED:
        w_s_ptr = w2_shared_s_ptr
        if FP8:
            w_s_ptr += row_block * shared_blocks
        h_ptr += top_k * f
        for step in tl.range(tl.cdiv(f_shared, COLUMNS), num_stages=STAGES):
            columns = step * COLUMNS + tl.arange(0, COLUMNS)
            acc = _add_product(
                acc, h_ptr, w2_shared_ptr, w_s_ptr, 1.0, real, columns, f_shared, FP8, UE8M0, EVEN, COLUMNS
            )
    y = tl.sum(acc, axis=1)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + rows, mask=rows < d, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=rows < d)
