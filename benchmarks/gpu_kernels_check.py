"""Every Triton kernel against its reference on a CUDA device, at the shapes of DeepSeek models and at awkward ones.

    python benchmarks/gpu_kernels_check.py [--golden fp8_ops.safetensors] > kernels.json

The table goes to stderr as it grows, one JSON object to stdout; the exit status is 1 if a check failed. The
tolerances are those of the tests (tests/kernels/tolerances.py). Times are medians with a cold L2 cache, after tuning;
the whole run takes about a minute on an H100.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the checkout that this script belongs to, installed or not

from dsv3 import kernels  # noqa: E402
from tests.kernels.tolerances import (  # noqa: E402
    GEMM_BF16,
    GEMM_TENSOR_CORE,
    GOLDEN_GEMM,
    GROUPED_BF16,
    relative_error,
    same_bits,
    worst_row_error,
)

ROWS = (1, 7, 83, 4097)
LINEARS = {  # name: (N, K)
    "671B wq_a": (1536, 7168),
    "671B wkv_a": (576, 7168),
    "671B wq_b": (24576, 1536),
    "671B wo": (7168, 16384),
    "671B expert w1": (2048, 7168),
    "671B expert w2": (7168, 2048),
    "16B dense w1": (10944, 2048),
    "16B dense w2": (2048, 10944),
    "nothing divides": (130, 300),
}
GROUPED = {  # name: (experts, F, D, mean rows per expert)
    "16B decode": (64, 1408, 2048, 1),
    "16B prefill": (64, 1408, 2048, 96),
    "671B rank of 32": (32, 4096, 7168, 16),
    "nothing divides": (5, 130, 300, 7),
}
FORMATS = (None, "ue8m0")


@dataclass
class Row:
    """One check. `error` is relative (0: bit-equal); times in milliseconds; `rate` in TFLOP/s for products, GB/s
    otherwise."""

    op: str
    case: str
    error: float
    tolerance: float
    ms: float | None = None
    reference_ms: float | None = None
    rate: float | None = None
    tile: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance


class Report:
    HEADER = f"{'op':<20}{'case':<36}{'error':>10}{'allowed':>10}{'ms':>9}{'other ms':>9}{'rate':>9}  tile"

    def __init__(self) -> None:
        self.rows: list[Row] = []
        print(self.HEADER, file=sys.stderr)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        numbers = "".join(f"{'' if x is None else f'{x:.3f}':>9}" for x in (row.ms, row.reference_ms, row.rate))
        verdict = "" if row.ok else "  FAILED"
        line = f"{row.op:<20}{row.case:<36}{row.error:>10.1e}{row.tolerance:>10.1e}{numbers}  {row.tile}{verdict}"
        print(line, file=sys.stderr, flush=True)


def milliseconds(call: Callable[[], object]) -> float:
    import triton

    return float(triton.testing.do_bench(call, warmup=5, rep=20, return_mode="median"))


def bits_differ(got: torch.Tensor, expected: torch.Tensor) -> float:
    """0 or 1, to be allowed 0: for results that must be equal bit for bit."""
    equal = same_bits(got, expected) if got.dtype == kernels.E4M3 else torch.equal(got, expected)
    return float(not equal)


def random(*shape: int) -> torch.Tensor:
    """BF16 numbers whose rows differ in size by up to 2^±8."""
    size = torch.exp2(torch.randint(-8, 9, (*shape[:-1], 1), device="cuda"))
    return (torch.randn(*shape, device="cuda") * size).bfloat16()


def check_quantisation(report: Report) -> None:
    for shape in [(1, 7168), (7, 576), (83, 10944), (4097, 7168), (33, 129)]:
        for scale_fmt in FORMATS:
            x = random(*shape)
            x[0] = 0
            quantise = functools.partial(kernels.act_quant, x, scale_fmt=scale_fmt)
            report.add(compare_quantisation("act_quant", f"{shape} {scale_fmt}", quantise, x.numel()))
    for shape in [(576, 7168), (10944, 2048), (24576, 1536), (4, 2048, 7168), (3, 130, 300)]:
        for scale_fmt in FORMATS:
            w = random(*shape)
            w[..., :128, :128] = 0
            quantise = functools.partial(kernels.weight_quant, w, scale_fmt=scale_fmt)
            report.add(compare_quantisation("weight_quant", f"{shape} {scale_fmt}", quantise, w.numel()))
        q, s = kernels.weight_quant(w)
        restore = functools.partial(kernels.weight_dequant, q, s)
        error = bits_differ(restore(backend="triton"), restore(backend="reference"))
        ms = milliseconds(functools.partial(restore, backend="triton"))
        report.add(Row("weight_dequant", f"{shape}", error, 0.0, ms, rate=3 * q.numel() / ms / 1e6))


def compare_quantisation(op: str, case: str, quantise: Callable[..., tuple], n_elements: int) -> Row:
    (q, s), (q_expected, s_expected) = quantise(backend="triton"), quantise(backend="reference")
    error = max(bits_differ(q, q_expected), bits_differ(s, s_expected))
    ms = milliseconds(functools.partial(quantise, backend="triton"))
    return Row(op, case, error, 0.0, ms, rate=3 * n_elements / ms / 1e6)  # reads 2 bytes, writes 1


def check_gemm(report: Report) -> None:
    from dsv3.kernels.tiles import choose

    for name, (n, k) in LINEARS.items():
        w = torch.randn(n, k, device="cuda").bfloat16()
        b, b_s = kernels.weight_quant(w)
        for m in ROWS:
            x = random(m, k)
            a, a_s = kernels.act_quant(x, scale_fmt=FORMATS[m % 2])
            multiply = functools.partial(kernels.fp8_gemm, a, a_s, b, b_s)
            error = worst_row_error(multiply(backend="triton"), multiply(backend="reference"))
            ms = milliseconds(functools.partial(multiply, backend="triton"))
            bf16_ms = milliseconds(functools.partial(torch.nn.functional.linear, x, w))
            tile = str(choose("fp8_gemm", m, n, k))
            case = f"{name} M={m} N={n} K={k}"
            report.add(Row("fp8_gemm", case, error, GEMM_BF16, ms, bf16_ms, 2 * m * n * k / ms / 1e9, tile))
    a, a_s = kernels.act_quant(random(83, 7168))
    b, b_s = kernels.weight_quant(random(576, 7168))
    results = [kernels.fp8_gemm(a, a_s, b, b_s, torch.float32, backend=it) for it in ("triton", "reference")]
    report.add(Row("fp8_gemm", "FP32 output M=83 N=576 K=7168", worst_row_error(*results), GEMM_TENSOR_CORE))


def tile_of(kernel: object) -> str:
    config = kernel.best_config  # type: ignore[attr-defined]
    return f"{config.kwargs['BLOCK_M']}x{config.kwargs['BLOCK_N']} {config.num_warps}w {config.num_stages}s"


def random_counts(n_experts: int, mean: int) -> torch.Tensor:
    """Rows per expert, uneven, some zero, with a sum of n_experts * mean."""
    popularity = torch.rand(n_experts, device="cuda") ** 3
    choices = torch.multinomial(popularity, n_experts * mean, replacement=True)
    return torch.bincount(choices, minlength=n_experts)


def check_grouped(report: Report) -> None:
    from dsv3.kernels import gemm

    for name, (n_experts, f, d, mean) in GROUPED.items():
        counts = random_counts(n_experts, mean)
        m = n_experts * mean
        x, w = random(m, d), torch.randn(n_experts, f, d, device="cuda").bfloat16()
        q, s = kernels.weight_quant(w)
        multiply = functools.partial(kernels.fp8_grouped_linear, x, q, s, counts)
        error = worst_row_error(multiply(backend="triton"), multiply(backend="reference"))
        ms = milliseconds(functools.partial(multiply, backend="triton"))
        bf16_ms = milliseconds(functools.partial(kernels.grouped_linear, x, w, counts))
        case, rate = f"{name} E={n_experts} M={m}", 2 * m * f * d / ms / 1e9
        tile = tile_of(gemm._fp8_grouped_kernel)
        report.add(Row("fp8_grouped_linear", case, error, GEMM_BF16, ms, bf16_ms, rate, tile))

        x, w = x.requires_grad_(), w.requires_grad_()
        y, expected = kernels.grouped_linear(x, w, counts), loop(x, w, counts)
        sides = [(y, expected), *zip(gradients(y, x, w), gradients(expected, x, w), strict=True)]
        for what, (got, wanted) in zip(("y", "dx", "dw"), sides, strict=True):
            report.add(Row("grouped_linear", f"{case} {what}", relative_error(got, wanted), GROUPED_BF16))


def loop(x: torch.Tensor, w: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    runs = zip(x.split(counts.tolist()), w.unbind(), strict=True)
    return torch.cat([torch.nn.functional.linear(rows, weight) for rows, weight in runs])


def gradients(y: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    direction = torch.linspace(-1, 1, y.numel(), device=y.device).reshape(y.shape).to(y.dtype)
    return torch.autograd.grad(y, (x, w), direction)


def check_cuda_graph(report: Report) -> None:
    """Captured once, replayed with other counts: nothing on the host may depend on them."""
    x, w = random(640, 2048), torch.randn(64, 1408, 2048, device="cuda").bfloat16()
    q, s = kernels.weight_quant(w)
    counts = random_counts(64, 10)
    for op, call, tolerance in (
        ("fp8_grouped_linear", lambda: kernels.fp8_grouped_linear(x, q, s, counts), GEMM_BF16),
        ("grouped_linear", lambda: kernels.grouped_linear(x, w, counts), GROUPED_BF16),
    ):
        call()  # compiles and tunes: neither can be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = call()
        counts.copy_(random_counts(64, 10))
        graph.replay()
        report.add(Row(op, "CUDA graph, new counts", relative_error(y, call()), tolerance))


def check_golden(report: Report, path: Path) -> None:
    """The official kernels' results, which the references reproduce on a CPU, from the Triton kernels here."""
    from safetensors.torch import load_file

    golden = {
        k: v.view(kernels.E4M3) if v.dtype == torch.uint8 else v for k, v in load_file(path, device="cuda").items()
    }
    for scale_fmt, suffix in ((None, ""), ("ue8m0", "_ue8m0")):
        q, s = kernels.act_quant(golden["x"], scale_fmt=scale_fmt, backend="triton")
        error = max(bits_differ(q, golden[f"act_q{suffix}"]), bits_differ(s, golden[f"act_s{suffix}"]))
        report.add(Row("act_quant", f"golden {scale_fmt}", error, 0.0))
        y = kernels.fp8_gemm(q, s, golden["w_q"], golden["w_s"], backend="triton")
        report.add(Row("fp8_gemm", f"golden {scale_fmt}", worst_row_error(y, golden[f"gemm{suffix}"]), GOLDEN_GEMM))
    w = kernels.weight_dequant(golden["w_q"], golden["w_s"], backend="triton")
    report.add(Row("weight_dequant", "golden", bits_differ(w, golden["w_dequant"]), 0.0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=Path, help="fp8_ops.safetensors, the official kernels' inputs and outputs")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.triton_available():
        parser.error("needs a CUDA device and triton")
    import triton

    started = time.perf_counter()
    torch.manual_seed(0)
    report = Report()
    if options.golden:
        check_golden(report, options.golden)
    for check in (check_quantisation, check_gemm, check_grouped, check_cuda_graph):
        check(report)
    failed = [row for row in report.rows if not row.ok]
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "seconds": round(time.perf_counter() - started, 1),
        "checks": len(report.rows),
        "failed": len(failed),
        "rows": [{**asdict(row), "ok": row.ok} for row in report.rows],
    }
    print(f"{len(report.rows)} checks, {len(failed)} failed, {result['seconds']} s", file=sys.stderr)
    print(json.dumps(result))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
