"""One row times a weight: y (N) = w (N, K) @ x (K), in Triton, for the decode step of a single sequence.

There is nothing to reuse and nothing for a tensor core to do: each weight is read once and used once, so the time is
that of reading w, if enough of it is on its way at any moment. By Little's law 3 TB/s at a latency of about 0.8 us are
2.4 MB in flight, 18 KB on each of 132 SMs. A program takes a few rows and reads BLOCK_N x BLOCK_K of them at a time,
16 bytes a thread and load; registers are kept few (a thread adds what it loaded into one number per row at once), so
that many programs share an SM and their loads overlap. Weights do not change, so the first of them are read before the
kernel that computes x has ended (`chain.py`).

The type of w decides what happens to x:

    w in BF16: y = sum over k of w[k] x[k], in FP32.
    w in FP8, with scales: x arrives as codes and scales, or in BF16 and is quantised here, in every program again
    (`reference.act_quant` of one row; the few kilobytes of x stay in the L1 cache). That saves a kernel which would
    take as long as a small product. The scales of x and w are multiplied into x, 128 columns at a time.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl

from dsv3.kernels import reference
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.quant import _make_scale
from dsv3.kernels.tiles import Tile

_LOAD_BYTES = tl.constexpr(16)
"""What a thread loads at once."""


def matvec(
    x: torch.Tensor,
    x_s: torch.Tensor | None,
    w: torch.Tensor,
    w_s: torch.Tensor | None,
    y: torch.Tensor,
    tile: Tile,
    scale_fmt: str | None = None,
) -> None:
    """Fills y (N). x_s None and w_s not: x is quantised 1x128 here. All tensors contiguous."""
    n, k = w.shape
    overlap = can_overlap(x)
    form = "plain" if w_s is None else "quantise" if x_s is None else "codes"
    _matvec_kernel[(reference.ceil_div(n, tile.block_n),)](
        x, x_s, w, w_s, y, n, k,
        BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, FORM=form, UE8M0=scale_fmt == "ue8m0", OVERLAP=overlap,
        num_warps=tile.warps, num_stages=tile.stages, launch_pdl=overlap,
    )  # fmt: skip


@triton.jit
def _matvec_kernel(
    x_ptr, x_s_ptr, w_ptr, w_s_ptr, y_ptr, n, k,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORM: tl.constexpr, UE8M0: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    tl.static_assert(FORM == "plain" or 128 % BLOCK_N == 0, "rows lie within a scale block of w")
    first = tl.program_id(0) * BLOCK_N
    rows, cols = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    w_at, row_inside = w_ptr + rows.to(tl.int64)[:, None] * k + cols[None, :], (rows < n)[:, None]
    if FORM != "plain":
        w_s_ptr += first // 128 * tl.cdiv(k, 128)
    w = _load_once(w_at, row_inside & (cols < k)[None, :])
    follow(OVERLAP)
    sums = _products(w, x_ptr, x_s_ptr, w_s_ptr, 0, k, FORM, UE8M0)
    for start in range(BLOCK_K, k, BLOCK_K):
        w = _load_once(w_at + start, row_inside & (cols < k - start)[None, :])
        sums += _products(w, x_ptr, x_s_ptr, w_s_ptr, start, k, FORM, UE8M0)
    tl.store(y_ptr + rows, tl.sum(sums, axis=1).to(y_ptr.dtype.element_ty), mask=rows < n)


@triton.jit
def _load_once(at, inside):
    """Weights: what is read once should be the first to leave the cache."""
    return tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _products(w, x_ptr, x_s_ptr, w_s_ptr, start, k, FORM: tl.constexpr, UE8M0: tl.constexpr):
    """w (BLOCK_N, BLOCK_K) times x from `start` on, added up within each thread: (BLOCK_N, BLOCK_K / TOGETHER)."""
    BLOCK_N: tl.constexpr = w.shape[0]
    BLOCK_K: tl.constexpr = w.shape[1]
    BLOCKS: tl.constexpr = BLOCK_K // 128
    TOGETHER: tl.constexpr = _LOAD_BYTES // (w.dtype.primitive_bitwidth // 8)
    cols = start + tl.arange(0, BLOCK_K)
    x = tl.load(x_ptr + cols, mask=cols < k, other=0.0).to(tl.float32)
    if FORM != "plain":
        blocks = start // 128 + tl.arange(0, BLOCKS)
        block_inside = blocks < tl.cdiv(k, 128)
        scale = tl.load(w_s_ptr + blocks, mask=block_inside, other=0.0)
        x = tl.reshape(x, (BLOCKS, 128))
        if FORM == "quantise":
            x_s = _make_scale(tl.max(tl.abs(x), axis=1), UE8M0)
            x = tl.div_rn(x, tl.broadcast_to(x_s[:, None], (BLOCKS, 128))).to(w.dtype).to(tl.float32)
        else:
            x_s = tl.load(x_s_ptr + blocks, mask=block_inside, other=0.0)
        x = tl.reshape(x * (x_s * scale)[:, None], (BLOCK_K,))
    products = tl.reshape(w.to(tl.float32) * x[None, :], (BLOCK_N, BLOCK_K // TOGETHER, TOGETHER))
    return tl.sum(products, axis=2)
