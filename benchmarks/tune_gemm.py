"""Find the fastest tile for each shape of the DeepSeek models' dense products on this GPU, and write the table of them.

    python benchmarks/tune_gemm.py [--out tiles.json] [--ops fp8_gemm fp8_linear linear] [--seconds 40]

The table is dsv3/kernels/tiles.json unless --out names another file; rows that this run does not measure stay in it.
Candidates whose result differs from the plain kernel's are named and never chosen. `linear` keeps torch's own product
where ours is not faster. The most important shapes come first, and what --seconds leaves unmeasured is said.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from common import replace_text
from gpu import READ, microseconds, out_of_cache

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout that this script belongs to

from dsv3 import kernels
from dsv3.kernels import dense, tiles
from dsv3.kernels.tiles import Tile

TABLE = Path(tiles.__file__).with_name("tiles.json")
FP8_SHAPES = [
    (7168, 16384), (4096, 7168), (24576, 1536), (7168, 2048), (2176, 7168), (32768, 512),  # the six shown
    (3072, 2048), (576, 2048), (2048, 2048), (10944, 2048), (2048, 10944), (2816, 2048), (2048, 2816),  # 16B
    (1536, 7168), (576, 7168), (18432, 7168), (7168, 18432), (2048, 7168), (4096, 512),  # 671B's others; 16B's wkv_b
]  # fmt: skip
BF16_SHAPES = [
    (3072, 2048), (576, 2048), (2048, 2048), (10944, 2048), (2048, 10944), (2816, 2048), (2048, 2816), (102400, 2048),
    (129280, 7168), (64, 2048),
]  # fmt: skip
ROWS = {
    "fp8_gemm": (1, 4096, 16, 64, 128, 32, 256, 1024, 2, 4),
    "fp8_linear": (1, 2, 4),  # after fp8_gemm, whose best tile competes with a launch of act_quant before it
    "linear": (1, 2, 4, 8, 16),
}
GAIN = 1.03  # what ours must be faster than torch's to be worth another kernel
ALLOWED_ERROR = 2.0**-7


def candidates(op: tiles.Op, m: int) -> list[Tile]:
    """Tiles to try. The plainest comes first: its result is what the others are compared with."""
    shapes = [(4, 2048), (8, 1024), (4, 1024), (2, 2048), (8, 512), (16, 512), (2, 1024), (1, 2048), (16, 1024)]
    vectors = [Tile("matvec", 1, rows, 4, 1, block_k=columns) for rows, columns in shapes]
    vectors += [Tile("matvec", 1, 8, 8, 1, block_k=2048), Tile("matvec", 1, 4, 2, 1, block_k=512)]
    if m == 1 or op == "fp8_linear":
        return vectors
    few = vectors[:7] if m <= 4 else []
    if op == "linear":
        narrow = [(16, 2, 6, 256), (16, 2, 8, 128), (32, 4, 5, 256), (32, 2, 6, 128)]
        few += [Tile("tile", 16, n, warps, stages, per_sm=0, block_k=k) for n, warps, stages, k in narrow]
        swapped = [(64, 4, 8, 64), (64, 4, 5, 64), (64, 4, 4, 128), (128, 4, 5, 64)]
        return few + [
            Tile("tile", 16, n, warps, stages, per_sm=per_sm, swap=True, block_k=k)
            for n, warps, stages, k in swapped
            for per_sm in (2, 3)
        ]
    if m <= 32:
        rows = 16 if m <= 16 else 32
        shapes = [(64, 4, 5, 2), (64, 4, 5, 3), (64, 4, 5, 4), (64, 4, 7, 2), (64, 4, 7, 3)]
        shapes += [(128, 4, 4, 1), (128, 4, 4, 2), (128, 4, 4, 3), (128, 8, 4, 2)]
        few += [Tile("tile", rows, *shape, per_sm=per_sm, swap=True) for *shape, per_sm in shapes]
        return few + [Tile("tile", rows, *shape, per_sm=0) for shape in ((16, 2, 10), (32, 4, 8), (32, 2, 8))]
    if m <= 64:
        shapes = [
            (64, 4, 5, 1),
            (64, 4, 5, 2),
            (64, 4, 7, 2),
            (128, 4, 4, 1),
            (128, 4, 4, 2),
            (128, 8, 4, 1),
            (128, 8, 4, 2),
        ]
        return [Tile("tile", 64, *shape, per_sm=per_sm) for *shape, per_sm in shapes]
    plain = [
        Tile("tile", 128, 128, 8, 3, per_sm=0),
        Tile("persistent", 128, 128, 8, 4),
        Tile("persistent", 128, 128, 8, 5),
    ]
    if m <= 256:
        plain += [Tile("tile", 64, 128, 4, 4, per_sm=2), Tile("tile", 64, 64, 4, 5, per_sm=2)]
    hopper = [Tile("hopper", 256, 128, 4, 4, group=group) for group in ((4, 8, 16) if m > 1024 else (8,))]
    hopper += [Tile("hopper", 256, 128, 4, 4, per_sm=0), Tile("hopper", 128, 128, 4, 5)]
    hopper += [Tile("hopper", 128, 128, 4, 6), Tile("hopper", 128, 128, 4, 6, per_sm=0)]
    return [*plain, *hopper]


def product(op: tiles.Op, x: tuple[torch.Tensor, ...], tile: Tile, weights: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """`x` is what `operand` made of it."""
    if op == "linear":
        return dense.linear(*x, *weights, tile=tile)
    if op == "fp8_linear":
        return dense.fp8_linear(*x, *weights, tile=tile)
    return dense.fp8_gemm(*x, *weights, tile=tile)


def operand(op: tiles.Op, m: int, k: int) -> tuple[torch.Tensor, ...]:
    x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    return kernels.act_quant(x) if op == "fp8_gemm" else (x,)


class Tuner:
    def __init__(self, seconds: float, hopper: bool) -> None:
        self.end = time.perf_counter() + seconds
        self.hopper = hopper
        self.rows: list[dict[str, object]] = []
        self.best: dict[tuple[str, int, int, int], Tile] = {}
        self.skipped: list[str] = []

    def tune(self, op: tiles.Op, n: int, k: int, m: int, weights: list[tuple[torch.Tensor, ...]]) -> None:
        if time.perf_counter() > self.end:
            self.skipped.append(f"{op} {m}, {n}, {k}")
            return
        x = operand(op, m, k)
        tries = [tile for tile in candidates(op, m) if self.hopper or tile.kernel != "hopper"]
        if op == "fp8_linear" and ("fp8_gemm", n, k, m) in self.best:
            tries.append(self.best["fp8_gemm", n, k, m])
        tries = [tile for tile in tries if tile.kernel != "matvec" or tile.block_k < 2 * k]
        timed = self.times(op, x, tries, weights)
        if op == "linear":
            torch_us = microseconds([functools.partial(F.linear, *x, *one) for one in weights], replays=7).median
            print(f"    F.linear {torch_us:.2f} µs", file=sys.stderr)
            timed.append((torch_us / GAIN, Tile("torch", 0, 0, 0, 0)))
        if not timed:
            return
        us, best = min(timed, key=lambda each: each[0])
        self.best[op, n, k, m] = best
        share = weights[0][0].nbytes / READ * 1e6 / us
        flops = 2 * m * n * k / us / 1e6
        text = f"{op} {m}, {n}, {k}: {us:.2f} µs, {share:.0%} of reading, {flops:.0f} TFLOPS  {best}"
        print(text, file=sys.stderr, flush=True)
        self.rows.append({"op": op, "n": n, "k": k, "m": m, "us": round(us, 2), **_fields(best)})

    def times(
        self, op: tiles.Op, x: tuple[torch.Tensor, ...], tries: list[Tile], weights: list[tuple[torch.Tensor, ...]]
    ) -> list[tuple[float, Tile]]:
        expected: torch.Tensor | None = None
        timed: list[tuple[float, Tile]] = []
        for tile in tries:
            call: Callable[..., torch.Tensor] = functools.partial(product, op, x, tile)
            try:
                y = call(weights[0]).float()
                if expected is None:
                    expected = y
                error = float((y - expected).norm() / expected.norm())
                if not error <= ALLOWED_ERROR:
                    print(f"  WRONG {error:.1e} {op} {tuple(x[0].shape)} {tile}", file=sys.stderr, flush=True)
                    continue
                timed.append((microseconds([functools.partial(call, one) for one in weights], replays=7).median, tile))
            except Exception as error:  # a tile that needs more shared memory than there is
                print(f"  {type(error).__name__}: {str(error)[:100]} {tile}", file=sys.stderr, flush=True)
        return timed

    def compile(self, op: tiles.Op) -> None:
        """All candidates side by side on a small shape; binaries depend on the tile, not on the shape."""
        n, k = 1024, 2048
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        weights = (w,) if op == "linear" else kernels.weight_quant(w)
        pairs = [(m, tile) for m in ROWS[op] for tile in candidates(op, m) if self.hopper or tile.kernel != "hopper"]
        inputs = {m: operand(op, m, k) for m in ROWS[op]}

        def run(pair: tuple[int, Tile]) -> None:
            with contextlib.suppress(Exception), torch.inference_mode():  # reported when it is timed
                product(op, inputs[pair[0]], pair[1], weights)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(run, dict.fromkeys(pairs)))
        torch.cuda.synchronize()


def _fields(tile: Tile) -> dict[str, object]:
    """What differs from a Tile's defaults, so that the table stays short."""
    defaults = {f.name: f.default for f in dataclasses.fields(Tile)}
    return {name: value for name, value in dataclasses.asdict(tile).items() if value != defaults[name]}


def merge(old: list[dict[str, object]], new: list[dict[str, object]]) -> list[dict[str, object]]:
    def key(row: dict[str, object]) -> tuple[object, ...]:
        return row["op"], row["n"], row["k"], row["m"]

    return [row for _, row in sorted({**{key(row): row for row in old}, **{key(row): row for row in new}}.items())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--ops", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--no-hopper", action="store_true", help="leave out the warp-specialised kernel")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.triton_available():
        parser.error("needs a CUDA device and triton")
    torch.manual_seed(0)
    began = time.perf_counter()
    tuner = Tuner(options.seconds, not options.no_hopper)
    with torch.inference_mode():
        for op in options.ops:
            tuner.compile(op)
        print(f"compiled in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
        for n, k in dict.fromkeys(FP8_SHAPES + BF16_SHAPES):
            w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
            if (n, k) in FP8_SHAPES and {"fp8_gemm", "fp8_linear"} & set(options.ops):
                weights = out_of_cache(*kernels.weight_quant(w))
                for op in ("fp8_gemm", "fp8_linear"):
                    for m in ROWS[op] if op in options.ops else ():
                        tuner.tune(op, n, k, m, weights)
            if (n, k) in BF16_SHAPES and "linear" in options.ops:
                weights = out_of_cache(w)
                for m in ROWS["linear"]:
                    tuner.tune("linear", n, k, m, weights)
    old = json.loads(TABLE.read_text(encoding="utf-8"))
    lines = ",\n".join(json.dumps(row) for row in merge(old, tuner.rows))
    replace_text(options.out, f"[\n{lines}\n]\n" if lines else "[]\n")
    if tuner.skipped:
        print(f"no time left for {len(tuner.skipped)} cases: {'; '.join(tuner.skipped)}", file=sys.stderr)
    print(f"{len(tuner.rows)} rows in {time.perf_counter() - began:.0f} s: {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
