"""A token's way through the files of the model, station by station, with the shapes that it has at each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import TENSOR, themed

WIDTH = 8.4
"""Of the figure. This module measures everything in inches: a box must hold its text."""

INDENT, LINE, GAP, PAD = 0.42, 0.24, 0.14, 0.09
CHIPS_PER_LINE = 4
MONO = "DejaVu Sans Mono"

# The beginning of a tensor's name -> its colour; every other tensor is pale.
COLOURS = {
    "q_": TENSOR["q"],
    "c_kv": TENSOR["c_kv"],
    "k_pe": TENSOR["k_pe"],
    "routed": TENSOR["experts"],
    "indices": TENSOR["experts"],
    "weights": TENSOR["experts"],
    "scales": TENSOR["scales"],
}
PALE = "#d9d9d9"


@dataclass(frozen=True)
class Station:
    """One stop: a part of the model, its file, what it does, and tensors that pass, as name -> shape.

    depth: how many parts have called one another to get here; 0 is the model itself. layers: in how many layers the
    token stops here; 0: outside the layers.
    """

    name: str
    file: str
    does: str
    tensors: Mapping[str, Sequence[int]]
    depth: int = 0
    layers: int = 0

    @property
    def height(self) -> float:
        return 2 * PAD + LINE * (2 + -(-len(self.tensors) // CHIPS_PER_LINE))


@themed
def draw_token_way(stations: Sequence[Station], *, start: str, end: str) -> Figure:
    """Stations from top to bottom in the order of the token's visits; a part stands to the right of the one it serves.

    Args:
        start: what goes in, above the first station. end: what comes out, below the last.
    """
    _check(stations)
    height = 2 * (LINE + GAP) + sum(station.height + GAP for station in stations)
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_xlim(0, WIDTH)
    ax.set_ylim(height, 0)
    ax.set_axis_off()

    rail = 0.24
    ax.text(rail + INDENT / 2, GAP + LINE / 2, start, va="center", fontsize=11)
    middles: list[float] = []
    y = GAP + LINE + GAP
    for station in stations:
        middles.append(y + station.height / 2)
        _draw_station(ax, station, rail + INDENT * (station.depth + 0.5), y)
        y += station.height + GAP
    ax.text(rail + INDENT / 2, y + LINE / 2, end, va="center", fontsize=11)

    # The token's line: down the rail past the stations of depth 0; from each part a line to those that serve it.
    arrow = {"arrowstyle": "-|>", "color": "#5d6675", "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (rail, y + LINE / 2), (rail, GAP + LINE / 2), arrowprops=arrow)
    for i, station in enumerate(stations):
        x = rail + INDENT * station.depth
        if station.depth:
            caller = max(j for j in range(i) if stations[j].depth == station.depth - 1)
            ax.plot([x, x], [middles[caller] + stations[caller].height / 2, middles[i]], color="#9aa3b2", lw=1.2)
        ax.plot([x, x + INDENT / 2], [middles[i], middles[i]], color="#9aa3b2", lw=1.2)
    return figure


def _check(stations: Sequence[Station]) -> None:
    if not stations or stations[0].depth != 0:
        raise RequestError("a token's way needs stations, and the first of them has depth 0: it is the model itself")
    for before, station in pairwise(stations):
        if not 0 <= station.depth <= before.depth + 1:
            raise RequestError(
                f"station {station.name} has depth {station.depth} behind one of depth {before.depth}; a part is at "
                "most one deeper than the part before it, which called it"
            )


def _draw_station(ax: Axes, station: Station, left: float, top: float) -> None:
    right = WIDTH - 0.15
    ax.add_patch(
        FancyBboxPatch(
            (left, top), right - left, station.height, boxstyle="round,pad=0,rounding_size=0.06", facecolor="#f4f5f8",
            edgecolor="#9aa3b2", lw=1.0,
        )
    )  # fmt: skip
    first = top + PAD + LINE / 2
    ax.text(left + PAD, first, station.name, va="center", fontsize=11)
    ax.text(left + PAD + 1.25, first, station.file, va="center", fontsize=9, family=MONO, color="#444444")
    if station.layers:
        where = tr("in {n} layers", n=station.layers)
        ax.text(right - PAD, first, where, va="center", ha="right", fontsize=9)
    ax.text(left + PAD, first + LINE, station.does, va="center", fontsize=9.5)
    width = (right - left - 2 * PAD) / CHIPS_PER_LINE
    for i, (name, shape) in enumerate(station.tensors.items()):
        row, column = divmod(i, CHIPS_PER_LINE)
        x, y = left + PAD + column * width, first + LINE * (2 + row)
        ax.add_patch(Rectangle((x, y - 0.055), 0.11, 0.11, facecolor=_colour(name), edgecolor="#222222", lw=0.6))
        ax.text(x + 0.17, y, f"{name} {_shape(shape)}", va="center", fontsize=9)


def _colour(name: str) -> str:
    return next((colour for beginning, colour in COLOURS.items() if name.startswith(beginning)), PALE)


def _shape(shape: Sequence[int]) -> str:
    return "×".join(f"{size}" for size in shape)


def describe_token_way(stations: Sequence[Station], *, start: str, end: str) -> str:
    """One line of alternative text: every station with its tensors."""
    stops = [
        tr(
            "{name} ({file}): {tensors}",
            name=station.name,
            file=station.file,
            tensors=tr(", ").join(f"{name} {_shape(shape)}" for name, shape in station.tensors.items()),
        )
        for station in stations
    ]
    return tr("A token's way from “{start}” to “{end}”. {stops}.", start=start, end=end, stops=tr("; ").join(stops))
