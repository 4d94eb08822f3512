"""What the commands print about a run, on stderr: speed, and how evenly the experts were used."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dsv3.engine import LLM, EngineStats, RequestMetrics
    from dsv3.expert_load import LayerLoad

Records = dict[str, list["Tensor"]]

LEVELS = "▁▂▃▄▅▆▇█"
"""Bars of a load sparkline; the fourth is the uniform load, the last is twice that or more."""

IDLE = "·"
MAX_BARS = 64
NO_LOAD = "no expert load: no token has passed an MoE layer"


def say(text: str) -> None:
    print(text, file=sys.stderr)


def total_speed(stats: "EngineStats") -> str:
    """One line about all requests: tokens and tokens per second of both phases, accepted drafts."""
    return (
        f"prompt {stats.prefill_tokens} tokens at {stats.prefill_tokens_per_second:.0f}/s · "
        f"decode {stats.decode_tokens} tokens at {stats.decode_tokens_per_second:.0f}/s"
        + _acceptance(stats.accepted, stats.drafted)
    )


def request_speed(metrics: "RequestMetrics") -> str:
    """One line about one request: tokens per second after the first, time to the first, accepted drafts."""
    return (
        f"{metrics.output_tokens} tokens at {metrics.tokens_per_second:.0f}/s · "
        f"first token after {metrics.ttft:.2f} s" + _acceptance(metrics.accepted, metrics.drafted)
    )


def _acceptance(accepted: int, drafted: int) -> str:
    return f" · MTP drafts accepted: {accepted / drafted:.0%} of {drafted}" if drafted else ""


@contextmanager
def watch_experts(llm: "LLM", wanted: bool) -> Iterator[Records]:
    """Record which experts each token goes to, where that is ``wanted``; the records stay empty otherwise."""
    if not wanted:
        yield {}
        return
    from dsv3.probe import capture

    with capture(llm.model, "gate.indices_TK") as records:
        yield records


def expert_loads(llm: "LLM", records: Records) -> "list[LayerLoad]":
    from dsv3.expert_load import loads_from_records

    return loads_from_records(records, llm.config.n_routed_experts)


def expert_table(groups: "Mapping[str, Sequence[LayerLoad]]") -> str:
    """Layers as rows, in groups under a title: sparkline of the load, extremes, entropy, MaxVio; then a legend."""
    if not any(groups.values()):
        return NO_LOAD
    n_experts = next(layer for layers in groups.values() for layer in layers).counts_E.numel()
    bars = min(n_experts, MAX_BARS)
    columns = f"{'busiest':>14}{'idlest':>14}{'entropy':>9}{'MaxVio':>8}"
    lines: list[str] = []
    for title, layers in groups.items():
        lines.append(f"{title:<10}{'load by expert':<{bars}}{columns}")
        for layer in layers:
            extremes = "".join(f"{f'#{expert} {share:.1%}':>14}" for expert, share in (layer.busiest, layer.idlest))
            figures = f"{layer.entropy:>9.1%}{layer.max_violation:>8.2f}"
            lines.append(f"{layer.name:<10}{sparkline(layer.counts_E):<{bars}}{extremes}{figures}")
    fair = f"{LEVELS[3]} the uniform load ({1 / n_experts:.1%}), {LEVELS[-1]} twice that or more, {IDLE} none"
    shared = f"; {n_experts} experts drawn as {bars} bars" if bars < n_experts else ""
    lines.append(f"{fair}{shared}; entropy as a share of log {n_experts}; MaxVio = (max - mean) / mean")
    return "\n".join(lines)


def sparkline(counts_E: "Tensor") -> str:
    """The load as one character per expert, or per group of neighbours where there are more than MAX_BARS."""
    from dsv3.expert_load import relative_load

    groups = relative_load(counts_E).tensor_split(min(counts_E.numel(), MAX_BARS))
    loads = [float(group.mean()) for group in groups]
    return "".join(IDLE if load == 0 else LEVELS[min(max(round(4 * load) - 1, 0), 7)] for load in loads)


def save_expert_plot(groups: "Mapping[str, Sequence[LayerLoad]]", path: Path) -> None:
    """Draw the heat map of ``groups`` into ``path`` and say so, with its description."""
    if not any(groups.values()):
        say(f"no figure: {NO_LOAD}")
        return
    from dsv3 import viz

    description = viz.describe_expert_load(groups)
    viz.save(viz.draw_expert_load(groups), path, description=description)
    say(f"wrote {path}: {description}")
