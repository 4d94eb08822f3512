"""The attention of `attention.py` on Hopper, in Gluon: warps with four different jobs, so that no unit waits.

`attention.py` states the same work in Triton, and a learner should read it first. What limits it at 128 heads is that
one program does one thing after the other: it multiplies queries with keys, then takes the softmax while the tensor
cores are idle, then multiplies with the values. Here four groups of warps share a tile of 64 query rows, and pass
tiles of 64 cached tokens on, as workers at a belt do:

    producer   orders the next tile of the cache from the TMA unit, as soon as a buffer is free
    scores     q @ k for tile i + 1, its softmax, and by what the sums so far must fade   (128 threads)
    left       sums columns 0..255 of the latent: o = o * fade + weights @ latents, for tile i
    right      the same for columns 256..511

While *scores* takes exponentials, the tensor cores work for *left* and *right*; while these two rescale their sums,
they work for *scores*. The sums are cut in two because of the registers: 64 x 512 FP32 numbers are 256 registers for
each of 128 threads, and a thread has 255 at most.

**What lies in shared memory** (227 KB): five halves of tiles, 32 KB each, in a ring; the rotated keys of two tiles, 8
KB each; softmax weights of two tiles, 8 KB each; the right half of the queries' latent part, 32 KB. The rest of the
queries stays in registers of *scores*, from which the tensor cores can take their left operand as well.

    filled[slot]    half a tile has arrived; with a right half, the tile's keys too  (1 arrival and a count of bytes)
    emptied[slot]   *left* or *right* has multiplied with it                          (1)
    ready[stage]    a tile's weights and fade factors are written                     (1, of *scores*)
    used[stage]     *left* and *right* have multiplied with the weights               (2)

A barrier's phase flips each time it completes, and a wait names the parity of its round. The keys of tile i + 2 take
the place of those of tile i without a barrier of their own: they come with a right half, whose slot *left* emptied
after tile i, and by then *scores* had long been done with it.

Slots behind a sequence's end hold anything, and TMA brings them along. Their scores are hidden by the mask; as values
they are overwritten with zeros before the product, since 0 times NaN is NaN.
"""

# Gluon is a language of its own, like Triton: pointers have no type, and a launch passes plain numbers.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportAssignmentType=false

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from dsv3.kernels.attention import Shape
from dsv3.kernels.chain import can_overlap
from dsv3.kernels.reference import ceil_div

LATENT, KEY, TILE = 512, 64, 64
"""C, R, and the cached tokens of a tile: what this kernel is made for. A tile must lie in one page."""

_C = gl.constexpr(LATENT)
_HALF = gl.constexpr(LATENT // 2)
_R = gl.constexpr(KEY)
_L = gl.constexpr(TILE)
_X = gl.constexpr(64)
"""Query rows of a program: the tensor cores' own height."""
_SLOTS = gl.constexpr(5)
"""Halves of tiles in the ring."""

REGISTERS = (128, 160, 168, 24)
"""Of a thread: at launch, 512 threads of 65,536 registers (the producer's group has three idle warps); then in *left*
and *right*, in *scores*, in the producer. The first group takes what the others leave."""


def fits(C: int, R: int, page_size: int) -> bool:
    return (C, R) == (LATENT, KEY) and page_size % TILE == 0


def launch(
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
    """As `attention._attend`."""
    H, T, _ = o_HTC.shape
    B, splits = len(page_table_BP), shape.splits
    S, overlap = T // B, can_overlap(o_HTC)
    _attend_kernel[(ceil_div(S * H, _X.value), splits, B)](
        q_latent_THC, q_pe_THR, _tiles(latents_Xc, LATENT // 2), _tiles(latents_Xc, KEY), page_table_BP, kv_lens_B,
        o_HTC, parts_ZXC, sums_ZX, scale, S, T, splits, q_latent_THC.stride(0), q_latent_THC.stride(1),
        q_pe_THR.stride(0), q_pe_THR.stride(1), page_table_BP.stride(0),
        H=H, PAGE=page_size, WHOLE=splits == 1, OVERLAP=overlap, num_warps=4, maxnreg=REGISTERS[0], launch_pdl=overlap,
    )  # fmt: skip


def _tiles(x: torch.Tensor, columns: int) -> TensorDescriptor:
    """What TMA needs to know of x: its shape, a tile's, and how the tile lies in shared memory."""
    shape = [TILE, columns]
    return TensorDescriptor.from_tensor(x, shape, gl.NVMMASharedLayout.get_default_for(shape, gl.bfloat16))


@gluon.jit(do_not_specialize=["S", "T", "splits", "table_stride"])
def _attend_kernel(
    q_ptr, q_pe_ptr, latent_tiles, key_tiles, table_ptr, lens_ptr, o_ptr, parts_ptr, sums_ptr,
    scale, S, T, splits, q_stride_t, q_stride_h, pe_stride_t, pe_stride_h, table_stride,
    H: gl.constexpr, PAGE: gl.constexpr, WHOLE: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    _follow(OVERLAP)
    latents = gl.allocate_shared_memory(latent_tiles.dtype, [_SLOTS, _L, _HALF], latent_tiles.layout)
    keys = gl.allocate_shared_memory(key_tiles.dtype, [2, _L, _R], key_tiles.layout)
    weights = gl.allocate_shared_memory(key_tiles.dtype, [2, _X, _L], key_tiles.layout)
    queries = gl.allocate_shared_memory(latent_tiles.dtype, [_X, _HALF], latent_tiles.layout)
    factors = gl.allocate_shared_memory(gl.float32, [3, _X], gl.SwizzledSharedLayout(1, 1, 1, order=[0]))
    filled = gl.allocate_shared_memory(gl.int64, [_SLOTS, 1], mbarrier.MBarrierLayout())
    emptied = gl.allocate_shared_memory(gl.int64, [_SLOTS, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [3, 1], mbarrier.MBarrierLayout())
    used = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(_SLOTS):
        mbarrier.init(filled.index(slot), count=1)
        mbarrier.init(emptied.index(slot), count=1)
    for stage in gl.static_range(2):
        mbarrier.init(used.index(stage), count=2)
    for stage in gl.static_range(3):
        mbarrier.init(ready.index(stage), count=1)
    ring = (latents, keys, filled, emptied)
    belt = (weights, factors, ready, used)
    asked = (q_ptr, q_pe_ptr, q_stride_t, q_stride_h, pe_stride_t, pe_stride_h)
    outputs = (o_ptr, parts_ptr)
    gl.warp_specialize(
        [
            (_add, (0, ring, belt, lens_ptr, outputs, S, T, splits, H, WHOLE)),
            (_add, (1, ring, belt, lens_ptr, outputs, S, T, splits, H, WHOLE)),
            (_score, (ring, belt, queries, asked, lens_ptr, sums_ptr, scale, S, T, splits, H, WHOLE)),
            (_produce, (ring, latent_tiles, key_tiles, table_ptr, table_stride, lens_ptr, splits, PAGE)),
        ],
        worker_num_warps=[4, 4, 1],
        worker_num_regs=[160, 168, 24],
    )


@gluon.jit
def _follow(OVERLAP: gl.constexpr):
    """`chain.follow`."""
    if OVERLAP:
        gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
        gl.inline_asm_elementwise(
            "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
        )


@gluon.jit
def _share(lens_ptr, splits):
    """This program's sequence, its length, and which of its tiles are this split's."""
    b = gl.program_id(2)
    kv_len = gl.load(lens_ptr + b).to(gl.int32)
    tiles = gl.cdiv(kv_len, _L)
    each = gl.cdiv(tiles, splits)
    first = gl.program_id(1) * each
    return b, kv_len, first, gl.minimum(tiles, first + each)


@gluon.jit
def _step(slot, phase, n):
    """n slots on; a new round changes the parity."""
    slot += n
    return gl.where(slot >= _SLOTS, slot - _SLOTS, slot), gl.where(slot >= _SLOTS, phase ^ 1, phase)


@gluon.jit
def _produce(ring, latent_tiles, key_tiles, table_ptr, table_stride, lens_ptr, splits, PAGE: gl.constexpr):
    latents, keys, filled, emptied = ring
    b, _, first, last = _share(lens_ptr, splits)
    table_at = table_ptr + b * table_stride
    page = gl.load(table_at + gl.minimum(first, gl.maximum(last - 1, 0)) * _L // PAGE)
    slot, phase = 0, 1  # "the round before" counts as emptied
    for tile in range(first, last):
        row = page * PAGE + tile * _L % PAGE
        page = gl.load(table_at + gl.minimum(tile + 1, last - 1) * _L // PAGE)  # of the next one
        for half in gl.static_range(2):
            mbarrier.wait(emptied.index(slot), phase)
            arrived = filled.index(slot)
            mbarrier.expect(arrived, latent_tiles.block_type.nbytes + half * key_tiles.block_type.nbytes)
            tma.async_copy_global_to_shared(latent_tiles, [row, half * _HALF], arrived, latents.index(slot))
            if half == 1:
                tma.async_copy_global_to_shared(key_tiles, [row, _C], arrived, keys.index((tile - first) % 2))
            slot, phase = _step(slot, phase, 1)


@gluon.jit
def _score(ring, belt, queries, asked, lens_ptr, sums_ptr, scale, S, T, splits, H: gl.constexpr, WHOLE: gl.constexpr):
    """The running softmax over all tiles: weights and fade factors of each, at last one over the sum of all weights."""
    latents, keys, filled, _ = ring
    weights, factors, ready, used = belt
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, 64, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, layout)
    b, kv_len, first, last = _share(lens_ptr, splits)
    q_left, q_pe = _load_queries(queries, asked, b, S, H, gl.DotOperandLayout(0, layout, k_width=2))
    rows = gl.program_id(0) * _X + gl.arange(0, _X, layout=row_layout)
    sees = kv_len - (S - 1 - rows // H)  # each query sees itself and what is before it
    columns = gl.arange(0, _L, layout=gl.SliceLayout(0, layout))

    best = gl.full((_X,), float("-inf"), gl.float32, row_layout)
    total = gl.zeros((_X,), gl.float32, row_layout)
    scores = gl.zeros((_X, _L), gl.float32, layout)
    slot, phase = 0, 0
    for tile in range(first, last):
        stage, turn = (tile - first) % 2, (tile - first) // 2 % 2
        mbarrier.wait(filled.index(slot), phase)
        half = latents.index(slot).permute((1, 0))
        scores = warpgroup_mma(q_left, half, scores, use_acc=False, is_async=True)
        slot, phase = _step(slot, phase, 1)
        mbarrier.wait(filled.index(slot), phase)
        half = latents.index(slot).permute((1, 0))
        scores = warpgroup_mma(queries, half, scores, is_async=True)
        scores = warpgroup_mma(q_pe, keys.index(stage).permute((1, 0)), scores, is_async=True)
        slot, phase = _step(slot, phase, 1)
        scores = warpgroup_mma_wait(0, [scores])
        if tile * _L + _L > kv_len - (S - 1):  # somebody may not see all of it
            scores = gl.where((tile * _L + columns)[None, :] < sees[:, None], scores, float("-inf"))
        now = gl.maximum(best, gl.max(scores, axis=1) * scale)
        settled = gl.where(now == float("-inf"), 0.0, now)  # a row that saw nothing yet: exp2(-inf - 0) = 0, not NaN
        powers = gl.exp2(scores * scale - settled[:, None])
        fade = gl.exp2(best - settled)
        mbarrier.wait(used.index(stage), turn ^ 1)  # by the tile before the last
        weights.index(stage).store(powers.to(weights.dtype))
        factors.index(stage).store(fade)
        fence_async_shared()
        mbarrier.arrive(ready.index(stage))
        total = total * fade + gl.sum(powers, axis=1)
        best = now

    some = gl.where(total > 0.0, total, 1.0)
    factors.index(2).store(1.0 / some)
    mbarrier.arrive(ready.index(2))
    if not WHOLE:
        at = (gl.program_id(1).to(gl.int64) * T + b * S) * H + rows
        gl.store(sums_ptr + at, gl.where(total > 0.0, best + gl.log2(some), float("-inf")), mask=rows < S * H)


@gluon.jit
def _load_queries(queries, asked, b, S, H: gl.constexpr, operand: gl.constexpr):
    """The right half goes to shared memory, 16 rows at a time; the left one and the rotated part are returned."""
    q_ptr, q_pe_ptr, q_stride_t, q_stride_h, pe_stride_t, pe_stride_h = asked
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    columns = gl.arange(0, _HALF, layout=gl.SliceLayout(0, layout))
    for group in gl.static_range(_X // 16):
        rows = gl.program_id(0) * _X + group * 16 + gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
        at = q_ptr + (b * S + rows // H).to(gl.int64) * q_stride_t + rows % H * q_stride_h
        part = gl.load(at[:, None] + (_HALF + columns)[None, :], mask=(rows < S * H)[:, None], other=0.0)
        queries.slice(group * 16, 16).store(part)
    fence_async_shared()
    rows = gl.program_id(0) * _X + gl.arange(0, _X, layout=gl.SliceLayout(1, operand))
    real, token = (rows < S * H)[:, None], (b * S + rows // H).to(gl.int64)
    columns = gl.arange(0, _HALF, layout=gl.SliceLayout(0, operand))
    at = q_ptr + token * q_stride_t + rows % H * q_stride_h
    q_left = gl.load(at[:, None] + columns[None, :], mask=real, other=0.0)
    columns = gl.arange(0, _R, layout=gl.SliceLayout(0, operand))
    at = q_pe_ptr + token * pe_stride_t + rows % H * pe_stride_h
    return q_left, gl.load(at[:, None] + columns[None, :], mask=real, other=0.0)


@gluon.jit
def _add(WHICH: gl.constexpr, ring, belt, lens_ptr, outputs, S, T, splits, H: gl.constexpr, WHOLE: gl.constexpr):
    """Half of the latent's columns: the weighted sum of all tiles."""
    latents, _, filled, emptied = ring
    weights, factors, ready, used = belt
    o_ptr, parts_ptr = outputs
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, layout)
    b, kv_len, first, last = _share(lens_ptr, splits)
    acc = gl.zeros((_X, _HALF), gl.float32, layout)
    slot, phase = WHICH, 0
    for tile in range(first, last):
        stage, turn = (tile - first) % 2, (tile - first) // 2 % 2
        mbarrier.wait(filled.index(slot), phase)
        mbarrier.wait(ready.index(stage), turn)
        acc *= factors.index(stage).load(row_layout)[:, None]
        values = latents.index(slot)
        if kv_len - tile * _L < _L:
            _blank(values, kv_len - tile * _L)
        acc = warpgroup_mma(weights.index(stage), values, acc, is_async=True)
        acc = warpgroup_mma_wait(0, [acc])
        mbarrier.arrive(emptied.index(slot))
        mbarrier.arrive(used.index(stage))
        slot, phase = _step(slot, phase, 2)

    mbarrier.wait(ready.index(2), 0)
    acc *= factors.index(2).load(row_layout)[:, None]
    rows = gl.program_id(0) * _X + gl.arange(0, _X, layout=row_layout)
    columns = WHICH * _HALF + gl.arange(0, _HALF, layout=gl.SliceLayout(0, layout))
    mask = (rows < S * H)[:, None]
    if WHOLE:
        token = (b * S + rows // H).to(gl.int64)
        at = o_ptr + ((rows % H * T + token) * _C)[:, None] + columns[None, :]
        gl.store(at, acc.to(o_ptr.dtype.element_ty), mask=mask)
    elif first < last:
        at = parts_ptr + (((gl.program_id(1).to(gl.int64) * T + b * S) * H + rows) * _C)[:, None] + columns[None, :]
        gl.store(at, acc, mask=mask)


@gluon.jit
def _blank(values, n):
    """Zeros in all rows from n on, 16 rows at a time to spare registers."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [1, 32], [4, 1], [1, 0])
    for group in gl.static_range(_L // 16):
        some = values.slice(group * 16, 16)
        rows = group * 16 + gl.arange(0, 16, layout=gl.SliceLayout(1, layout))
        some.store(gl.where((rows < n)[:, None], some.load(layout), 0.0))
    fence_async_shared()
