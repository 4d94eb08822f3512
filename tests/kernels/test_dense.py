"""The dense products against their references, with every kind of kernel; on a GPU, or interpreted (test_interpreted).

Tiles are given by hand here, so that small shapes go through every path: whole tiles and a tail cut along K, the
transposed tile, TMA, a few rows. `tiles.choose` only decides which of them a shape gets.
"""

import functools
import os
from dataclasses import replace

import pytest
import torch

from dsv3 import kernels
from dsv3.kernels import tiles
from dsv3.kernels.tiles import Tile
from tests.kernels.tolerances import GEMM_BF16, GEMM_FP32, GEMM_TENSOR_CORE, LINEAR_BF16, worst_row_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
GEMM_TOLERANCE = GEMM_FP32 if INTERPRETED else GEMM_TENSOR_CORE

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
else:
    pytestmark = pytest.mark.gpu

from dsv3.kernels import dense  # noqa: E402 (needs triton, and the shim before it)

SWAPPED = Tile("tile", 16, 64, warps=4, stages=4, per_sm=2, swap=True)
PLAIN = Tile("tile", 64, 128, warps=4, stages=3, per_sm=3)
UNCUT = Tile("tile", 32, 32, warps=4, stages=3, per_sm=0)
PERSISTENT = Tile("persistent", 64, 128, warps=4, stages=3)
HOPPER = [Tile("hopper", 128, 128, warps=4, stages=5), Tile("hopper", 256, 128, warps=4, stages=4)]
FEW_ROWS = Tile("matvec", 1, 4, warps=4, stages=1, block_k=512)

by_tile = functools.partial(
    pytest.mark.parametrize, "tile", ids=lambda tile: f"{tile.kernel}-{tile.block_m}x{tile.block_n}"
)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers whose rows differ in size by up to 2^±8, drawn on the CPU so that every device sees the same."""
    size = torch.exp2(torch.randint(-8, 9, (*shape[:-1], 1)))
    return (torch.randn(*shape) * size).to(DEVICE, dtype)


@functools.cache
def operands(m: int, n: int, k: int) -> tuple[torch.Tensor, ...]:
    return *kernels.act_quant(random(m, k)), *kernels.weight_quant(random(n, k))


@functools.cache
def expected(m: int, n: int, k: int) -> torch.Tensor:
    return kernels.fp8_gemm(*operands(m, n, k), torch.float32, backend="reference")


@by_tile([SWAPPED, PLAIN, UNCUT, PERSISTENT, *([] if INTERPRETED else HOPPER)])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [
        (1, 128, 128),
        (7, 576, 1104),  # wkv_a's edge; a partial last block of K
        (83, 300, 304),  # nothing divides, except 16 bytes by which TMA steps
        (83, 130, 300),  # not even that: TMA must give way
        (300, 10944 // 19, 256),  # several strips' worth of rows
        (2, 1, 1),
    ],
)
def test_fp8_gemm_with_every_tile(tile, m, n, k):
    y = dense.fp8_gemm(*operands(m, n, k), torch.float32, tile)
    assert worst_row_error(y, expected(m, n, k)) < GEMM_TOLERANCE
    y = dense.fp8_gemm(*operands(m, n, k), torch.bfloat16, tile)
    assert worst_row_error(y.float(), expected(m, n, k).bfloat16().float()) < GEMM_BF16


@pytest.mark.parametrize(("n", "k"), [(192, 1152), (130, 300), (5, 128), (301, 912), (1, 1)])
@pytest.mark.parametrize("tile", [FEW_ROWS, replace(FEW_ROWS, block_n=8, block_k=256)], ids=["4x512", "8x256"])
@pytest.mark.parametrize("m", [1, 3])
def test_fp8_gemm_of_a_few_rows(m, n, k, tile):
    y = dense.fp8_gemm(*operands(m, n, k), torch.float32, tile)
    assert worst_row_error(y, expected(m, n, k)) < GEMM_FP32  # FP32 arithmetic, on a GPU too


@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 192, 1152), (1, 130, 300), (3, 130, 256), (0, 64, 128)])
def test_fp8_linear(m, n, k, dtype, scale_fmt):
    """Few rows are quantised inside their product; the codes must be those of act_quant, or the error would be 1e-2."""
    x, (w, w_s) = random(m, k, dtype=dtype), kernels.weight_quant(random(n, k), scale_fmt=scale_fmt)
    x[..., :128] = 0  # a block of zeros must not become NaN
    tolerance = {torch.bfloat16: GEMM_BF16, torch.float32: GEMM_TOLERANCE}[dtype]
    reference = kernels.fp8_linear(x, w, w_s, scale_fmt, backend="reference")
    for y in (
        kernels.fp8_linear(x, w, w_s, scale_fmt, backend="triton"),
        dense.fp8_linear(x, w, w_s, scale_fmt, FEW_ROWS if m else PLAIN),
    ):
        assert y.shape == (m, n)
        assert y.dtype == dtype
        assert worst_row_error(y.float(), reference.float()) < tolerance


@by_tile([SWAPPED, replace(PLAIN, block_k=64), FEW_ROWS])
@pytest.mark.parametrize(("t", "f", "d"), [(1, 576, 2048), (4, 130, 300), (7, 130, 530), (16, 64, 576)])
def test_linear(tile, t, f, d):
    if tile.kernel == "matvec" and t > 4:
        tile = replace(SWAPPED, block_n=32, block_k=32, per_sm=8)
    x, w = random(t, d, dtype=torch.bfloat16), random(f, d, dtype=torch.bfloat16)
    y = dense.linear(x, w, tile)
    assert y.dtype == torch.bfloat16
    assert worst_row_error(y.float(), x.float() @ w.float().T) < LINEAR_BF16


def test_a_product_cut_along_k_repeats_bit_by_bit_and_equals_the_uncut_one():
    args = operands(7, 576, 1104)
    tile = replace(SWAPPED, per_sm=64)
    plan = tiles.schedule(7, 576, 1104, tile, tiles.sm_count(torch.device(DEVICE)))
    assert plan.tail
    assert plan.splits > 1
    y = dense.fp8_gemm(*args, torch.float32, tile)
    for _ in range(3):
        assert torch.equal(y, dense.fp8_gemm(*args, torch.float32, tile))
    uncut = dense.fp8_gemm(*args, torch.float32, replace(tile, per_sm=0))
    assert worst_row_error(y, uncut) < GEMM_FP32


def test_every_block_of_k_gets_its_own_scale_in_every_tile():
    """Codes of ones: y[m, n] = sum over k of 128 * a_s[m, k] * b_s[n, k], exact in FP32."""
    a, b = (torch.ones(rows, 1152).to(DEVICE, kernels.E4M3) for rows in (70, 300))
    a_s = (torch.arange(70 * 9, device=DEVICE) % 11 + 1.0).reshape(70, 9)
    b_s = (torch.arange(3 * 9, device=DEVICE) % 7 + 1.0).reshape(3, 9)
    wanted = 128 * (a_s @ b_s.T).repeat_interleave(128, 1)[:, :300]
    for tile in (SWAPPED, PLAIN, UNCUT, PERSISTENT):
        assert torch.equal(dense.fp8_gemm(a, a_s, b, b_s, torch.float32, tile), wanted)
    few = dense.fp8_gemm(a[:4], a_s[:4], b, b_s, torch.float32, FEW_ROWS)
    assert torch.equal(few, wanted[:4])


def test_views_and_leading_dimensions():
    x, (w, w_s) = random(200, 6).T.unflatten(0, (2, 3)), kernels.weight_quant(random(40, 200))
    y = kernels.fp8_linear(x, w, w_s, backend="triton")
    assert y.shape == (2, 3, 40)
    assert worst_row_error(y, kernels.fp8_linear(x, w, w_s, backend="reference")) < GEMM_TOLERANCE
    a, a_s = kernels.act_quant(x)
    assert torch.equal(kernels.fp8_gemm(a, a_s, w, w_s, torch.float32, backend="triton"), y)


if not INTERPRETED:

    @by_tile([replace(PERSISTENT, block_m=128, warps=8), *HOPPER])
    @pytest.mark.parametrize(("m", "n", "k"), [(4097, 576, 7168), (1000, 4096, 2048), (128, 7168, 2048)])
    def test_large_products(tile, m, n, k):
        """Several tiles a program, whole ones and parts; each result twice, to find a race."""
        y = dense.fp8_gemm(*operands(m, n, k), torch.bfloat16, tile)
        assert worst_row_error(y, kernels.fp8_gemm(*operands(m, n, k), backend="reference")) < GEMM_BF16
        assert torch.equal(y, dense.fp8_gemm(*operands(m, n, k), torch.bfloat16, tile))

    @pytest.mark.parametrize("m", [1, 7, 83, 300])
    def test_products_in_a_cuda_graph(m):
        x, (w, w_s) = random(m, 2048, dtype=torch.bfloat16), kernels.weight_quant(random(576, 2048))
        y = kernels.fp8_linear(x, w, w_s)  # compiles, which cannot be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = kernels.fp8_linear(x, w, w_s)
        for _ in range(2):
            x.copy_(random(m, 2048, dtype=torch.bfloat16))
            graph.replay()
            assert torch.equal(y, kernels.fp8_linear(x, w, w_s))
