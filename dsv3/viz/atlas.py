"""Which experts go together and what they go with, and whether a figure differs from what chance alone would give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.languages import STYLES
from dsv3.viz.theme import DEVIATION_MAP, panels, themed

MARKERS = ("o", "s", "^", "D")
"""One for each series, so that colour is not needed to tell them apart."""


@dataclass(frozen=True)
class Measured:
    """A figure, and what the same figure was in as many shuffles as ``chance`` is long."""

    value: float
    chance: Sequence[float]

    @property
    def interval(self) -> tuple[float, float]:
        """Between these lie 95% of the shuffles."""
        low, high = np.quantile(np.asarray(self.chance, dtype=float), [0.025, 0.975])
        return float(low), float(high)

    @property
    def outside(self) -> bool:
        low, high = self.interval
        return not low <= self.value <= high


Series = Mapping[str, Mapping[str, Measured]]


@themed
def draw_against_chance(series: Series, *, at: str, value: str) -> Figure:
    """A mark for each measured figure on a grey bar that holds 95% of the shuffles.

    Args:
        series: name -> place on the horizontal axis (a layer, a group) -> what was measured there. All series have the
            same places.
        at: what the places are, for the axis.
        value: what is measured, with its unit.
    """
    places = _places(series)
    width = min(14.0, max(6.5, 2.0 + 0.45 * len(places) * len(series)))
    figure, [ax] = panels(1, width, [3.6])
    step = 0.8 / len(series)
    for i, (name, measured) in enumerate(series.items()):
        x = np.arange(len(places)) + (i - (len(series) - 1) / 2) * step
        low, high = np.array([measured[place].interval for place in places]).T
        ax.bar(x, high - low, 0.8 * step, low, color="#c9c9c9", label=tr("95% by chance") if i == 0 else "_nolegend_")
        ax.plot(
            x,
            [measured[place].value for place in places],
            linestyle="none",
            marker=MARKERS[i],
            markersize=7,
            color=STYLES[i][0],
            markeredgecolor="black",
            label=name,
        )
    ax.set_xticks(range(len(places)), places)
    ax.set_xlabel(at)
    ax.set_ylabel(value)
    ax.axhline(0, color="black", lw=0.6)
    ax.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=len(series) + 1)
    return figure


def _places(series: Series) -> list[str]:
    if not 1 <= len(series) <= len(STYLES):
        raise RequestError(f"{len(series)} series cannot be drawn against chance; give 1 to {len(STYLES)}")
    places = [list(measured) for measured in series.values()]
    if not places[0] or any(other != places[0] for other in places):
        raise RequestError(f"the series stand at different places: {places}; give each of them the same ones")
    return places[0]


def describe_against_chance(series: Series, *, value: str) -> str:
    """One line of alternative text for ``draw_against_chance``: the range of each series, and how much is no chance."""
    parts: list[str] = []
    for name, measured in series.items():
        values = [one.value for one in measured.values()]
        parts.append(
            tr(
                "{name}: from {low:.2f} to {high:.2f}, {outside} of {all} outside the interval",
                name=name,
                low=min(values),
                high=max(values),
                outside=sum(one.outside for one in measured.values()),
                all=len(values),
            )
        )
    return tr(
        "Marks for the measured values, grey bars for 95% of what chance gives ({value}). {series}.",
        value=value,
        series=tr("; ").join(parts),
    )


@themed
def draw_ratios(
    ratios_RE: np.ndarray, *, rows: Sequence[str] | None = None, group_size: int | None = None, value: str
) -> Figure:
    """Heat map of row x expert of how many times more often than expected; 1, as expected, is the neutral colour.

    The colours are those of the logarithm, so that twice and half are equally strong; beyond 8 times they no longer
    change. A cell without a value (NaN: nothing to compare) is grey.

    Args:
        rows: the rows' names; None: the rows are experts too, as in a table of which are chosen together.
        group_size: experts in one group; lines separate the groups.
        value: the words at the colour bar.
    """
    ratios_RE = np.asarray(ratios_RE, dtype=float)
    if ratios_RE.ndim != 2 or (len(rows) if rows is not None else ratios_RE.shape[1]) != ratios_RE.shape[0]:
        names = "no names" if rows is None else f"{len(rows)} names"
        raise RequestError(f"ratios of shape {ratios_RE.shape} and {names} of rows do not make a table")
    n_rows, n_experts = ratios_RE.shape
    with np.errstate(divide="ignore"):
        shown = np.clip(np.log2(ratios_RE), -3.0, 3.0)
    square = rows is None
    width = min(14.0, max(6.5, 2.4 + (0.16 if square else 0.2) * n_experts))
    height = min(12.0, 1.0 + (0.15 if square else 0.32) * n_rows)
    figure, [ax] = panels(1, width, [height])
    ax.set_facecolor("#bdbdbd")
    norm = TwoSlopeNorm(vmin=-3.0, vcenter=0.0, vmax=3.0)
    image = ax.imshow(shown, cmap=DEVIATION_MAP, norm=norm, aspect="equal" if square else "auto")
    for border in range(group_size or n_experts, n_experts, group_size or n_experts):
        ax.axvline(border - 0.5, color="black", lw=1.0)
        if square:
            ax.axhline(border - 0.5, color="black", lw=1.0)
    if rows is None:
        ax.yaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        ax.set_ylabel(tr("expert"))
    else:
        ax.set_yticks(range(n_rows), rows)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=16 if not square else 8, integer=True))
    ax.set_xlabel(tr("expert, with lines between the groups") if group_size else tr("expert"))
    bar = figure.colorbar(image, ax=ax, pad=0.02, ticks=[-3, -2, -1, 0, 1, 2, 3])
    bar.ax.set_yticklabels(["≤1/8", "1/4", "1/2", "1", "2", "4", "≥8"])
    bar.set_label(value)
    return figure


def describe_ratios(ratios_RE: np.ndarray, *, rows: Sequence[str] | None = None, value: str) -> str:
    """One line of alternative text for ``draw_ratios``: its sizes, its highest cell, and how many cells are far off."""
    ratios_RE = np.asarray(ratios_RE, dtype=float)
    known = ratios_RE[~np.isnan(ratios_RE)]
    row, expert = np.unravel_index(int(np.nanargmax(ratios_RE)), ratios_RE.shape)
    return tr(
        "Heat map of {rows} rows and {experts} experts ({value}). The highest is {row} with expert {expert}: "
        "{times:.1f} times; {often} of {all} cells are above 2, {seldom} below 1/2.",
        rows=ratios_RE.shape[0],
        experts=ratios_RE.shape[1],
        value=value,
        row=tr("expert {index}", index=row) if rows is None else rows[int(row)],
        expert=expert,
        times=float(ratios_RE[row, expert]),
        often=int((known > 2).sum()),
        seldom=int((known < 0.5).sum()),
        all=known.size,
    )
