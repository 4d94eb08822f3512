"""FP8 products with block scales on one GPU, beside cuBLAS's own and beside the first Triton kernel of this project.

    python benchmarks/fp8_gemm.py [--rows 1 16 64 128 4096] [--shapes 7168x16384 ...]

Three operations: `fp8_gemm` from codes and scales; for one row also `fp8_linear`, which quantises it (the peer takes
two launches); and `linear`, the BF16 product of a few rows, beside torch's. Times are medians over replays of a CUDA
graph that goes round copies of the weight, so that none is found in the L2 cache. The limit is that of the bytes, read
once at 3.0 TB/s, or that of the arithmetic at 1,340 (FP8) or 780 TFLOPS (BF16), whichever is longer. Every result is
compared with the reference before it is timed. Writes results/fp8_gemm.<device>.json; a minute on an H100.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Row, Samples, Setting, table, versions_of, write
from gpu import BF16, FP8, READ, kind, microseconds, out_of_cache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout that this script belongs to

from dsv3 import kernels
from dsv3.kernels.tiles import Tile, choose

NAME = "fp8_gemm"
SHAPES = [(7168, 16384), (4096, 7168), (24576, 1536), (7168, 2048), (32768, 512), (2176, 7168)]  # N, K
ROWS = (1, 16, 64, 128, 4096)
BF16_SHAPES = [(3072, 2048), (576, 2048), (2048, 2048), (10944, 2048), (2048, 10944), (102400, 2048), (129280, 7168)]
BF16_ROWS = (1, 4, 16)
ALLOWED_ERROR = 2.0**-7  # of the worst row, in BF16; a wrong scale would be 1e-1
FIRST = [(16, 32, 4, 6), (16, 64, 4, 5), (32, 64, 4, 5), (64, 64, 4, 4), (64, 128, 4, 4), (128, 128, 8, 3)]
"""The first kernel's tiles: pointers, no cut along K, the fastest for each size chosen at run time."""

Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def worst_error(y: torch.Tensor, expected: torch.Tensor) -> float:
    y, expected = y.float(), expected.float()
    return float(((y - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


def check(y: torch.Tensor, expected: torch.Tensor, what: str) -> float:
    error = worst_error(y, expected)
    if not error <= ALLOWED_ERROR:
        raise SystemExit(f"{what}: relative error {error:.1e}")
    return error


# --- peers ----------------------------------------------------------------------------------------------------------


def cublas_operands(a_s: torch.Tensor, b_s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales as cuBLAS wants them: a's along M, b's along K in rows of a multiple of 4."""
    return a_s.t().contiguous().t(), F.pad(b_s, (0, -b_s.shape[1] % 4)).t()


def cublas(a: torch.Tensor, a_s: torch.Tensor, b: torch.Tensor, b_s: torch.Tensor) -> torch.Tensor:
    recipes = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
    return F.scaled_mm(a, b.t(), a_s, recipes[0], b_s, recipes[1], output_dtype=torch.bfloat16)


def cublas_accepts(a: torch.Tensor, a_s: torch.Tensor, b: torch.Tensor, b_s: torch.Tensor, y: torch.Tensor) -> bool:
    """One row it refuses, and a shape that it got wrong would be no peer."""
    try:
        error = worst_error(cublas(a, *cublas_operands(a_s, b_s)[:1], b, cublas_operands(a_s, b_s)[1]), y)
    except (RuntimeError, AttributeError, ValueError) as reason:
        print(f"  no cuBLAS: {str(reason).splitlines()[0][:120]}", file=sys.stderr)
        return False
    return error <= ALLOWED_ERROR


def first_tiles(m: int) -> list[Tile]:
    bucket = min(max(1 << (m - 1).bit_length(), 16), 128)
    fitting = [tile for tile in FIRST if bucket // 2 <= tile[0] <= bucket]
    return [Tile("tile", *tile, per_sm=0, group=64) for tile in fitting]


# --- measurements ---------------------------------------------------------------------------------------------------


def row(
    setting: Setting,
    case: str,
    m: int,
    n: int,
    k: int,
    element_size: int,
    ours: Samples,
    peer: str | None,
    peer_samples: Samples | None,
    **notes: object,
) -> Row:
    """GB/s where reading takes longer than multiplying, TFLOPS otherwise; and the limit in the same unit."""
    n_bytes, flops = element_size * (n * k + m * k) + 2 * m * n, 2 * m * n * k
    reading, multiplying = n_bytes / READ, flops / (FP8 if element_size == 1 else BF16)
    unit, amount = ("GB/s", n_bytes / 1e9) if reading > multiplying else ("TFLOPS", flops / 1e12)
    rates = [Samples.of(amount / (t / 1e6) for t in s.values) if s else None for s in (ours, peer_samples)]
    assert rates[0] is not None
    notes |= {"us": round(ours.median, 2), "peer_us": round(peer_samples.median, 2) if peer_samples else None}
    limit = amount / max(reading, multiplying)
    made = setting.row(case, rates[0], unit, "higher", peer=peer, peer_samples=rates[1], limit=limit, notes=notes)
    print(
        f"{case:36} {ours.median:9.2f} µs {made.ours:8,.0f} {unit:6} {made.share:5.0%} of the limit"
        + (f", {made.ratio:5.2f}x {peer} ({peer_samples.median:.2f} µs)" if peer_samples else "")
        + f"  {notes}",
        file=sys.stderr,
        flush=True,
    )
    return made


def measure_fp8(setting: Setting, n: int, k: int, rows: list[int]) -> Iterator[Row]:
    weight = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
    weights = out_of_cache(*kernels.weight_quant(weight))
    b, b_s = weights[0]
    for m in rows:
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        a, a_s = kernels.act_quant(x)
        expected = kernels.fp8_gemm(a, a_s, b, b_s, torch.float32, backend="reference")
        error = check(kernels.fp8_gemm(a, a_s, b, b_s), expected, f"fp8_gemm {m}, {n}, {k}")
        ours = microseconds([functools.partial(kernels.fp8_gemm, a, a_s, *pair) for pair in weights])
        first = first_kernel(a, a_s, weights)
        peer, peer_samples = "first kernel", first
        if cublas_accepts(a, a_s, b, b_s, expected):
            scales = cublas_operands(a_s, b_s)[0]
            pairs = [(codes, cublas_operands(a_s, scale)[1]) for codes, scale in weights]
            peer = "cuBLAS"
            peer_samples = microseconds([functools.partial(cublas, a, scales, *pair) for pair in pairs])
        notes = {"error": error, "tile": str(choose("fp8_gemm", m, n, k)), "first_us": round(first.median, 2)}
        yield row(setting, f"fp8_gemm {m}, {n}, {k}", m, n, k, 1, ours, peer, peer_samples, **notes)
        if m == 1:
            yield measure_fp8_linear(setting, x, weights)


def first_kernel(a: torch.Tensor, a_s: torch.Tensor, weights: list[tuple[torch.Tensor, ...]]) -> Samples:
    """The first kernel of this project, with the fastest of its tiles."""
    from dsv3.kernels import dense

    def product(tile: Tile, pair: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return dense.fp8_gemm(a, a_s, *pair, tile=tile)

    every = [
        microseconds([functools.partial(product, tile, pair) for pair in weights], replays=5)
        for tile in first_tiles(a.shape[0])
    ]
    return min(every, key=lambda samples: samples.median)


def measure_fp8_linear(setting: Setting, x: torch.Tensor, weights: list[tuple[torch.Tensor, ...]]) -> Row:
    def in_two(b: torch.Tensor, b_s: torch.Tensor) -> torch.Tensor:
        return kernels.fp8_gemm(*kernels.act_quant(x), b, b_s)

    (b, b_s), k = weights[0], x.shape[1]
    n = b.shape[0]
    check(kernels.fp8_linear(x, b, b_s), kernels.fp8_linear(x, b, b_s, backend="reference"), f"fp8_linear {n}, {k}")
    ours = microseconds([functools.partial(kernels.fp8_linear, x, *pair) for pair in weights])
    peer_samples = microseconds([functools.partial(in_two, *pair) for pair in weights])
    tile = str(choose("fp8_linear", 1, n, k))
    return row(setting, f"fp8_linear 1, {n}, {k}", 1, n, k, 1, ours, "quantised before", peer_samples, tile=tile)


def measure_bf16(setting: Setting, n: int, k: int, rows: list[int]) -> Iterator[Row]:
    weights = out_of_cache(torch.randn(n, k, device="cuda", dtype=torch.bfloat16))
    for m in rows:
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        check(kernels.linear(x, *weights[0]), x.float() @ weights[0][0].float().t(), f"linear {m}, {n}, {k}")
        ours = microseconds([functools.partial(kernels.linear, x, *one) for one in weights])
        peer_samples = microseconds([functools.partial(F.linear, x, *one) for one in weights])
        tile = str(choose("linear", m, n, k))
        yield row(setting, f"linear {m}, {n}, {k}", m, n, k, 2, ours, "F.linear", peer_samples, tile=tile)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="M")
    parser.add_argument("--shapes", nargs="+", metavar="NxK", help="of FP8 products; default: six of DeepSeek-V3's")
    parser.add_argument("--no-bf16", action="store_true", help="leave out the BF16 products of few rows")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.triton_available():
        parser.error("needs a CUDA device and triton")
    device = torch.cuda.get_device_name()
    setting = Setting(name=NAME, device=device, versions=versions_of("torch", "triton"))
    shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes] if options.shapes else SHAPES
    torch.manual_seed(0)
    rows: list[Row] = []
    with torch.inference_mode():
        for n, k in shapes:
            rows += measure_fp8(setting, n, k, options.rows)
        if not options.no_bf16:
            for n, k in BF16_SHAPES:
                rows += measure_bf16(setting, n, k, list(BF16_ROWS))
    print(table(rows))
    print(write(rows, NAME, kind(device)), file=sys.stderr)


if __name__ == "__main__":
    main()
