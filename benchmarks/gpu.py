"""What benchmarks of GPU kernels share: what an H100 can do, time per call from a CUDA graph, operands out of cache."""

import itertools
from collections.abc import Callable, Sequence

import torch
from common import Samples

READ = 3.0e12
"""Bytes per second, as measured on an H100; so are the two below, in FLOP per second."""
BF16, FP8 = 780e12, 1340e12

OUT_OF_CACHE = 150e6
"""Bytes of weights that a measurement goes round, three times the L2 cache: none of them is found there again."""

Call = Callable[[], object]


def microseconds(calls: Sequence[Call], replays: int = 15, at_least: float = 300.0) -> Samples:
    """Time per call, over replays of a CUDA graph that makes all the calls in turn, for ``at_least`` microseconds."""
    for call in calls[:2]:
        call()  # compiles, and takes what memory it needs
    torch.cuda.synchronize()
    once = _replays(_record(calls), 2)[-1]
    rounds = max(1, round(at_least / once))
    graph = _record(list(calls) * rounds) if rounds > 1 else _record(calls)
    return Samples.of(time / len(calls) / rounds for time in _replays(graph, replays + 1)[1:])


def _record(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _replays(graph: torch.cuda.CUDAGraph, n: int) -> list[float]:
    """Microseconds of each of n replays, which follow each other without a pause."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(n + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.synchronize()
    return [1e3 * a.elapsed_time(b) for a, b in itertools.pairwise(events)]


def out_of_cache(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Copies of the tensors, which belong together, as many as exceed the cache."""
    size = sum(x.nbytes for x in tensors)
    n = min(128, max(1, -(-int(OUT_OF_CACHE) // size)))
    return [tensors, *(tuple(x.clone() for x in tensors) for _ in range(n - 1))]


def kind(device: str) -> str:
    """How a result's file calls the device: "NVIDIA H100 80GB HBM3" is an H100."""
    return next((part for part in ("H100", "H200", "A100") if part in device), device.replace(" ", "-"))
