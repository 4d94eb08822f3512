"""Figures about FP8: which numbers e4m3 has, what scales do to the error, how a sum of few bits goes wrong."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter
from torch import Tensor

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import panels, themed

E4M3_BIAS, E4M3_EXPONENTS = 7, 16
SMALLEST_NORMAL = 2.0**-6

# Okabe and Ito's palette without its red and green; line style and marker say the same.
STYLES = (("#0072b2", "-", "o"), ("#e69f00", "--", "s"), ("#7a5195", "-.", "^"), ("#222222", ":", "D"))
INK, SHADE = "#0072b2", "#e8e8e8"


def power_of_two(value: float) -> str:
    """A power of two as text, 2⁻⁶: no mathtext, which has no Chinese beside it."""
    return "2" + str(round(math.log2(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _log2_axis(ax: Axes, axis: str, low: float, high: float, step: int) -> None:
    """A base-2 axis from ``low`` to ``high``, a labelled tick at every ``step``-th power."""
    scale, limits, it = (
        (ax.set_xscale, ax.set_xlim, ax.xaxis) if axis == "x" else (ax.set_yscale, ax.set_ylim, ax.yaxis)
    )
    scale("log", base=2)
    limits(low, high)
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    it.set_major_locator(FixedLocator([2.0**e for e in range(first, last + 1) if e % step == 0]))
    it.set_minor_locator(NullLocator())
    it.set_major_formatter(FuncFormatter(lambda value, _: power_of_two(value)))


# ----------------------------------------------------------------------------------------------------- number line


def _positive(values: Tensor) -> np.ndarray:
    finite = values.detach().double().flatten()
    finite = finite[finite.isfinite()].abs().unique()
    if finite.numel() < 3:
        raise RequestError(f"{finite.numel()} different magnitudes make no number line: give the values of all codes")
    return finite.numpy()


@themed
def draw_number_line(values: Tensor) -> Figure:
    """Three views of a small number format: all magnitudes, those near zero, and the gap above each of them.

    Args:
        values: what the codes stand for, in any order; signs, NaN and repetitions are dropped.
    """
    magnitudes = _positive(values)
    figure, (whole, near, gaps) = panels(3, 8.5, [1.15, 1.25, 2.9])
    zoom = 4 * SMALLEST_NORMAL
    for ax, numbers in ((whole, magnitudes), (near, magnitudes[magnitudes <= zoom])):
        ax.vlines(numbers, 0, 1, color=INK, linewidth=1.0)
        ax.set_yticks([])
        ax.set_ylim(0, 1)
        ax.set_xlim(-0.01 * numbers[-1], 1.01 * numbers[-1])
        for side in ("left", "right", "top"):
            ax.spines[side].set_visible(False)
    whole.set_title(tr("every magnitude, one line each (largest {largest:g})", largest=magnitudes[-1]), loc="left")
    near.set_title(
        tr("near zero; grey: the subnormals, below {normal}", normal=power_of_two(SMALLEST_NORMAL)), loc="left"
    )
    near.axvspan(0, SMALLEST_NORMAL, color=SHADE, zorder=0)
    positions = [0.0, *(2.0**e for e in range(-8, -3))]
    near.set_xticks(positions, ["0", *map(power_of_two, positions[1:])])
    gaps.step(magnitudes[1:], np.diff(magnitudes), where="pre", color=INK, linewidth=2.0)
    _log2_axis(gaps, "x", magnitudes[1] / 1.2, magnitudes[-1] * 1.2, 2)
    _log2_axis(gaps, "y", 2.0**-10, 2.0**6, 2)
    gaps.axvspan(magnitudes[1] / 1.2, SMALLEST_NORMAL, color=SHADE, zorder=0)
    gaps.set_xlabel(tr("value (no unit)"))
    gaps.set_ylabel(tr("gap to the number below"))
    gaps.grid(alpha=0.3)
    return figure


def describe_number_line(values: Tensor) -> str:
    magnitudes = _positive(values)
    gaps = np.diff(magnitudes)
    return tr(
        "Number line of {count} magnitudes up to {largest:g}. Below {normal} they are evenly spaced, {first} apart; "
        "above, the gap doubles with every power of two and ends at {last:g}.",
        count=len(magnitudes),
        largest=magnitudes[-1],
        normal=power_of_two(SMALLEST_NORMAL),
        first=power_of_two(gaps[0]),
        last=gaps[-1],
    )


# ----------------------------------------------------------------------------------------------------------- errors


def relative_errors(restored: Tensor, x: Tensor) -> Tensor:
    """|restored - x| / |x| by element, flat, where x is not zero. 1 means that the element was lost."""
    kept = x != 0
    return ((restored.double() - x.double()).abs()[kept] / x.double().abs()[kept]).flatten()


@themed
def draw_error_histogram(errors: Mapping[str, Tensor]) -> Figure:
    """Histogram of relative errors by element on a base-2 axis; a line for each way of scaling.

    Args:
        errors: name -> relative errors (``relative_errors``). Exact elements stand in the first bin.
    """
    _check_styles(errors)
    edges = 2.0 ** np.arange(-12, 1.26, 0.5)
    figure, (ax,) = panels(1, 8.0, [3.4])
    for (name, error), (colour, style, _) in zip(errors.items(), STYLES):
        numbers = np.clip(error.detach().double().numpy(), edges[0], edges[-2])
        counts, _ = np.histogram(numbers, bins=edges)
        label = tr("{name}: median {median:.1%}, lost {lost:.1%}", name=name, **_summary(error))
        ax.stairs(counts / len(numbers), edges, color=colour, linestyle=style, linewidth=2.0, label=label)
    _log2_axis(ax, "x", edges[0], edges[-1], 2)
    ax.axvline(2.0**-4, color="#7f7f7f", linewidth=1.0)
    ax.annotate(
        tr("half a gap of e4m3"), (2.0**-4, 0.97), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", ha="left", va="top", color="#555555", fontsize=9,
    )  # fmt: skip
    ax.set_xlabel(tr("relative error of an element (1 = lost)"))
    ax.set_ylabel(tr("share of the elements"))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", frameon=False, handlelength=3.0)
    ax.set_ylim(top=ax.get_ylim()[1] * 1.3)
    return figure


def _summary(error: Tensor) -> dict[str, float]:
    return {"median": float(error.median()), "lost": float((error >= 1).double().mean())}


def describe_error_histogram(errors: Mapping[str, Tensor]) -> str:
    parts = [
        tr("{name}: median {median:.1%}, lost {lost:.1%}", name=name, **_summary(error))
        for name, error in errors.items()
    ]
    return tr("Histogram of the relative error by element. {parts}.", parts=tr("; ").join(parts))


@themed
def draw_error_maps(maps: Mapping[str, Tensor], columns: int = 128) -> Figure:
    """Heat maps of the relative error of each tile: rows are tokens, columns are groups of ``columns`` channels.

    One logarithmic scale for all panels. Args: maps: title -> errors (tokens, groups), each positive or zero.
    """
    shapes = {tuple(errors.shape) for errors in maps.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise RequestError(f"error maps of the shapes {sorted(shapes)}: give matrices of one shape, tokens by groups")
    ((rows, groups),) = shapes
    figure = Figure(figsize=(9.0, 1.4 + 0.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    numbers = {title: np.clip(errors.detach().double().numpy(), 1e-4, None) for title, errors in maps.items()}
    low, high = min(float(n.min()) for n in numbers.values()), max(float(n.max()) for n in numbers.values())
    norm = LogNorm(low, high)
    image = None
    for ax, (title, errors) in zip(axes, numbers.items()):
        image = ax.imshow(errors, norm=norm, cmap="cividis", aspect="auto", interpolation="nearest")
        ax.set_title(title, loc="left")
        ax.set_xticks(range(groups))
        ax.set_xlabel(tr("group of {columns} channels", columns=columns))
    axes[0].set_ylabel(tr("token"))
    axes[0].yaxis.set_major_locator(MaxNLocator(integer=True))
    assert image is not None
    ticks = [tick for e in range(-4, 1) for tick in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= tick <= high]
    bar = figure.colorbar(image, ax=list(axes), pad=0.02, ticks=ticks)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    bar.set_label(tr("relative error of a tile"))
    return figure


def describe_error_maps(maps: Mapping[str, Tensor]) -> str:
    parts = [
        tr(
            "{name}: median {median:.1%}, worst tile {worst:.0%}",
            name=title,
            median=float(errors.median()),
            worst=float(errors.max()),
        )
        for title, errors in maps.items()
    ]
    return tr("Heat maps of the relative error by token and group of channels. {parts}.", parts=tr("; ").join(parts))


# ----------------------------------------------------------------------------------------------------- accumulation


@themed
def draw_accumulation(lengths: Sequence[int], errors: Mapping[str, Sequence[float]]) -> Figure:
    """Relative error of a dot product by its length K, both axes logarithmic; a line for each way of adding up."""
    _check_styles(errors)
    for name, curve in errors.items():
        if len(curve) != len(lengths):
            raise RequestError(f"{name!r} has {len(curve)} errors, and there are {len(lengths)} lengths")
    figure, (ax,) = panels(1, 8.5, [3.4])
    for (name, curve), (colour, style, marker) in zip(errors.items(), STYLES):
        ax.plot(lengths, curve, color=colour, linestyle=style, marker=marker, linewidth=2.0, label=name)
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(lengths), [str(k) for k in lengths])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(tr("terms of the sum, K"))
    ax.set_ylabel(tr("relative error"))
    ax.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.0)
    return figure


def describe_accumulation(lengths: Sequence[int], errors: Mapping[str, Sequence[float]]) -> str:
    parts = [
        tr("{name}: from {first:.2g}% to {last:.2g}%", name=name, first=100 * curve[0], last=100 * curve[-1])
        for name, curve in errors.items()
    ]
    return tr(
        "Relative error of a sum by its length, from {short} to {long} terms. {parts}.",
        short=lengths[0],
        long=lengths[-1],
        parts=tr("; ").join(parts),
    )


# -------------------------------------------------------------------------------------------- what a model's files hold


def code_exponents(codes: Tensor) -> Tensor:
    """How many e4m3 codes have each exponent field, 0 (zero and the subnormals) to 15 (up to 448)."""
    fields = (codes.flatten().view(torch.uint8).int() >> 3) & (E4M3_EXPONENTS - 1)
    return torch.bincount(fields, minlength=E4M3_EXPONENTS)


@themed
def draw_scales_and_codes(scales: Mapping[str, Tensor], codes: Tensor) -> Figure:
    """Left: every scale of a model, a row for each kind of weight. Right: the codes by their power of two.

    Args:
        scales: kind of weight -> its scales, positive. codes: e4m3 codes, of any shape.
    """
    if not scales or any(s.numel() == 0 or not bool((s > 0).all()) for s in scales.values()):
        raise RequestError("scales must be positive, at least one for each kind of weight")
    figure = Figure(figsize=(9.5, max(3.2, 0.9 + 0.33 * len(scales))), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for row, s in enumerate(scales.values()):
        numbers = s.detach().double().flatten().numpy()
        left.plot(numbers, np.full(len(numbers), row), "|", color=INK, alpha=0.5, markersize=11)
        left.plot(np.median(numbers), row, "D", color="#e69f00", markeredgecolor="black", markersize=6)
    low, high = min(float(s.min()) for s in scales.values()), max(float(s.max()) for s in scales.values())
    _log2_axis(left, "x", low / 1.5, high * 1.5, 1)
    left.set_yticks(range(len(scales)), list(scales))
    left.set_ylim(len(scales) - 0.5, -0.5)
    left.grid(alpha=0.3, axis="x")
    left.set_xlabel(tr("scale (line: a block; diamond: median)"))
    shares = code_exponents(codes).double().numpy() / codes.numel()
    colours = ["#9a9a9a", *[INK] * (E4M3_EXPONENTS - 1)]
    right.bar(range(E4M3_EXPONENTS), shares, color=colours, hatch=["///", *[""] * 15], edgecolor="white")
    named = [0, *range(3, E4M3_EXPONENTS, 2)]
    right.set_xticks(named, ["<2⁻⁶", *(power_of_two(2.0 ** (e - E4M3_BIAS)) for e in named[1:])])
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.set_xlabel(tr("power of two of the code (hatched: subnormal or zero)"))
    right.set_ylabel(tr("share of the codes"))
    right.grid(alpha=0.3, axis="y")
    return figure


def describe_scales_and_codes(scales: Mapping[str, Tensor], codes: Tensor) -> str:
    smallest, largest = min(float(s.min()) for s in scales.values()), max(float(s.max()) for s in scales.values())
    exponents = code_exponents(codes)
    return tr(
        "Scales of {kinds} kinds of weight, from {smallest:.2g} to {largest:.2g}, and the codes by power of two: the "
        "fullest bar begins at {common}, and {subnormal:.1%} are subnormal or zero.",
        kinds=len(scales),
        smallest=smallest,
        largest=largest,
        common=power_of_two(2.0 ** (int(exponents.argmax()) - E4M3_BIAS)),
        subnormal=float(exponents[0]) / codes.numel(),
    )


def _check_styles(curves: Mapping[str, object]) -> None:
    if not 1 <= len(curves) <= len(STYLES):
        raise RequestError(f"{len(curves)} curves to draw; there are styles for 1 to {len(STYLES)}")
