"""The dense products' kernels compile for Hopper without a GPU, with the tiles that the models' shapes get."""

import pytest

from tests.kernels.test_compile import fresh_cache, ptx  # noqa: F401 (skips without triton; the fixture is used)

from dsv3.kernels import dense, matvec, tiles  # isort: skip (after the skip)
from dsv3.kernels.tiles import Tile  # isort: skip

FP8_SHAPES = [(7168, 16384), (4096, 7168), (24576, 1536), (7168, 2048), (32768, 512), (2176, 7168)]
BF16_SHAPES = [(3072, 2048), (576, 2048), (2048, 2048), (10944, 2048), (2048, 10944), (102400, 2048), (129280, 7168)]
ROWS = (1, 16, 64, 128, 4096)

SIZES = {"m": "i32", "n": "i32", "k": "i32"}


def chosen() -> list[tuple[tiles.Op, Tile]]:
    every = {("fp8_gemm", tiles.choose("fp8_gemm", m, n, k)) for m in ROWS for n, k in FP8_SHAPES}
    every |= {("fp8_linear", tiles.choose("fp8_linear", 1, n, k)) for n, k in FP8_SHAPES + BF16_SHAPES}
    every |= {("linear", tiles.choose("linear", m, n, k)) for m in (1, 4, 16) for n, k in BF16_SHAPES}
    every.add(("linear", Tile("matvec", 1, 8, warps=4, stages=1, block_k=512)))
    every.add(("linear", Tile("tile", 16, 64, warps=4, stages=4, swap=True, block_k=64)))
    return sorted(every, key=str)


@pytest.mark.parametrize(("op", "tile"), chosen(), ids=str)
def test_the_tiles_of_the_models_shapes_compile(op, tile):
    fp8 = op != "linear"
    codes, scales = ("*fp8e4nv", "*fp32") if fp8 else ("*bf16", "constexpr")
    no_scales = {} if fp8 else {"a_s_ptr": None, "b_s_ptr": None}
    blocks = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "GROUP": tile.group}
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    if tile.kernel == "matvec":
        form = {"fp8_gemm": "codes", "fp8_linear": "quantise", "linear": "plain"}[op]
        given = {"x_ptr": codes if form == "codes" else "*bf16", "w_ptr": codes, "y_ptr": "*bf16"}
        absent = {"x_s_ptr": None} if form != "codes" else {}
        absent |= {"w_s_ptr": None} if form == "plain" else {}
        signature = {**given, "x_s_ptr": "*fp32", "w_s_ptr": "*fp32", "n": "i32", "k": "i32"}
        constants = {**absent, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "FORM": form, "UE8M0": False}
        constants |= {"ROWS": 2, "OVERLAP": True}
        code = ptx(matvec._matvec_kernel, signature, constants, **options)
        assert ("cvt.rn.satfinite.e4m3x2.f32" in code) == (form == "quantise")
    elif tile.kernel == "tile":
        signature = {"a_ptr": codes, "a_s_ptr": scales, "b_ptr": codes, "b_s_ptr": scales, "y_ptr": "*bf16"}
        signature |= {"parts_ptr": "*fp32", **SIZES, "full": "i32", "splits": "i32"}
        constants = {**no_scales, **blocks, "BLOCK_K": tile.block_k, "SWAP": tile.swap, "SCALED": fp8, "OVERLAP": True}
        code = ptx(dense._tile_kernel, signature, constants, **options)
        rows = tile.block_n if tile.swap else tile.block_m
        assert ("wgmma.mma_async" if rows >= 64 else "mma.sync") in code
        assert "griddepcontrol.launch_dependents" in code
    elif tile.kernel == "persistent":
        shapes = {"a_tiles": ("fp8e4nv", tile.block_m, 128), "b_tiles": ("fp8e4nv", tile.block_n, 128)}
        shapes["y_tiles"] = ("bf16", tile.block_m, tile.block_n)
        signature = {name: f"tensordesc<{dtype}[{m},{n}]>" for name, (dtype, m, n) in shapes.items()}
        signature |= {"a_s_ptr": scales, "b_s_ptr": scales, **SIZES}
        code = ptx(dense._persistent_kernel, signature, {**blocks, "PROGRAMS": 132, "OVERLAP": True}, **options)
        assert "wgmma.mma_async" in code
        assert "cp.async.bulk.tensor" in code
    else:
        assert tile.kernel in ("hopper", "torch")  # the first has a test file of its own


def test_the_sum_of_the_splits_compiles():
    signature = {"parts_ptr": "*fp32", "y_ptr": "*bf16", "m": "i32", "n": "i32", "full": "i32", "splits": "i32"}
    constants = {"BLOCK_M": 16, "BLOCK_N": 64, "GROUP": 8, "ROWS": 16, "AT_A_TIME": 8, "OVERLAP": True}
    code = ptx(dense._add_parts_kernel, signature, constants)
    assert "griddepcontrol.wait" in code
    assert "atom" not in code


@pytest.mark.parametrize("m", [1, 16, 64, 100, 4096, 4097])
@pytest.mark.parametrize(("n", "k"), [*FP8_SHAPES, (576, 2048), (130, 300), (1, 1)])
def test_a_schedule_covers_every_tile_and_step_once(m, n, k):
    tile = tiles.choose("fp8_gemm", m, n, k)
    full, tail, splits = plan = tiles.schedule(m, n, k, tile, sms=132)
    assert full + tail == -(-m // tile.block_m) * -(-n // tile.block_n)
    steps = -(-k // tile.block_k)
    if tail:
        assert full % (132 * tile.per_sm) == 0
        assert steps // splits >= tiles.MIN_STEPS
        assert plan.items <= full + 132 * tile.per_sm
        ends = [part * steps // splits for part in range(splits + 1)]
        assert ends == sorted(ends)
        assert (ends[0], ends[-1]) == (0, steps)


def test_committed_tiles_are_in_order_and_known_to_a_kernel():
    for (op, n, k), rows in tiles._table().items():
        sizes = [m for m, _ in rows]
        assert sizes == sorted(set(sizes)), (op, n, k)
        for _, tile in rows:
            assert tile.kernel in {"matvec", "tile", "persistent", "hopper", "torch"}
            assert tile.kernel == "torch" or 128 % tile.block_n == 0
