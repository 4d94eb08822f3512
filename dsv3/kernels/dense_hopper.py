"""The large FP8 product on Hopper, in Gluon: warps with different jobs, so that no unit waits for another.

Gluon is Triton's lower language: layouts, shared memory and barriers are written out. `dense.py` has the plain twin of
this kernel, which states the same work in a third of the lines; this one exists because of three facts.

**Loading, multiplying and scaling can go on at once**, on three different units (TMA, tensor cores, ordinary cores),
if different warps ask for them. One warp is the *producer*: it does nothing but order tiles from the TMA unit into a
ring of STAGES buffers. Two groups of four warps are *consumers*; each owns half of the tile's rows. A group multiplies
128 columns on the tensor cores, waits, and adds the product, times its scales, to its FP32 sums (the promotion of
arXiv 2412.19437 section 3.3.2). While it adds, the tensor cores would be idle, but then they work for the other
group. Nobody arranges that: whoever finds them busy waits, and the two groups fall into turns.

    filled[stage]   the producer's bytes have arrived         (1 arrival and a count of bytes)
    emptied[stage]  both groups have multiplied what was there (2 arrivals)

A barrier's phase flips each time it completes. The ring goes round, so a wait names the parity of the round; the
producer starts with the parity of "the round before", which counts as complete.

**The tile is large**: 256 x 128 reads 48 KB per step for 4 M products, a third less than 128 x 128 would, and from
the L2 cache to the SMs there are only some 8 TB/s. **Registers limit it.** A group's half, 128 x 128 FP32 sums, takes
128 of a thread's registers; a product of the same size would take 128 more, and 255 is all there is. So a group works
in waves of 64 rows, which share one product of 64 registers. The producer gives back the registers that it does not
need (24 remain), and each group takes 240.

The compiler likes to move the additions behind the next multiplication, where two products must exist at a time, and
spills. `_finish` forbids it: an empty instruction that claims to change the sums, and may not be moved.
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

from dsv3.kernels.reference import BLOCK
from dsv3.kernels.tiles import Schedule, Tile, place, work

_BLOCK = gl.constexpr(BLOCK)

_WAVE = gl.constexpr(64)
"""Rows of a tensor core's product for one group of four warps."""

REGISTERS = (168, 240, 24)
"""Of a thread: at launch, 384 threads of 65,536 registers; then in the second group (the first gets as many), and in
the producer."""


def launch(
    a: torch.Tensor,
    a_s: torch.Tensor,
    b: torch.Tensor,
    b_s: torch.Tensor,
    y: torch.Tensor,
    parts: torch.Tensor,
    plan: Schedule,
    tile: Tile,
    programs: int,
) -> None:
    """y (M, N) = a (M, K) @ b (N, K).T with scales, in the items of `plan`; tails go to `parts`, as in `dense.py`."""
    (m, k), n = a.shape, b.shape[0]
    assert tile.block_m in (128, 256)
    assert tile.block_n == BLOCK
    _hopper_kernel[(programs,)](
        _tiles(a, tile.block_m, gl.float8e4nv), a_s,
        _tiles(b, BLOCK, gl.float8e4nv), b_s,
        _tiles(y, _WAVE.value, gl.bfloat16 if y.dtype == torch.bfloat16 else gl.float16), parts,
        m, n, k, plan.full, plan.splits, plan.items,
        BLOCK_M=tile.block_m, GROUP=tile.group, STAGES=tile.stages, num_warps=4, maxnreg=REGISTERS[0],
    )  # fmt: skip


def _tiles(x: torch.Tensor, rows: int, dtype: gl.dtype) -> TensorDescriptor:
    """What TMA needs to know of x: its shape, a tile's, and how the tile lies in shared memory."""
    shape = [rows, BLOCK]
    return TensorDescriptor.from_tensor(x, shape, gl.NVMMASharedLayout.get_default_for(shape, dtype))


@gluon.jit(do_not_specialize=["m", "full", "splits", "items"])
def _hopper_kernel(
    a_tiles, a_s_ptr, b_tiles, b_s_ptr, y_tiles, parts_ptr, m, n, k, full, splits, items,
    BLOCK_M: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    a_buffers = gl.allocate_shared_memory(a_tiles.dtype, [STAGES, BLOCK_M, _BLOCK], a_tiles.layout)
    b_buffers = gl.allocate_shared_memory(b_tiles.dtype, [STAGES, _BLOCK, _BLOCK], b_tiles.layout)
    y_buffers = gl.allocate_shared_memory(y_tiles.dtype, [2, _WAVE, _BLOCK], y_tiles.layout)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=2)
    ring = (a_buffers, b_buffers, filled, emptied)
    sizes = (m, n, k, full, splits, items)
    outputs = (y_tiles, y_buffers, parts_ptr)
    gl.warp_specialize(
        [
            (_consume, (0, ring, sizes, a_s_ptr, b_s_ptr, outputs, BLOCK_M, GROUP, STAGES)),
            (_consume, (1, ring, sizes, a_s_ptr, b_s_ptr, outputs, BLOCK_M, GROUP, STAGES)),
            (_produce, (ring, sizes, a_tiles, b_tiles, BLOCK_M, GROUP, STAGES)),
        ],
        worker_num_warps=[4, 1],
        worker_num_regs=[240, 24],
    )


@gluon.jit
def _next(stage, phase, STAGES: gl.constexpr):
    stage = (stage + 1) % STAGES
    return stage, gl.where(stage == 0, phase ^ 1, phase)


@gluon.jit
def _produce(ring, sizes, a_tiles, b_tiles, BLOCK_M: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr):
    a_buffers, b_buffers, filled, emptied = ring
    m, n, k, full, splits, items = sizes
    stage, phase = 0, 1
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, first, end, _ = work(item, gl.cdiv(k, _BLOCK), full, splits)
        row, col = place(tile, m, n, BLOCK_M, _BLOCK, GROUP)
        for step in range(first, end):
            mbarrier.wait(emptied.index(stage), phase)
            ready = filled.index(stage)
            mbarrier.expect(ready, a_tiles.block_type.nbytes + b_tiles.block_type.nbytes)
            tma.async_copy_global_to_shared(a_tiles, [row, step * _BLOCK], ready, a_buffers.index(stage))
            tma.async_copy_global_to_shared(b_tiles, [col, step * _BLOCK], ready, b_buffers.index(stage))
            stage, phase = _next(stage, phase, STAGES)


@gluon.jit
def _consume(
    WHICH: gl.constexpr, ring, sizes, a_s_ptr, b_s_ptr, outputs,
    BLOCK_M: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One group: its half of the rows of every tile, in one or two waves of 64."""
    a_buffers, b_buffers, filled, emptied = ring
    m, n, k, full, splits, items = sizes
    y_tiles, y_buffers, parts_ptr = outputs
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], warps_per_cta=[4, 1], instr_shape=[16, 128, 32])
    TWO_WAVES: gl.constexpr = BLOCK_M == 4 * _WAVE
    HALF: gl.constexpr = WHICH * (BLOCK_M // 2)
    n_steps = gl.cdiv(k, _BLOCK)
    rows = gl.arange(0, _WAVE, layout=gl.SliceLayout(1, layout))
    zeros = gl.zeros((_WAVE, _BLOCK), gl.float32, layout)
    product = zeros
    stage, phase = 0, 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        tile, first, end, slot = work(item, n_steps, full, splits)
        row, col = place(tile, m, n, BLOCK_M, _BLOCK, GROUP)
        row += HALF
        b_s_at = b_s_ptr + col // _BLOCK * n_steps
        a_s_at = a_s_ptr + gl.minimum(row + rows, m - 1) * n_steps
        lower_a_s_at = a_s_ptr + gl.minimum(row + _WAVE + rows, m - 1) * n_steps
        b_s, a_s = gl.load(b_s_at + first), gl.load(a_s_at + first)
        sums = zeros
        if TWO_WAVES:
            lower_a_s = gl.load(lower_a_s_at + first)
            lower_sums = zeros
        for step in range(first, end):
            mbarrier.wait(filled.index(stage), phase)
            a, b = a_buffers.index(stage), b_buffers.index(stage).permute((1, 0))
            product = warpgroup_mma(a.slice(HALF, _WAVE), b, product, use_acc=False, is_async=True)
            # The next step's scales are on their way while this one's products are made.
            following = gl.minimum(step + 1, end - 1)
            scale, a_s = a_s * b_s, gl.load(a_s_at + following)
            if TWO_WAVES:
                lower_scale, lower_a_s = lower_a_s * b_s, gl.load(lower_a_s_at + following)
            b_s = gl.load(b_s_at + following)
            product = warpgroup_mma_wait(0, [product])
            if TWO_WAVES:
                sums = _finish(sums + product * scale[:, None])
                product = warpgroup_mma(a.slice(HALF + _WAVE, _WAVE), b, product, use_acc=False, is_async=True)
                product = warpgroup_mma_wait(0, [product])
            mbarrier.arrive(emptied.index(stage))
            if TWO_WAVES:
                lower_sums += product * lower_scale[:, None]
            else:
                sums += product * scale[:, None]
            stage, phase = _next(stage, phase, STAGES)
        y_buffer = y_buffers.index(WHICH)
        _store(sums, y_tiles, y_buffer, parts_ptr, row, col, slot, HALF, BLOCK_M, layout)
        if TWO_WAVES:
            _store(lower_sums, y_tiles, y_buffer, parts_ptr, row + _WAVE, col, slot, HALF + _WAVE, BLOCK_M, layout)
    tma.store_wait(0)


@gluon.jit
def _finish(sums):
    """`sums`, and whatever computes them happens before what follows; see the head of the file."""
    return gl.inline_asm_elementwise("", "=f,0", [sums], dtype=gl.float32, is_pure=False, pack=1)


@gluon.jit
def _store(
    sums, y_tiles, y_buffer, parts_ptr, row, col, slot,
    FIRST: gl.constexpr, BLOCK_M: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """A wave of a whole tile goes to y, by TMA, which leaves out what lies beyond an edge; a part's to its slot."""
    if slot < 0:
        tma.store_wait(0)  # the previous wave has left the buffer
        y_buffer.store(sums.to(y_tiles.dtype))
        fence_async_shared()
        tma.async_copy_shared_to_global(y_tiles, [row, col], y_buffer)
    else:
        rows = FIRST + gl.arange(0, _WAVE, layout=gl.SliceLayout(1, layout))
        cols = gl.arange(0, _BLOCK, layout=gl.SliceLayout(0, layout))
        at = parts_ptr + slot * (BLOCK_M * _BLOCK) + rows[:, None] * _BLOCK + cols[None, :]
        gl.store(at, sums)
