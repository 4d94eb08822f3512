"""Triton kernels for `act_quant`, `weight_quant` and `weight_dequant`; `reference.py` states what they compute.

All three are bound by memory traffic: every element is read once and written once, and a program owns whole scale
blocks, so that the amax never leaves its registers. Grids are 2D, (blocks along rows, blocks along columns). Loads
beyond an edge give zeros, which never raise an amax; stores beyond it are masked. Row offsets are 64 bit: 256 stacked
experts hold more than 2^31 elements.

Codes equal the reference's bit for bit, which takes two precautions: a plain `/` compiles to an approximate division
(`div.full.f32`, 2 ulp), hence `div_rn`; and `ue8m0` scales are rounded on the exponent bits, as a hardware logarithm
is inexact near powers of two. FP8 conversions need compute capability 8.9 or newer; the op table keeps older devices
on the reference.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

from dsv3.kernels import reference
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.reference import BLOCK, E4M3

_AMAX_FLOOR = tl.constexpr(reference.AMAX_FLOOR)
_E4M3_MAX_RECIPROCAL = tl.constexpr(reference.E4M3_MAX_RECIPROCAL)

_ACT_ROWS = 16
"""Tokens per program of `act_quant`: 16 x 128 elements keep 4 warps busy with 16-byte loads."""


def act_quant(x: torch.Tensor, block: int = BLOCK, scale_fmt: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.act_quant`. Three-dimensional and larger inputs are seen as rows."""
    reference.check_quant_input(x, block, scale_fmt, min_dim=1)
    x = x.contiguous()
    n_cols = x.shape[-1]
    n_tiles = reference.ceil_div(n_cols, block)
    q = torch.empty(x.shape, dtype=E4M3, device=x.device)
    s = torch.empty(*x.shape[:-1], n_tiles, dtype=torch.float32, device=x.device)
    if x.numel() == 0:
        return q, s
    n_rows = x.numel() // n_cols
    grid = (triton.cdiv(n_rows, _ACT_ROWS), n_tiles)
    overlap = can_overlap(x)
    flags = {"UE8M0": scale_fmt == "ue8m0", "OVERLAP": overlap, "launch_pdl": overlap}
    with torch.cuda.device_of(x):
        _act_quant_kernel[grid](x, q, s, n_rows, n_cols, ROWS=_ACT_ROWS, BLOCK=block, **flags)
    return q, s


def weight_quant(
    w: torch.Tensor, block: int = BLOCK, scale_fmt: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `reference.weight_quant`."""
    reference.check_quant_input(w, block, scale_fmt, min_dim=2)
    w = w.contiguous()
    *lead, n, k = w.shape
    scale_shape = (*lead, reference.ceil_div(n, block), reference.ceil_div(k, block))
    q = torch.empty(w.shape, dtype=E4M3, device=w.device)
    s = torch.empty(scale_shape, dtype=torch.float32, device=w.device)
    if w.numel() == 0:
        return q, s
    with torch.cuda.device_of(w):
        _weight_quant_kernel[_block_grid(s)](w, q, s, n, k, BLOCK=block, UE8M0=scale_fmt == "ue8m0", num_warps=8)
    return q, s


def weight_dequant(
    q: torch.Tensor, s: torch.Tensor, block: int = BLOCK, dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """As `reference.weight_dequant`."""
    reference.check_dequant_input(q, s, block)
    q, s = q.contiguous(), s.contiguous()
    n, k = q.shape[-2:]
    w = torch.empty(q.shape, dtype=dtype, device=q.device)
    if q.numel() == 0:
        return w
    with torch.cuda.device_of(q):
        _weight_dequant_kernel[_block_grid(s)](q, s, w, n, k, BLOCK=block, num_warps=8)
    return w


def _block_grid(s: torch.Tensor) -> tuple[int, int]:
    """One program per scale. Stacked weights follow each other on the first axis, the only one that may exceed
    65535."""
    return s.numel() // s.shape[-1], s.shape[-1]


@triton.jit
def _make_scale(amax, UE8M0: tl.constexpr):
    s = tl.maximum(amax, _AMAX_FLOOR) * _E4M3_MAX_RECIPROCAL
    if UE8M0:  # reference.ceil_pow2
        s = ((s.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    return s


@triton.jit
def _act_quant_kernel(
    x_ptr, q_ptr, s_ptr, n_rows, n_cols,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, UE8M0: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    follow(OVERLAP)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offsets = rows[:, None] * n_cols + cols[None, :]
    inside = (rows < n_rows)[:, None] & (cols < n_cols)[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    s = _make_scale(tl.max(tl.abs(x), axis=1), UE8M0)
    q = tl.div_rn(x, tl.broadcast_to(s[:, None], (ROWS, BLOCK)))
    tl.store(q_ptr + offsets, q.to(q_ptr.dtype.element_ty), mask=inside)
    tl.store(s_ptr + rows * tl.num_programs(1) + tl.program_id(1), s, mask=rows < n_rows)


@triton.jit
def _block_offsets(n, k, BLOCK: tl.constexpr):
    """Offsets and mask of this program's block. Axis 0 counts the row blocks of all stacked weights (n x k each)."""
    row_blocks = tl.cdiv(n, BLOCK)
    stacked = tl.program_id(0) // row_blocks
    rows = (tl.program_id(0) % row_blocks) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offsets = (stacked.to(tl.int64) * n + rows)[:, None] * k + cols[None, :]
    return offsets, (rows < n)[:, None] & (cols < k)[None, :]


@triton.jit
def _weight_quant_kernel(w_ptr, q_ptr, s_ptr, n, k, BLOCK: tl.constexpr, UE8M0: tl.constexpr):
    offsets, inside = _block_offsets(n, k, BLOCK)
    w = tl.load(w_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    s = _make_scale(tl.max(tl.max(tl.abs(w), axis=1), axis=0), UE8M0)
    q = tl.div_rn(w, tl.broadcast_to(s, (BLOCK, BLOCK)))
    tl.store(q_ptr + offsets, q.to(q_ptr.dtype.element_ty), mask=inside)
    tl.store(s_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), s)


@triton.jit
def _weight_dequant_kernel(q_ptr, s_ptr, w_ptr, n, k, BLOCK: tl.constexpr):
    offsets, inside = _block_offsets(n, k, BLOCK)
    q = tl.load(q_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(s_ptr + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1))
    tl.store(w_ptr + offsets, (q * s).to(w_ptr.dtype.element_ty), mask=inside)
