"""One MoE layer on one GPU with random weights, from the router to the residual: microseconds, and share of the limit.

    python benchmarks/moe_decode.py                        all cases, with the layer step by step as peer
    python benchmarks/moe_decode.py --cases 16B-bf16 --tokens 1 8 64 --no-peer
    python benchmarks/moe_decode.py --tune                 times of candidate tiles instead (about half a minute a case)

Times are medians over replays of a CUDA graph that holds the layer several times with other tokens each, so that no
expert is found in the L2 cache. The limit of a decode step is that of bytes: the touched experts, the shared ones and
the router's weights, read once at 3.0 TB/s (measured on an H100); that of a prefill is the arithmetic at 780 TFLOPS in
BF16 and 1,340 in FP8. "router" and "experts" are the two operations alone. Results are compared with the reference
before anything is timed. Writes results/moe_decode.<device>.json.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Row, Samples, Setting, table, versions_of, write

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dsv3 import ModelConfig, kernels
from dsv3.layers.moe import MoE
from dsv3.parallel.group import Parallel

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
READ = 3.0e12  # bytes per second
FLOPS = {torch.bfloat16: 780e12, torch.float8_e4m3fn: 1340e12}
TOLERANCE = {torch.bfloat16: 8e-3, torch.float8_e4m3fn: 2e-2}  # as in tests/kernels/tolerances.py
CASES = {
    "16B-bf16": ("config_16B.json", torch.bfloat16),
    "16B-fp8": ("config_16B.json", torch.float8_e4m3fn),
    "671B-fp8": ("config_671B.json", torch.float8_e4m3fn),
}
TOKENS = (1, 8, 64, 256, 4096)


@dataclass
class Layer:
    """Random weights, and what the operations take of them."""

    config: ModelConfig
    dtype: torch.dtype
    moe: MoE
    experts: kernels.ExpertWeights
    shared: kernels.SharedWeights

    @classmethod
    def random(cls, config: ModelConfig, dtype: torch.dtype) -> "Layer":
        torch.manual_seed(0)
        with torch.device("cuda"):
            moe = MoE(config, dtype=dtype, parallel=Parallel()).requires_grad_(False)
        mlp = moe.shared_experts
        assert mlp is not None
        torch.nn.init.normal_(moe.gate.weight, std=config.dim**-0.5)
        if moe.gate.bias is not None:
            moe.gate.bias.zero_()
        experts, parts = moe.experts, (mlp.w1, mlp.w3, mlp.w2)
        for e in range(config.n_routed_experts):  # one at a time: in FP32 all of them would not fit
            for i in range(2):
                fill(experts.w13[e, i], None if experts.w13_scale is None else experts.w13_scale[e, i])
            fill(experts.w2[e], None if experts.w2_scale is None else experts.w2_scale[e])
        for linear in parts:
            fill(linear.weight, linear.scale)
        weights = kernels.ExpertWeights(experts.w13, experts.w2, experts.w13_scale, experts.w2_scale)
        shared = kernels.SharedWeights(*(p.weight for p in parts), *(p.scale for p in parts))
        return cls(config, dtype, moe, weights, shared)

    def route(self, x_TD: torch.Tensor) -> kernels.Routed:
        config, gate = self.config, self.moe.gate
        return kernels.route(
            x_TD,
            gate.weight,
            gate.bias,
            top_k=config.n_activated_experts,
            n_groups=config.n_expert_groups,
            n_limited=config.n_limited_groups,
            sigmoid=config.score_func == "sigmoid",
            route_scale=config.route_scale,
        )

    def experts_of(self, x_TD: torch.Tensor, routed: kernels.Routed, backend: kernels.Backend | None = None):
        return kernels.moe_experts(
            x_TD, routed, self.experts, self.shared, x_TD, self.config.scale_fmt, backend=backend
        )

    def step_by_step(self, x_TD: torch.Tensor) -> torch.Tensor:
        """The layer without the operations measured here: sort, grouped products, combine, one after the other."""
        moe = self.moe
        assert moe.shared_experts is not None
        return x_TD + (moe.routed(x_TD, *moe.gate(x_TD)) + moe.shared_experts(x_TD))

    def limit(self, routed: kernels.Routed) -> tuple[float, int]:
        """Seconds, and how many experts were touched."""
        touched = int((routed.places_ET > 0).any(1).sum())
        expert = sum(w[0].nbytes for w in self.experts if w is not None)
        shared = sum(w.nbytes for w in self.shared if w is not None)
        T, config = routed.indices_TK.shape[0], self.config
        width = (config.n_activated_experts + config.n_shared_experts) * config.moe_inter_dim
        flops = 2 * T * 3 * width * config.dim
        read = touched * expert + shared + self.moe.gate.weight.nbytes
        return max(read / READ, flops / FLOPS[self.dtype]), touched


def fill(w: torch.Tensor, scale: torch.Tensor | None) -> None:
    x = torch.randn(w.shape, device=w.device, dtype=torch.bfloat16) * w.shape[-1] ** -0.5
    if scale is None:
        w.copy_(x)
    else:
        codes, scales = kernels.weight_quant(x)
        w.copy_(codes)
        scale.copy_(scales)


def microseconds(call: Callable[[torch.Tensor], object], inputs: list[torch.Tensor], replays: int = 20) -> Samples:
    """Per call, over a graph that calls once for each input."""
    for x in inputs[:2]:
        call(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for x in inputs:
            call(x)
    graph.replay()
    times = []
    for _ in range(replays):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(inputs))
    return Samples.of(times)


def inputs_of(layer: Layer, T: int) -> list[torch.Tensor]:
    n = 16 if T == 1 else 8 if T <= 64 else 2
    return [torch.randn(T, layer.config.dim, device="cuda").bfloat16() for _ in range(n)]


def check(layer: Layer, x_TD: torch.Tensor, routed: kernels.Routed) -> float:
    y, expected = (layer.experts_of(x_TD, routed, backend).float() for backend in ("triton", "reference"))
    error = float((y - expected).norm() / expected.norm())
    if not error <= TOLERANCE[layer.dtype]:
        raise SystemExit(f"relative error {error:.1e} at T = {len(x_TD)}")
    return error


def measure(layer: Layer, name: str, T: int, setting: Setting, with_peer: bool) -> Iterable[Row]:
    inputs = inputs_of(layer, T)
    routes = [layer.route(x) for x in inputs]
    error = check(layer, inputs[0], routes[0])
    limits, touched = zip(*(layer.limit(routed) for routed in routes), strict=True)
    limit = statistics.mean(limits) * 1e6
    notes = {"touched": statistics.mean(touched), "error": error, "tokens": T}
    peer, peer_samples = None, None
    if with_peer:
        peer, peer_samples = "step by step", microseconds(layer.step_by_step, inputs)
    queue = dict(zip(map(id, inputs), routes, strict=True))
    whole = microseconds(lambda x: layer.experts_of(x, layer.route(x)), inputs)
    yield speed(setting, f"{name} T={T} layer", whole, limit, peer, peer_samples, notes)
    only = microseconds(lambda x: layer.experts_of(x, queue[id(x)]), inputs)
    yield speed(setting, f"{name} T={T} experts", only, limit, None, None, notes)
    routing = microseconds(layer.route, inputs)
    yield setting.row(f"{name} T={T} router", routing, "µs", "lower", notes={"tokens": T})


def speed(
    setting: Setting,
    case: str,
    ours: Samples,
    limit: float,
    peer: str | None,
    peer_samples: Samples | None,
    notes: dict[str, object],
) -> Row:
    """Calls per second, so that a share of the limit reads as one; the microseconds stand in the notes."""
    notes = {**notes, "us": round(ours.median, 2), "limit_us": round(limit, 2)}
    if peer_samples:
        notes["peer_us"] = round(peer_samples.median, 2)
    print(f"{case:28} {ours.median:9.1f} µs  limit {limit:9.1f}  {limit / ours.median:5.0%}  {notes}", file=sys.stderr)
    rates = [Samples.of(1e6 / t for t in s.values) if s else None for s in (ours, peer_samples)]
    assert rates[0] is not None
    return setting.row(
        case, rates[0], "layers/s", "higher", peer=peer, peer_samples=rates[1], limit=1e6 / limit, notes=notes
    )


# --- tuning ---------------------------------------------------------------------------------------------------------


def candidates(T: int, dtype: torch.dtype) -> tuple[list[object], list[object]]:
    """Tiles (or strips, for one token) of launch 1 and of launch 2."""
    from dsv3.kernels.experts import Tile
    from dsv3.kernels.one_token import Strip

    fp8 = dtype == torch.float8_e4m3fn
    if T > 256:
        k = 128 if fp8 else 64
        first = [(128, 64, k, 8, 4), (128, 64, k, 8, 3), (64, 128, k, 8, 4), (128, 128, k, 8, 3), (64, 64, k, 4, 4)]
        second = [(128, 128, k, 8, 4), (128, 128, k, 8, 3), (64, 128, k, 4, 4), (128, 64, k, 4, 4)]
        second += [] if fp8 else [(128, 256, k, 8, 3)]
        return [Tile(*it) for it in first], [Tile(*it) for it in second]
    m = 16 if T <= 64 else 32
    first = [(32, 128, 4, 4), (32, 128, 4, 5), (64, 128, 4, 3), (64, 128, 4, 3, True), (64, 128, 4, 4, True)]
    first += [(128, 128, 4, 3, True), (128, 128, 8, 3, True)]
    second = [(64, 128, 4, 4), (32, 128, 4, 6), (64, 128, 4, 4, True), (64, 128, 4, 5, True), (128, 128, 4, 3, True)]
    if not fp8:
        first += [(64, 64, 4, 5, True), (32, 256, 4, 3)]
        second += [(64, 64, 4, 6, True), (128, 64, 4, 5, True)]
    else:
        second += [(128, 128, 4, 5, True)]
    tiles = [[Tile(m, *it) for it in side] for side in (first, second)]
    if T == 1:
        strips = [(8, 512, 4, 3), (8, 512, 4, 1), (4, 1024, 4, 3), (4, 1024, 4, 1), (8, 1024, 4, 3), (16, 256, 4, 4)]
        strips += [(16, 512, 8, 3), (4, 512, 4, 1), (8, 256, 4, 4)]
        for side in tiles:
            side[:0] = [Strip(*it) for it in strips]  # type: ignore[misc]
    return tiles[0], tiles[1]


def tune(layer: Layer, name: str, T: int) -> None:
    """Times of the experts with each candidate for launch 1, then, with the best of those, for launch 2."""
    from dsv3.kernels import experts, one_token

    inputs = inputs_of(layer, T)
    queue = {id(x): layer.route(x) for x in inputs}

    def run(x: torch.Tensor, pair: tuple) -> torch.Tensor:
        args = (x, queue[id(x)], layer.experts, layer.shared, x, layer.config.scale_fmt)
        if isinstance(pair[0], experts.Tile):
            return experts.moe_experts(*args, tiles=pair)
        return one_token.moe_experts(*args, strips=pair)

    def attempt(pair: tuple) -> float:
        try:
            return microseconds(lambda x: run(x, pair), inputs, replays=7).median
        except Exception as error:  # a tile that needs more shared memory than there is
            print(f"  {pair}: {type(error).__name__}", file=sys.stderr)
            return float("inf")

    firsts, seconds = candidates(T, layer.dtype)
    for kind in {type(it) for it in firsts}:
        a, b = ([it for it in side if isinstance(it, kind)] for side in (firsts, seconds))
        n = max(len(a), len(b))
        pairs = [(a[min(i, len(a) - 1)], b[min(i, len(b) - 1)]) for i in range(n)]
        with ThreadPoolExecutor(12) as pool:  # compiled side by side
            list(pool.map(lambda pair: _quietly(run, inputs[0], pair), pairs))
        torch.cuda.synchronize()
        by_first = sorted((attempt((it, b[0])), it) for it in a)
        best = by_first[0][1]
        by_second = sorted((attempt((best, it)), it) for it in b)
        limit = statistics.mean(layer.limit(queue[id(x)])[0] for x in inputs) * 1e6
        for which, times in (("launch 1", by_first), ("launch 2", by_second)):
            print(f"{name} T={T} {which}, limit {limit:.1f} µs")
            for us, it in times:
                print(f"  {us:9.1f}  {it}")


def _quietly(run: Callable[..., object], x: torch.Tensor, pair: tuple) -> None:
    with contextlib.suppress(Exception):  # reported when it is timed
        run(x, pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS))
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device")
    device = torch.cuda.get_device_name()
    setting = Setting(name="moe_decode", device=device, versions=versions_of("torch", "triton"))
    rows: list[Row] = []
    with torch.no_grad():
        for name in options.cases:
            file, dtype = CASES[name]
            layer = Layer.random(ModelConfig.from_json(CONFIGS / file), dtype)
            for T in options.tokens:
                if options.tune:
                    tune(layer, name, T)
                else:
                    rows += measure(layer, name, T, setting, with_peer=not options.no_peer)
            del layer
            torch.cuda.empty_cache()
    if rows:
        print(table(rows))
        kind = next((part for part in ("H100", "H200", "A100") if part in device), device.replace(" ", "-"))
        print(write(rows, "moe_decode", kind), file=sys.stderr)


if __name__ == "__main__":
    main()
