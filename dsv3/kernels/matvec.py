"""A row or a few times a weight: y (N) = w (N, K) @ x (K), in Triton, for the decode step of a single sequence.

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
from dsv3.kernels.tiles import MAX_ROWS, Tile

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
    """Fills y (M, N) from x (M, K), M <= MAX_ROWS. x_s None and w_s not: x is quantised 1x128 here. All contiguous."""
    n, k = w.shape
    rows = y.numel() // n
    assert 1 <= rows <= MAX_ROWS
    overlap = can_overlap(x)
    form = "plain" if w_s is None else "quantise" if x_s is None else "codes"
    _matvec_kernel[(reference.ceil_div(n, tile.block_n),)](
        x, x_s, w, w_s, y, n, k,
        ROWS=rows, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, FORM=form, UE8M0=scale_fmt == "ue8m0", OVERLAP=overlap,
        num_warps=tile.warps, num_stages=tile.stages, launch_pdl=overlap,
    )  # fmt: skip


@triton.jit
def _matvec_kernel(
    x_ptr, x_s_ptr, w_ptr, w_s_ptr, y_ptr, n, k,
    ROWS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, FORM: tl.constexpr, UE8M0: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    tl.static_assert(FORM == "plain" or 128 % BLOCK_N == 0, "outputs lie within a scale block of w")
    TOGETHER: tl.constexpr = _LOAD_BYTES // (w_ptr.dtype.element_ty.primitive_bitwidth // 8)
    first = tl.program_id(0) * BLOCK_N
    outputs, cols = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    w_at, inside = w_ptr + outputs.to(tl.int64)[:, None] * k + cols[None, :], (outputs < n)[:, None]
    if FORM != "plain":
        w_s_ptr += first // 128 * tl.cdiv(k, 128)
    w = _load_once(w_at, inside & (cols < k)[None, :])
    follow(OVERLAP)
    zeros = tl.zeros((BLOCK_N, BLOCK_K // TOGETHER), dtype=tl.float32)
    sums = _add_products((zeros, zeros, zeros, zeros), w, x_ptr, x_s_ptr, w_s_ptr, 0, k, ROWS, FORM, UE8M0, TOGETHER)
    for start in range(BLOCK_K, k, BLOCK_K):
        w = _load_once(w_at + start, inside & (cols < k - start)[None, :])
        sums = _add_products(sums, w, x_ptr, x_s_ptr, w_s_ptr, start, k, ROWS, FORM, UE8M0, TOGETHER)
    for row in tl.static_range(ROWS):
        y = tl.sum(sums[row], axis=1)
        tl.store(y_ptr + row * n + outputs, y.to(y_ptr.dtype.element_ty), mask=outputs < n)


@triton.jit
def _load_once(at, inside):
    """Weights: what is read once should be the first to leave the cache."""
    return tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first")


@triton.jit
def _add_products(
    sums, w, x_ptr, x_s_ptr, w_s_ptr, start, k,
    ROWS: tl.constexpr, FORM: tl.constexpr, UE8M0: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """`sums` of each row with the products of w (BLOCK_N, BLOCK_K) and that row of x from `start` on."""
    sums0, sums1, sums2, sums3 = sums
    sums0 += _products(w, x_ptr, x_s_ptr, w_s_ptr, 0, start, k, FORM, UE8M0, TOGETHER)
    if ROWS > 1:
        sums1 += _products(w, x_ptr, x_s_ptr, w_s_ptr, 1, start, k, FORM, UE8M0, TOGETHER)
    if ROWS > 2:
        sums2 += _products(w, x_ptr, x_s_ptr, w_s_ptr, 2, start, k, FORM, UE8M0, TOGETHER)
    if ROWS > 3:
        sums3 += _products(w, x_ptr, x_s_ptr, w_s_ptr, 3, start, k, FORM, UE8M0, TOGETHER)
    return sums0, sums1, sums2, sums3


@triton.jit
def _products(
    w, x_ptr, x_s_ptr, w_s_ptr, row, start, k, FORM: tl.constexpr, UE8M0: tl.constexpr, TOGETHER: tl.constexpr
):
    """w times a row of x, TOGETHER neighbours (what a thread loads at once) added up: (BLOCK_N, BLOCK_K / TOGETHER)."""
    BLOCK_N: tl.constexpr = w.shape[0]
    BLOCK_K: tl.constexpr = w.shape[1]
    BLOCKS: tl.constexpr = BLOCK_K // 128
    cols = start + tl.arange(0, BLOCK_K)
    x = tl.load(x_ptr + row * k + cols, mask=cols < k, other=0.0).to(tl.float32)
    if FORM != "plain":
        blocks, n_blocks = start // 128 + tl.arange(0, BLOCKS), tl.cdiv(k, 128)
        scale = tl.load(w_s_ptr + blocks, mask=blocks < n_blocks, other=0.0)
        x = tl.reshape(x, (BLOCKS, 128))
        if FORM == "quantise":
            x_s = _make_scale(tl.max(tl.abs(x), axis=1), UE8M0)
            x = tl.div_rn(x, tl.broadcast_to(x_s[:, None], (BLOCKS, 128))).to(w.dtype).to(tl.float32)
        else:
            x_s = tl.load(x_s_ptr + row * n_blocks + blocks, mask=blocks < n_blocks, other=0.0)
        x = tl.reshape(x * (x_s * scale)[:, None], (BLOCK_K,))
    products = tl.reshape(w.to(tl.float32) * x[None, :], (BLOCK_N, BLOCK_K // TOGETHER, TOGETHER))
    return tl.sum(products, axis=2)
