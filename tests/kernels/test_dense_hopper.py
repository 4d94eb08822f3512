"""The warp-specialised FP8 product: its barriers and indices on threads, its compiled form for sm_90. No GPU needed.

Its numbers on a GPU are a case of test_dense.py."""

import re
import subprocess

import pytest
import torch

from tests.kernels.test_compile import HOPPER, fresh_cache  # noqa: F401 (skips without triton; the fixture is used)

import triton  # isort: skip (after the skip)

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from dsv3.kernels import dense_hopper, tiles
from dsv3.kernels.tiles import Tile
from tests.kernels import gluon_threads


@pytest.mark.parametrize("block_m", [128, 256])
@pytest.mark.parametrize(
    ("m", "n", "k", "programs"),
    [
        (300, 200, 300, 2),  # nothing divides; a program takes several tiles
        (520, 300, 2100, 2),  # whole tiles, then a tail cut along K
        (1, 576, 1664, 3),
        (70, 128, 128, 1),  # one step; a half without rows
    ],
)
def test_partitions_agree_on_every_buffer_and_every_item(block_m, m, n, k, programs):
    a, b = torch.randn(m, k), torch.randn(n, k)
    blocks_k, blocks_n = -(-k // 128), -(-n // 128)
    a_s, b_s = torch.rand(m, blocks_k) + 0.5, torch.rand(blocks_n, blocks_k) + 0.5
    tile = Tile("hopper", block_m, 128, warps=4, stages=3, group=2)
    full, tail, splits = plan = tiles.schedule(m, n, k, tile, programs)
    y, parts = torch.full((m, n), float("nan")), torch.full((tail * splits, block_m, 128), float("nan"))
    descriptors = [gluon_threads.Tiles(x, shape) for x, shape in ((a, (block_m, 128)), (b, (128, 128)), (y, (64, 128)))]
    pointers = [gluon_threads.Pointer(x) for x in (a_s, b_s, parts)]
    args = [descriptors[0], pointers[0], descriptors[1], pointers[1], descriptors[2], pointers[2]]
    gluon_threads.run(
        dense_hopper._hopper_kernel, [tiles.work, tiles.place], programs, [*args, m, n, k, full, splits, plan.items],
        BLOCK_M=block_m, GROUP=tile.group, STAGES=tile.stages,
    )  # fmt: skip
    for index in range(tail):  # what _add_parts_kernel does
        row, col = place(full + index, m, n, tile)
        window = y[row : row + block_m, col : col + 128]
        total = parts[index * splits : (index + 1) * splits].sum(0)
        window.copy_(total[: window.shape[0], : window.shape[1]])
    scaled = (a * a_s.repeat_interleave(128, 1)[:, :k]) @ (
        b * b_s.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    ).T
    torch.testing.assert_close(y, scaled, rtol=1e-4, atol=1e-3)


def place(index: int, m: int, n: int, tile: Tile) -> tuple[int, int]:
    """tiles.place in Python: down a strip, then right."""
    rows, columns = -(-m // tile.block_m), -(-n // tile.block_n)
    order = [
        (row, column)
        for strip in range(0, rows, tile.group)
        for column in range(columns)
        for row in range(strip, min(strip + tile.group, rows))
    ]
    row, column = order[index]
    return row * tile.block_m, column * tile.block_n


def test_a_deadlock_is_seen():
    barrier = gluon_threads.Barrier()
    barrier.count = 2
    barrier.update(1)
    patience, gluon_threads.PATIENCE = gluon_threads.PATIENCE, 0.01
    try:
        with pytest.raises(gluon_threads.Deadlock):
            barrier.wait(0)
    finally:
        gluon_threads.PATIENCE = patience


@pytest.mark.parametrize(("block_m", "stages"), [(256, 4), (256, 3), (128, 6), (128, 5)])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_it_compiles_without_spilling(block_m, stages, dtype, tmp_path):
    def tile_type(name: str, element: gl.dtype, rows: int) -> str:
        layout = gl.NVMMASharedLayout.get_default_for([rows, 128], element)
        return f"tensordesc<{name}[{rows}, 128],{layout!r}>"

    kernel = dense_hopper._hopper_kernel
    signature = {
        "a_tiles": tile_type("fp8e4nv", gl.float8e4nv, block_m),
        "b_tiles": tile_type("fp8e4nv", gl.float8e4nv, 128),
        "y_tiles": tile_type(dtype, gl.bfloat16 if dtype == "bf16" else gl.float16, 64),
        **dict.fromkeys(("a_s_ptr", "b_s_ptr", "parts_ptr"), "*fp32"),
        **dict.fromkeys(("m", "n", "k", "full", "splits", "items"), "i32"),
        **dict.fromkeys(("BLOCK_M", "GROUP", "STAGES"), "constexpr"),
    }
    signature = {name: signature[name] for name in kernel.arg_names}
    constants = {"BLOCK_M": block_m, "GROUP": 8, "STAGES": stages}
    options = {"num_warps": 4, "maxnreg": dense_hopper.REGISTERS[0]}
    compiled = triton.compile(GluonASTSource(kernel, signature, constants), target=HOPPER, options=options)
    code = compiled.asm["ptx"]
    assert "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3" in code
    assert "cp.async.bulk.tensor" in code
    for registers in dense_hopper.REGISTERS[1:]:
        assert re.search(rf"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32 \t{registers};", code)
    assert compiled.metadata.shared <= 227 * 1024
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " STACK:0 " in usage, usage  # spilled registers would go to the stack
