"""Figures about scale: where the parameters are, what fills the memory of a machine, and the roofline."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import TENSOR, themed

# Colour and hatch of each part, in the order in which bars are stacked.
PARTS = {
    "routed experts": (TENSOR["experts"], ""),
    "shared experts": (TENSOR["experts"], "////"),
    "attention": (TENSOR["q"], ""),
    "dense FFN": ("#9fc5e8", ""),
    "embedding": ("#d9d9d9", ""),
    "head": ("#d9d9d9", "...."),
    "gate and norms": ("#222222", ""),
}
MEMORY = {"weights": (TENSOR["experts"], ""), "cache": (TENSOR["c_kv"], "////")}

Counts = Mapping[str, Mapping[str, float]]


def _part_names() -> dict[str, str]:
    return {
        "routed experts": tr("routed experts"),
        "shared experts": tr("shared experts"),
        "attention": tr("attention"),
        "dense FFN": tr("dense FFN"),
        "embedding": tr("embedding"),
        "head": tr("output head"),
        "gate and norms": tr("gate and norms"),
    }


@themed
def draw_parameter_shares(models: Counts, *, label_from: float = 0.08) -> Figure:
    """A bar for each model, cut into the shares of its parts; a share of at least ``label_from`` is written on it.

    Args:
        models: bar -> part -> number of parameters; the parts are those of ``PARTS``.
    """
    unknown = sorted({part for counts in models.values() for part in counts} - set(PARTS))
    if unknown:
        raise RequestError(f"no part of a model is called {', '.join(unknown)}; known are {', '.join(PARTS)}")
    if not models or any(sum(counts.values()) <= 0 for counts in models.values()):
        raise RequestError("there are no parameters to draw: give at least one model with some")
    figure = Figure(figsize=(8.4, 1.7 + 0.36 * len(models)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    names = _part_names()
    lefts = [0.0] * len(models)
    for part, (colour, hatch) in PARTS.items():
        shares = [counts.get(part, 0) / sum(counts.values()) for counts in models.values()]
        if not any(shares):
            continue
        rows = range(len(models))
        ax.barh(rows, shares, 0.72, lefts, color=colour, hatch=hatch, edgecolor="white", lw=0.5, label=names[part])
        for row, share in enumerate(shares):
            if share >= label_from:
                pale = colour.startswith(("#d9", "#9f"))
                box: dict[str, Any] | None = {"facecolor": colour, "edgecolor": "none", "pad": 1.0} if hatch else None
                ax.text(
                    lefts[row] + share / 2, row, f"{share:.0%}", ha="center", va="center", bbox=box,
                    color="black" if pale else "white",
                )  # fmt: skip
            lefts[row] += share
    ax.set_yticks(range(len(models)), list(models))
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{share:.0%}"))
    ax.set_xlabel(tr("share of the parameters"))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def describe_parameter_shares(models: Counts) -> str:
    """One line of alternative text: the share of the routed experts in each bar."""
    shares = [
        tr("{model}: {share:.0%}", model=model, share=counts.get("routed experts", 0) / sum(counts.values()))
        for model, counts in models.items()
    ]
    return tr("Bars of the shares of a model's parts. Routed experts hold: {shares}.", shares=tr("; ").join(shares))


@themed
def draw_memory(rows: Counts, capacities: Mapping[str, float]) -> Figure:
    """Bytes of weights and cache as stacked bars in GB, against the memory of machines.

    Args:
        rows: bar -> {"weights": bytes, "cache": bytes}. capacities: machine -> bytes; a dashed line each.
    """
    if not rows or not capacities:
        raise RequestError("there is nothing to compare: give at least one bar and one machine's memory")
    unknown = sorted({part for parts in rows.values() for part in parts} - set(MEMORY))
    if unknown:
        raise RequestError(f"no part of the memory is called {', '.join(unknown)}; known are {', '.join(MEMORY)}")
    figure = Figure(figsize=(8.4, 1.9 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    names = {"weights": tr("weights"), "cache": tr("latent cache")}
    lefts = [0.0] * len(rows)
    for part, (colour, hatch) in MEMORY.items():
        sizes = [parts.get(part, 0) / 1e9 for parts in rows.values()]
        ax.barh(
            range(len(rows)), sizes, 0.66, lefts, color=colour, hatch=hatch, edgecolor="white", lw=0, label=names[part]
        )
        lefts = [left + size for left, size in zip(lefts, sizes)]
    right = 1.18 * max(lefts)
    for row, total in enumerate(lefts):
        ax.text(total + 0.012 * right, row, f"{total:,.0f} GB", va="center", fontsize=9)
    for machine, size in capacities.items():
        if size / 1e9 <= right:
            ax.axvline(size / 1e9, color="#222222", ls="--", lw=1.1)
            ax.annotate(
                machine, (size / 1e9, 1.0), xycoords=("data", "axes fraction"), xytext=(0, 3),
                textcoords="offset points", ha="center", va="bottom", fontsize=9, rotation=18,
            )  # fmt: skip
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set_xlim(0, right)
    ax.set_xlabel(tr("GB (dashed: memory of a machine)"))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def describe_memory(rows: Counts, capacities: Mapping[str, float]) -> str:
    """One line of alternative text: the size of each bar and the smallest of the machines that holds it."""
    parts: list[str] = []
    for name, sizes in rows.items():
        total = sum(sizes.values())
        holding = [machine for machine, size in capacities.items() if size >= total]
        smallest = min(holding, key=capacities.__getitem__) if holding else tr("none of them")
        parts.append(tr("{name}: {gb:,.0f} GB, fits {machine}", name=name, gb=total / 1e9, machine=smallest))
    return tr("Bars of weights and cache. {bars}.", bars=tr("; ").join(parts))


Points = Mapping[str, Sequence[tuple[int, float]]]

# Fill of the marker, its shape, and a darker shade of the same for its number.
MARKS = (("#0072b2", "o", "#0072b2"), ("#e69f00", "s", "#8a5a00"), ("#7a5195", "^", "#7a5195"))


@themed
def draw_roofline(points: Points, *, bandwidth: float, peak: float) -> Figure:
    """What a GPU can reach at each arithmetic intensity, and where decoding with some batch sizes stands under it.

    Args:
        points: model -> (batch size, FLOPs per byte), by rising batch size. bandwidth: bytes/s. peak: FLOP/s.
    """
    if not any(points.values()) or bandwidth <= 0 or peak <= 0:
        raise RequestError("a roofline needs a bandwidth and a peak above 0, and at least one point")
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ridge = peak / bandwidth
    every = [intensity for series in points.values() for _, intensity in series]
    low, high = min(0.5, *every) / 1.3, 4 * max(ridge, *every)
    ax.plot([low, ridge, high], [low * bandwidth / 1e12, peak / 1e12, peak / 1e12], color="#222222", lw=2.0)
    ax.axvline(ridge, color="#666666", lw=1.0, ls=":")
    ax.annotate(
        tr("ridge: {n:.0f} FLOP per byte", n=ridge), (ridge, low * bandwidth / 1e12), xytext=(-5, 4),
        textcoords="offset points", ha="right", fontsize=9,
    )  # fmt: skip
    for turn, ((model, series), (colour, marker, dark)) in enumerate(zip(points.items(), MARKS)):
        reached = [min(intensity * bandwidth, peak) / 1e12 for _, intensity in series]
        ax.plot(
            [i for _, i in series], reached, color=colour, ls="none", marker=marker, markersize=7,
            markeredgecolor="black", label=model,
        )  # fmt: skip
        for (batch, intensity), y in zip(series, reached):
            offset, align = ((-6, 5), "right") if turn == 0 else ((6, -11), "left")
            ax.annotate(
                f"{batch:,}", (intensity, y), xytext=offset, textcoords="offset points", ha=align, color=dark,
                fontsize=9,
            )  # fmt: skip
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(low, high)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(tr("arithmetic intensity (FLOP per byte)"))
    ax.set_ylabel(tr("reachable (TFLOP per second)"))
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", frameon=False, title=tr("decoding; numbers: batch size"))
    return figure


def describe_roofline(points: Points, *, bandwidth: float, peak: float) -> str:
    """One line of alternative text: both ends of each line, and the ridge."""
    parts = [
        tr(
            "{model}: {low:.3g} FLOP per byte at batch {first:,}, {high:.3g} at batch {last:,}",
            model=model,
            low=series[0][1],
            first=series[0][0],
            high=series[-1][1],
            last=series[-1][0],
        )
        for model, series in points.items()
    ]
    return tr(
        "Roofline with its ridge at {ridge:.0f} FLOP per byte. {models}.",
        ridge=peak / bandwidth,
        models=tr("; ").join(parts),
    )
