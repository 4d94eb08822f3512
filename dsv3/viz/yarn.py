"""Figures about positions: wavelengths of the rotated pairs, YaRN's ramp, perplexity along a text."""

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import panels, themed

STYLES = (
    ("#0072b2", "-", "o"),
    ("#e69f00", "--", "s"),
    ("#7a5195", "-.", "^"),
    ("#222222", ":", "D"),
    ("#56b4e9", "-", "v"),
)
"""Colour, line and marker: any one of the three tells a series from the others."""

Series = Mapping[str, Sequence[float]]


def _checked(series: Series, what: str) -> int:
    """The common length of all series."""
    if not series or not all(series.values()):
        raise RequestError(f"there are no {what} to draw: give at least one series with one value")
    lengths = {name: len(values) for name, values in series.items()}
    if len(set(lengths.values())) > 1:
        raise RequestError(f"the series of {what} have different lengths: {lengths}; give one value for each place")
    return next(iter(lengths.values()))


def _lines(ax: Axes, places: Sequence[float], series: Series) -> None:
    if len(series) > len(STYLES):
        raise RequestError(f"{len(series)} series are more than a reader can tell apart; give at most {len(STYLES)}")
    for (name, values), (colour, style, marker) in zip(series.items(), STYLES):
        ax.plot(places, values, color=colour, linestyle=style, marker=marker, markersize=4.5, linewidth=1.6, label=name)


def _tokens(ax: Axes) -> None:
    """A logarithmic axis that reads 4,096 and 0.25, not powers of 10."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.10g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


@themed
def draw_wavelengths(wavelengths: Series, contexts: Mapping[str, float]) -> Figure:
    """How many tokens a pair needs for one full turn, on a logarithmic axis, against lengths of the context.

    Args:
        wavelengths: name -> one wavelength in tokens for each pair, fastest first.
        contexts: name -> length in tokens; a horizontal line each.
    """
    n = _checked(wavelengths, "wavelengths")
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    _lines(ax, range(n), wavelengths)
    _tokens(ax)
    for name, length in contexts.items():
        ax.axhline(length, color="#666666", lw=1.2)
        ax.annotate(name, (0, length), xytext=(0, 3), textcoords="offset points", fontsize=9, va="bottom")
    ax.set_ylim(top=3 * max([*contexts.values(), *(max(values) for values in wavelengths.values())]))  # room for names
    ax.set_xlabel(tr("rotated pair, fastest first"))
    ax.set_ylabel(tr("wavelength (tokens)"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, loc="lower right")
    return figure


def describe_wavelengths(wavelengths: Series, contexts: Mapping[str, float]) -> str:
    """One line of alternative text: the range of each series, and how many pairs stay below each length."""
    parts = [
        tr(
            "{name}: from {low:,.1f} to {high:,.0f} tokens",
            name=name,
            low=min(values),
            high=max(values),
        )
        for name, values in wavelengths.items()
    ]
    below = [
        tr(
            "{name}: {counts} pairs turn fully",
            name=context,
            counts=" / ".join(f"{sum(w <= length for w in values)}" for values in wavelengths.values()),
        )
        for context, length in contexts.items()
    ]
    return tr(
        "Wavelength of each of {n} pairs. {series}. Within the lengths: {contexts}.",
        n=_checked(wavelengths, "wavelengths"),
        series=tr("; ").join(parts),
        contexts=tr("; ").join(below),
    )


@themed
def draw_ramp(turns: Series, shares: Sequence[float], *, beta_fast: float, beta_slow: float) -> Figure:
    """Two panels over the pairs: turns made by the last position, and the share to which YaRN slows a pair.

    Args:
        turns: name -> turns of each pair within some context, by some rule; logarithmic axis.
        shares: of each pair, 0: it stays, 1: it is slowed by the whole factor.
        beta_fast, beta_slow: the turns between which the ramp runs; lines in the upper panel.
    """
    n = _checked({**turns, "": shares}, "turns")
    if not turns:
        raise RequestError("there are no turns to draw: give at least one series with one value")
    figure, (above, below) = panels(2, 7.0, [3.6, 1.8])
    _lines(above, range(n), turns)
    _tokens(above)
    above.yaxis.set_major_locator(LogLocator(base=10, numticks=8))
    for name, count in (("beta_fast", beta_fast), ("beta_slow", beta_slow)):
        above.axhline(count, color="#666666", lw=1.2)
        above.annotate(
            f"{name} = {count:g}", (n - 1, count), xytext=(0, 3), textcoords="offset points", fontsize=9,
            ha="right", va="bottom",
        )  # fmt: skip
    above.set_ylabel(tr("turns by the last position"))
    above.legend(frameon=False, loc="lower left")
    below.bar(range(n), shares, 0.8, color="#0072b2")
    below.plot(range(n), shares, "o", color="#222222", markersize=3.5)  # a pair that stays has no bar to see
    below.set_ylim(-0.05, 1.1)
    below.set_yticks([0, 0.5, 1])
    below.set_ylabel(tr("share slowed"))
    below.set_xlabel(tr("rotated pair, fastest first"))
    for ax in (above, below):
        ax.set_xlim(-0.7, n - 0.3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
    return figure


def describe_ramp(turns: Series, shares: Sequence[float]) -> str:
    """One line of alternative text: how many pairs stay, are on the ramp, are slowed; turns of the slowest pair."""
    slowest = [tr("{name}: {turns:.3g}", name=name, turns=values[-1]) for name, values in turns.items()]
    return tr(
        "Of {n} pairs {stay} stay, {ramp} are on the ramp, {slowed} are slowed by the whole factor. Turns of the "
        "slowest pair by the last position: {slowest}.",
        n=len(shares),
        stay=sum(share == 0 for share in shares),
        ramp=sum(0 < share < 1 for share in shares),
        slowed=sum(share == 1 for share in shares),
        slowest=tr("; ").join(slowest),
    )


@themed
def draw_perplexity(losses: Series, width: int, lengths: Mapping[str, int]) -> Figure:
    """Perplexity along a text, a point for each stretch of ``width`` tokens, on a logarithmic axis.

    Args:
        losses: name -> mean loss in nats of each stretch, from the first on.
        lengths: name -> a length in tokens, such as the trained one; a vertical line each.
    """
    n = _checked(losses, "losses")
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    middles = [(i + 0.5) * width for i in range(n)]
    _lines(ax, middles, {name: [math.exp(loss) for loss in values] for name, values in losses.items()})
    _tokens(ax)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    for i, (name, length) in enumerate(lengths.items()):
        if length <= n * width:
            ax.axvline(length, color="#666666", lw=1.2, linestyle=("-", (0, (4, 3)))[i % 2])
            ax.annotate(
                name, (length, 1), xycoords=("data", "axes fraction"), xytext=(4, -4), textcoords="offset points",
                fontsize=9, va="top",
            )  # fmt: skip
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * 1.5)  # room for the names of the lengths
    ax.set_xlim(0, n * width)
    ax.set_xlabel(tr("position in the text (tokens)"))
    ax.set_ylabel(tr("perplexity"))
    ax.grid(alpha=0.3, which="both")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=min(3, len(losses)), frameon=False)
    return figure


def describe_perplexity(losses: Series, width: int, trained: int) -> str:
    """One line of alternative text: perplexity up to the trained length and in the last stretch."""
    inside = trained // width
    parts = [
        tr(
            "{name}: {inside:.1f} up to {trained:,} tokens, {end:.1f} in the last {width}",
            name=name,
            inside=math.exp(sum(values[:inside]) / inside),
            trained=trained,
            end=math.exp(values[-1]),
            width=width,
        )
        for name, values in losses.items()
    ]
    return tr(
        "Perplexity by position, {n:,} tokens. {series}.",
        n=width * _checked(losses, "losses"),
        series=tr("; ").join(parts),
    )
