"""Dense products in Triton: `fp8_gemm` and `fp8_linear` with block scales, and `linear`, a BF16 product with few rows.

All are y (M, N) = a (M, K) @ b (N, K).T, where b is a weight. `tiles.py` says how the output is cut and who takes
which piece; here is what happens inside a piece.

**FP8.** Each step along K multiplies 128 columns of codes on the tensor cores and adds the result, times its scales, to
an FP32 accumulator in registers: the promotion of arXiv 2412.19437 section 3.3.2. BLOCK_N divides 128, so that a step
needs a single scale of b and BLOCK_M scales of a. The multiplication by scales is not free: it is one FMA per output
and step on the ordinary cores, which take 64 cycles for what the tensor cores do in 256, and the tensor cores wait
while their only accumulator is read. Warps that take turns hide it: programs that share an SM (small tiles), or the
two halves of the warp-specialised kernel in `dense_hopper.py`, which large products use on Hopper. The kernels here
are its twins, for every other shape and GPU and for the interpreter.

**Few rows.** Up to 64 rows the time is that of reading b once. Tensor cores want tiles of at least 64 rows, so with
`swap` the tile is computed transposed: the weight's rows become the tile's rows, and 16 tokens its columns. For one
row there are not even tokens to share what was read: that is `matvec.py`.

**Two ways to load.** `_tile_kernel` computes addresses: any alignment, any GPU. `_persistent_kernel` gives tiles to
the TMA unit, which needs rows of a multiple of 16 bytes; its programs stay and take one item after another, so that
the next tile's first loads run while a finished one is stored.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import dataclasses
import functools
import importlib

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from dsv3.kernels import matvec, quant, reference
from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.tiles import Tile, choose, place, schedule, sm_count, work

_SUMS, _PARTS = 1024, 8
"""What one program of `_add_parts_kernel` adds: so many elements of a tail tile, so many of its parts at a time."""


_NARROW = Tile("tile", 32, 32, warps=4, stages=3, per_sm=0)
"""For FP8 rows that do not begin at multiples of 16 bytes, which no model has. Compiled by triton 3.6, the wider tiles
gave wrong sums there (83 x 130 x 300 on an H100; in the interpreter they are right), and nobody knows yet why."""


def fp8_gemm(
    a: torch.Tensor,
    a_s: torch.Tensor,
    b: torch.Tensor,
    b_s: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    tile: Tile | None = None,
) -> torch.Tensor:
    """As `reference.fp8_gemm`: a (..., K) @ b (N, K).T -> (..., N). `tile` is for tests and tuning."""
    reference.check_gemm_input(a, a_s, b, b_s)
    (*lead, k), n = a.shape, b.shape[0]
    y = torch.empty(*lead, n, dtype=out_dtype, device=a.device)
    if y.numel() == 0 or k == 0:
        return y.zero_()
    m = y.numel() // n
    _launch(a.reshape(m, k), a_s, b, b_s, y.view(m, n), tile or choose("fp8_gemm", m, n, k))
    return y


def fp8_linear(
    x: torch.Tensor, w: torch.Tensor, w_s: torch.Tensor, scale_fmt: str | None = None, tile: Tile | None = None
) -> torch.Tensor:
    """As `reference.fp8_linear`: x (..., K), quantised 1x128, times w (N, K).T -> (..., N) in the type of x.

    One row or a few are quantised by the kernel that multiplies them, and that kernel reads w before the one in front
    of it has ended: what writes w must lie further back, as the loading of a model does."""
    (*lead, k), n = x.shape, w.shape[0]
    m = x.numel() // k if k else 0
    tile = tile or choose("fp8_linear", m, n, k)
    if tile.kernel != "matvec" or not 0 < m <= matvec.MAX_ROWS or not n:
        return fp8_gemm(*quant.act_quant(x, scale_fmt=scale_fmt), w, w_s, x.dtype, tile)
    reference.check_quant_input(x, reference.BLOCK, scale_fmt, min_dim=1)
    reference.check_dequant_input(w, w_s, reference.BLOCK)
    y = torch.empty(*lead, n, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):
        matvec.matvec(x.contiguous(), None, w.contiguous(), w_s.contiguous(), y, tile, scale_fmt)
    return y


def linear(x_TD: torch.Tensor, w_FD: torch.Tensor, tile: Tile | None = None) -> torch.Tensor:
    """y_TF = x_TD @ w_FD.T in BF16 (or FP16) with FP32 sums, as `F.linear`; inference only.

    Made for few tokens; where the table knows of no gain it is `F.linear`. For the writer of w the same holds as in
    `fp8_linear`. `tile` is for tests and tuning."""
    (*lead, d), f = x_TD.shape, w_FD.shape[0]
    t = x_TD.numel() // d if d else 0
    tile = tile or choose("linear", t, f, d)
    if tile.kernel == "torch" or not (t and f):
        return F.linear(x_TD, w_FD)
    y = torch.empty(*lead, f, dtype=x_TD.dtype, device=x_TD.device)
    _launch(x_TD.reshape(t, d), None, w_FD, None, y.view(t, f), tile)
    return y


def _launch(
    a: torch.Tensor, a_s: torch.Tensor | None, b: torch.Tensor, b_s: torch.Tensor | None, y: torch.Tensor, tile: Tile
) -> None:
    """y (M, N) = a (M, K) @ b (N, K).T, with scales or without."""
    a, b = a.contiguous(), b.contiguous()
    if a_s is not None and b_s is not None:
        a_s, b_s = a_s.contiguous(), b_s.contiguous()
    with torch.cuda.device_of(a):
        if tile.kernel == "matvec":
            matvec.matvec(a, a_s, b, b_s, y, tile)
        else:
            _launch_tiles(a, a_s, b, b_s, y, _runnable(tile, a, b, y))


def _launch_tiles(
    a: torch.Tensor, a_s: torch.Tensor | None, b: torch.Tensor, b_s: torch.Tensor | None, y: torch.Tensor, tile: Tile
) -> None:
    (m, k), n, sms = a.shape, b.shape[0], sm_count(a.device)
    full, tail, splits = plan = schedule(m, n, k, tile, sms)
    programs = min(sms * max(1, tile.per_sm), plan.items)
    overlap = can_overlap(a)
    parts = torch.empty(tail * splits, tile.block_m, tile.block_n, dtype=torch.float32, device=a.device)
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "GROUP": tile.group}
    options = {"OVERLAP": overlap, "launch_pdl": overlap, "num_warps": tile.warps, "num_stages": tile.stages}
    if tile.kernel == "tile":
        _tile_kernel[(plan.items,)](
            a, a_s, b, b_s, y, parts, m, n, k, full, splits,
            **blocks, BLOCK_K=tile.block_k, SWAP=tile.swap, SCALED=a_s is not None, **options,
        )  # fmt: skip
    elif tile.kernel == "persistent":
        a_tiles = TensorDescriptor.from_tensor(a, [tile.block_m, tile.block_k])
        b_tiles = TensorDescriptor.from_tensor(b, [tile.block_n, tile.block_k])
        y_tiles = TensorDescriptor.from_tensor(y, [tile.block_m, tile.block_n])
        _persistent_kernel[(programs,)](
            a_tiles, a_s, b_tiles, b_s, y_tiles, m, n, k, **blocks, PROGRAMS=programs, **options
        )  # fmt: skip
    else:
        from dsv3.kernels import dense_hopper

        dense_hopper.launch(a, a_s, b, b_s, y, parts, plan, tile, programs)
    if tail:
        rows = _SUMS // tile.block_n
        _add_parts_kernel[(tail, reference.ceil_div(min(m, tile.block_m), rows))](
            parts, y, m, n, full, splits, **blocks, ROWS=rows, AT_A_TIME=_PARTS, OVERLAP=overlap, launch_pdl=overlap
        )


def _runnable(tile: Tile, a: torch.Tensor, b: torch.Tensor, y: torch.Tensor) -> Tile:
    """The tile, or its nearest twin where GPU or triton lack what it needs, or TMA cannot address the tensors."""
    if tile.kernel == "hopper" and not (_capability(a)[0] == 9 and y.element_size() == 2 and _has_gluon()):
        tile = dataclasses.replace(tile, kernel="persistent", block_m=128, warps=8, stages=4)
    addressable = all(x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0 for x in (a, b, y))
    has_tma = _capability(a)[0] >= 9 or not a.is_cuda  # without a GPU this is the interpreter, which knows TMA
    if not addressable and a.is_cuda and a.element_size() == 1:
        return _NARROW
    if tile.kernel in ("persistent", "hopper") and not (addressable and has_tma):
        tile = dataclasses.replace(tile, kernel="tile", block_m=min(tile.block_m, 128), warps=8, stages=3)
    return tile


@functools.cache
def _has_gluon() -> bool:
    """Whether this triton has Gluon with Hopper's instructions; it is experimental, and its names may change."""
    try:
        importlib.import_module("dsv3.kernels.dense_hopper")
    except (ImportError, AttributeError):
        return False
    return True


def _capability(x: torch.Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)


# --- kernels --------------------------------------------------------------------------------------------------------


@triton.jit
def _store(acc, y_ptr, parts_ptr, row, col, slot, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """A whole tile goes to y, a part of one to its slot in the scratch buffer, in FP32."""
    rows, cols = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    inside = (row + rows < m)[:, None] & (col + cols < n)[None, :]
    if slot < 0:
        y_at = y_ptr + (row + rows).to(tl.int64)[:, None] * n + (col + cols)[None, :]
        tl.store(y_at, acc.to(y_ptr.dtype.element_ty), mask=inside)
    else:
        parts_at = parts_ptr + slot.to(tl.int64) * (BLOCK_M * BLOCK_N) + rows[:, None] * BLOCK_N + cols[None, :]
        tl.store(parts_at, acc, mask=inside)


@triton.jit(do_not_specialize=["m", "full", "splits"])
def _tile_kernel(
    a_ptr, a_s_ptr, b_ptr, b_s_ptr, y_ptr, parts_ptr, m, n, k, full, splits,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, BLOCK_K: tl.constexpr, SWAP: tl.constexpr,
    SCALED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One item: its rows of a times its rows of b. Rows and columns beyond an edge are loaded as zeros."""
    follow(OVERLAP)
    tl.static_assert(not SCALED or (BLOCK_K == 128 and 128 % BLOCK_N == 0), "a tile lies within a scale block of b")
    n_steps = tl.cdiv(k, BLOCK_K)
    tile, first, end, slot = work(tl.program_id(0), n_steps, full, splits)
    row, col = place(tile, m, n, BLOCK_M, BLOCK_N, GROUP)
    rows, cols, steps = row + tl.arange(0, BLOCK_M), col + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    row_inside, col_inside = rows < m, cols < n
    a_at = a_ptr + rows.to(tl.int64)[:, None] * k + steps[None, :]
    b_at = b_ptr + cols.to(tl.int64)[:, None] * k + steps[None, :]
    if SCALED:
        a_s_at = a_s_ptr + rows * n_steps
        b_s_at = b_s_ptr + col // BLOCK_K * n_steps
    if SWAP:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(first, end):
        k_inside = (step * BLOCK_K + steps < k)[None, :]
        a = tl.load(a_at + step * BLOCK_K, mask=row_inside[:, None] & k_inside, other=0.0)
        b = tl.load(b_at + step * BLOCK_K, mask=col_inside[:, None] & k_inside, other=0.0)
        if SCALED:
            scale = tl.load(a_s_at + step, mask=row_inside, other=0.0) * tl.load(b_s_at + step)
            if SWAP:
                acc += tl.dot(b, a.T) * scale[None, :]
            else:
                acc += tl.dot(a, b.T) * scale[:, None]
        elif SWAP:
            acc = tl.dot(b, a.T, acc)
        else:
            acc = tl.dot(a, b.T, acc)
    if SWAP:
        acc = acc.T
    _store(acc, y_ptr, parts_ptr, row, col, slot, m, n, BLOCK_M, BLOCK_N)


@triton.jit(do_not_specialize=["m"])
def _persistent_kernel(
    a_tiles, a_s_ptr, b_tiles, b_s_ptr, y_tiles, m, n, k,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """FP8 only. Program i takes the tiles i, i + PROGRAMS, ... TMA fills what lies beyond an edge with zeros, and
    leaves it out when it stores. With `flatten` the two loops become one, and the loads of the next tile are on their
    way while this one is stored; that takes as many steps for every tile, so a tail is not cut along K here."""
    follow(OVERLAP)
    n_steps = tl.cdiv(k, 128)
    tiles = tl.cdiv(m, BLOCK_M) * tl.cdiv(n, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True):
        row, col = place(tile, m, n, BLOCK_M, BLOCK_N, GROUP)
        a_s_at = a_s_ptr + tl.minimum(row + tl.arange(0, BLOCK_M), m - 1) * n_steps
        b_s_at = b_s_ptr + col // 128 * n_steps
        a_s, b_s = tl.load(a_s_at), tl.load(b_s_at)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for step in range(n_steps):
            a = a_tiles.load([row, step * 128])
            b = b_tiles.load([col, step * 128])
            scale = a_s * b_s  # loaded a step ago: to wait for them here would be to wait in every step
            following = tl.minimum(step + 1, n_steps - 1)
            a_s, b_s = tl.load(a_s_at + following), tl.load(b_s_at + following)
            acc += tl.dot(a, b.T) * scale[:, None]
        y_tiles.store([row, col], acc.to(y_tiles.dtype))


@triton.jit(do_not_specialize=["m", "full", "splits"])
def _add_parts_kernel(
    parts_ptr, y_ptr, m, n, full, splits,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, AT_A_TIME: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Adds the parts of one tail tile, a strip of its rows at a time, always in the same order."""
    row, col = place(full + tl.program_id(0), m, n, BLOCK_M, BLOCK_N, GROUP)
    rows, cols = tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BLOCK_N)
    inside = ((rows < BLOCK_M) & (row + rows < m))[:, None] & (col + cols < n)[None, :]
    parts = tl.arange(0, AT_A_TIME)[:, None, None]
    slots = tl.program_id(0) * splits + parts
    at = parts_ptr + slots.to(tl.int64) * (BLOCK_M * BLOCK_N) + (rows[:, None] * BLOCK_N + cols[None, :])[None, :, :]
    follow(OVERLAP)
    total = tl.zeros((ROWS, BLOCK_N), dtype=tl.float32)
    for first in range(0, splits, AT_A_TIME):
        real = inside[None, :, :] & (first + parts < splits)
        total += tl.sum(tl.load(at + first * (BLOCK_M * BLOCK_N), mask=real, other=0.0), axis=0)
    y_at = y_ptr + (row + rows).to(tl.int64)[:, None] * n + (col + cols)[None, :]
    tl.store(y_at, total.to(y_ptr.dtype.element_ty), mask=inside)
