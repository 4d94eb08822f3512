"""Figures about the gate: which experts each token chose, how its copies travel, how many experts a batch wakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.routing import BUSIEST
from dsv3.viz.theme import panels, themed

ROUTES_MAP = "cividis"
CHOSEN = "●"
"""Marks a chosen expert where the cells are too small to hold a framed number."""

_CELL, _SMALL_CELL = 0.56, 0.2  # inches: a number of 9 points fits into the first
_WRITTEN = 12  # up to so many experts, the values are written into the cells


@dataclass(frozen=True)
class Routes:
    """What one gate did with T tokens: ``values_TE`` gives the colours, ``indices_TK`` the chosen experts.

    values_TE may be affinities or gating values; 0 where there is none. open_TG: which groups each token may use;
    None where there are no groups.
    """

    values_TE: ArrayLike
    indices_TK: ArrayLike
    open_TG: ArrayLike | None = None


@themed
def draw_routes(
    routes: Mapping[str, Routes], *, value: str, tokens: Sequence[str] | None = None, n_groups: int = 1
) -> Figure:
    """Heat maps token x expert, one below the other on one scale; the chosen experts are framed or dotted.

    Args:
        routes: title -> what a gate did. All have the same tokens and experts.
        value: what the colour bar says, with its unit.
        tokens: a label for each row; None numbers them.
        n_groups: groups of neighbouring experts; lines separate them, and closed groups are hatched.
    """
    tables = _tables(routes)
    n_tokens, n_experts = next(iter(tables.values())).shape
    if n_experts % n_groups:
        raise RequestError(f"{n_experts} experts do not divide into {n_groups} groups")
    written = n_experts <= _WRITTEN
    cell = _CELL if written else _SMALL_CELL
    names = [f"{t}" for t in range(n_tokens)] if tokens is None else [*tokens]
    if len(names) != n_tokens:
        raise RequestError(f"there are {len(names)} labels for {n_tokens} tokens")
    heights = [0.55 + 0.26 * n_tokens for _ in tables]
    heights[-1] += 0.4  # the axis label below
    figure, axes = panels(len(tables), min(13.0, max(6.0, 2.4 + cell * n_experts)), heights)
    norm = Normalize(0.0, max(float(table.max()) for table in tables.values()) or 1.0)
    image = None
    for ax, (title, table_TE) in zip(axes, tables.items(), strict=True):
        route = routes[title]
        image = ax.imshow(table_TE, cmap=ROUTES_MAP, norm=norm, aspect="auto", interpolation="nearest")
        indices_TK = np.asarray(route.indices_TK)
        size = n_experts // n_groups
        open_TG = np.ones((n_tokens, n_groups), bool) if route.open_TG is None else np.asarray(route.open_TG, bool)
        open_TE = open_TG.repeat(size, axis=1)
        _mark(ax, np.where(open_TE, table_TE, np.nan), table_TE, indices_TK, norm, written=written)
        for border in range(size, n_experts, size):
            ax.axvline(border - 0.5, color="white", lw=2.5)
        _close(ax, open_TG, size)
        ax.set_title(title, loc="left")
        ax.set_yticks(range(n_tokens), names)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        ax.tick_params(length=0)
        if tokens is None:
            ax.set_ylabel(tr("token"))
    last = axes[-1]
    if n_groups > 1:
        last.set_xlabel(tr("expert, with lines between the groups"))
    else:
        last.set_xlabel(tr("expert"))
    assert image is not None
    figure.colorbar(image, ax=axes, pad=0.02).set_label(value)
    return figure


def _tables(routes: Mapping[str, Routes]) -> dict[str, np.ndarray]:
    if not routes:
        raise RequestError("there are no routes to draw: give at least one gate's")
    tables = {title: np.asarray(route.values_TE, dtype=float) for title, route in routes.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise RequestError(f"the values have the shapes {sorted(shapes)}; all must be the same (tokens, experts)")
    return tables


def _mark(
    ax: Axes, seen_TE: np.ndarray, table_TE: np.ndarray, indices_TK: np.ndarray, norm: Normalize, *, written: bool
) -> None:
    """A frame around each chosen expert and its value written, or a dot where there is no room for that.

    seen_TE is NaN where a closed group's veil hides the colour: there the ink is black.
    """
    chosen = {(t, int(e)) for t, experts in enumerate(indices_TK) for e in experts}
    for (t, e), value in np.ndenumerate(table_TE):
        ink = "white" if norm(seen_TE[t, e]) <= 0.55 else "black"
        if written:
            ax.text(e, t, f"{value:.2f}", ha="center", va="center", fontsize=9, color=ink, zorder=5)
        elif (t, e) in chosen:
            ax.text(e, t, CHOSEN, ha="center", va="center", fontsize=9, color=ink, zorder=5)
    for t, e in sorted(chosen if written else ()):
        for colour, width in (("black", 3.4), ("white", 1.6)):
            frame = Rectangle((e - 0.46, t - 0.44), 0.92, 0.88, fill=False, edgecolor=colour, lw=width, zorder=4)
            ax.add_patch(frame)


def _close(ax: Axes, open_TG: np.ndarray, size: int) -> None:
    """A veil with hatching over every closed group of every token."""
    for t, g in np.argwhere(~open_TG):
        place = (g * size - 0.5, t - 0.5)
        ax.add_patch(Rectangle(place, size, 1.0, facecolor="white", alpha=0.72, lw=0, zorder=2))
        ax.add_patch(Rectangle(place, size, 1.0, fill=False, hatch="//", edgecolor="#9a9a9a", lw=0, zorder=3))


def describe_routes(routes: Mapping[str, Routes], *, value: str) -> str:
    """One line of alternative text for ``draw_routes``: what it shows, and for each gate who is busy and who idle."""
    tables = _tables(routes)
    n_tokens, n_experts = next(iter(tables.values())).shape
    parts: list[str] = []
    for title, route in routes.items():
        counts_E = np.bincount(np.asarray(route.indices_TK).ravel(), minlength=n_experts)
        parts.append(
            tr(
                "{title}: expert {expert} is chosen most, {times} times; experts that no token chose: {idle}",
                title=title,
                expert=int(counts_E.argmax()),
                times=int(counts_E.max()),
                idle=int((counts_E == 0).sum()),
            )
        )
    return tr(
        "Heat map of {tokens} tokens and {experts} experts; the colour is the {value}. {panels}.",
        tokens=n_tokens,
        experts=n_experts,
        value=value,
        panels=tr("; ").join(parts),
    )


# ----------------------------------------------------------------------------------------------------------- load


@themed
def draw_load_bars(counts: Mapping[str, ArrayLike]) -> Figure:
    """Bars of each expert's load in multiples of the uniform load, a panel for each batch, on one scale.

    Args:
        counts: title -> routed copies per expert. The busiest expert of a panel is hatched and marked.
    """
    loads = _loads(counts)
    top = max(float(load.max()) for load in loads.values())
    n_experts = max(len(load) for load in loads.values())
    heights = [1.6] * len(loads)
    heights[-1] += 0.4  # the axis label below
    figure, axes = panels(len(loads), min(12.0, max(6.5, 1.5 + 0.12 * n_experts)), heights)
    for ax, (title, load_E) in zip(axes, loads.items(), strict=True):
        busiest = int(load_E.argmax())
        bars = ax.bar(range(len(load_E)), load_E, 0.85, color="#4c5c8a", edgecolor="white", lw=0)
        bars[busiest].set(facecolor="#e08214", hatch="////")
        ax.text(busiest, load_E[busiest], BUSIEST, ha="center", va="bottom", fontsize=9)
        ax.axhline(1.0, color="black", lw=1.2, ls="--")
        ax.set_title(title, loc="left")
        ax.set(xlim=(-0.8, len(load_E) - 0.2), ylim=(0, 1.15 * top))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        ax.tick_params(labelbottom=ax is axes[-1])
    axes[-1].set_xlabel(tr("expert ({busiest} the busiest; dashed: the uniform load)", busiest=BUSIEST))
    figure.supylabel(tr("load (multiples of the uniform load)"), fontsize=10)
    return figure


def _loads(counts: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    if not counts:
        raise RequestError("there is no load to draw: give at least one batch's counts")
    loads: dict[str, np.ndarray] = {}
    for title, counts_E in counts.items():
        load_E = np.asarray(counts_E, dtype=float)
        if load_E.ndim != 1 or load_E.sum() <= 0:
            raise RequestError(
                f"the counts of {title!r} have shape {load_E.shape} and sum {load_E.sum():g}; nothing to draw"
            )
        loads[title] = load_E / load_E.mean()
    return loads


def describe_load_bars(counts: Mapping[str, ArrayLike]) -> str:
    """One line of alternative text for ``draw_load_bars``: the extremes of each panel."""
    parts = [
        tr(
            "{title}: the busiest is expert {expert} with {high:.2f} times the uniform load, the idlest has {low:.2f}",
            title=title,
            expert=int(load_E.argmax()),
            high=float(load_E.max()),
            low=float(load_E.min()),
        )
        for title, load_E in _loads(counts).items()
    ]
    return tr("Bars of the load of each expert. {panels}.", panels=tr("; ").join(parts))


# ------------------------------------------------------------------------------------------------------- dispatch

_HATCHES = ("", "////", "....", "xxxx")


@themed
def draw_dispatch(indices_TK: ArrayLike, n_experts: int) -> Figure:
    """Tokens above, their copies sorted by expert below, and the way of each copy: what ``dispatch`` does.

    Args:
        indices_TK: the experts of each token.
        n_experts: experts in all; those that nobody chose keep a place of their own, which is empty.
    """
    indices = _routes_of(indices_TK, n_experts)
    n_tokens, k = indices.shape
    experts_M = indices.ravel()
    order_M = experts_M.argsort(kind="stable")
    places, labels, at = np.zeros(len(order_M)), [], 0.0
    for expert in range(n_experts):  # rows of one expert stand together; a gap separates the experts
        rows = np.flatnonzero(experts_M[order_M] == expert)
        places[rows] = at + np.arange(len(rows))
        width = max(len(rows), 1)
        labels.append((at, width, expert, len(rows)))
        at += width + 0.5
    tokens_x = (np.arange(n_tokens) + 0.5) * (at - 0.5) / n_tokens - 0.5
    colours = matplotlib.colormaps[ROUTES_MAP](np.linspace(0.05, 0.95, n_tokens))

    figure = Figure(figsize=(min(12.0, max(6.5, 0.52 * at)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for t in range(n_tokens):
        _box(ax, tokens_x[t], 1.0, f"{t}", tuple(colours[t]), _HATCHES[t % len(_HATCHES)])
    for row, pair in enumerate(order_M):
        t = pair // k
        _box(ax, places[row], 0.0, f"{t}", tuple(colours[t]), _HATCHES[t % len(_HATCHES)])
        ax.plot([tokens_x[t], places[row]], [0.91, 0.09], color=colours[t], lw=1.6, zorder=1)
    for left, width, expert, count in labels:
        ax.add_patch(Rectangle((left - 0.56, -0.15), width + 0.12, 0.30, fill=False, edgecolor="black", lw=1.0))
        ax.text(left + (width - 1) / 2, -0.22, f"{expert}", ha="center", va="top", fontsize=10)
        ax.text(left + (width - 1) / 2, -0.36, f"{count}", ha="center", va="top", fontsize=9, color="#555555")
    ax.set(xlim=(-0.9, at - 0.4), ylim=(-0.52, 1.15), xticks=[])
    ax.set_yticks([1.0, 0.0, -0.27, -0.41], [tr("tokens"), tr("rows"), tr("expert"), tr("its rows")])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return figure


def _routes_of(indices_TK: ArrayLike, n_experts: int) -> np.ndarray:
    indices = np.asarray(indices_TK)
    if indices.ndim != 2 or indices.size == 0:
        raise RequestError(f"the chosen experts have shape {indices.shape}; expected (tokens, experts of each)")
    if indices.min() < 0 or indices.max() >= n_experts:
        raise RequestError(f"expert {indices.max()} was chosen, but there are {n_experts} experts")
    return indices


def _box(ax: Axes, x: float, y: float, label: str, colour: tuple[float, ...], hatch: str) -> None:
    ax.add_patch(Rectangle((x - 0.42, y - 0.09), 0.84, 0.18, facecolor=colour, edgecolor="white", hatch=hatch, lw=0))
    frame = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
    ax.text(x, y, label, ha="center", va="center", fontsize=9, bbox=frame)


def describe_dispatch(indices_TK: ArrayLike, n_experts: int) -> str:
    indices = _routes_of(indices_TK, n_experts)
    counts_E = np.bincount(indices.ravel(), minlength=n_experts)
    return tr(
        "{tokens} tokens above, {rows} rows below, sorted by expert, with a line for each copy. Rows of the experts in "
        "their order: {counts}.",
        tokens=len(indices),
        rows=indices.size,
        counts=", ".join(map(str, counts_E)),
    )


# ---------------------------------------------------------------------------------------------------- batch's experts


@themed
def draw_experts_touched(
    tokens: Sequence[int], touched: Sequence[int], expected: Sequence[float], n_experts: int
) -> Figure:
    """How many experts a batch needs, by its number of tokens: counted, and expected of independent, even choices."""
    if not len(tokens) == len(touched) == len(expected) > 0:
        raise RequestError(
            f"there are {len(tokens)} batch sizes, {len(touched)} counts and {len(expected)} expectations; give as many"
        )
    figure, (ax,) = panels(1, 6.5, [3.2])
    ax.plot(tokens, expected, color="#0072b2", lw=1.8, label=tr("expected of even, independent choices"))
    ax.plot(tokens, touched, "o", color="#e69f00", markeredgecolor="black", markersize=7, label=tr("counted"))
    ax.axhline(n_experts, color="#555555", ls="--", lw=1.0, label=tr("all experts"))
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(tokens), [f"{t}" for t in tokens])
    ax.set_xlabel(tr("tokens in the batch"))
    ax.set_ylabel(tr("experts with at least one row"))
    ax.set_ylim(0, n_experts * 1.08)
    ax.grid(alpha=0.3)
    ax.legend(loc="lower right", frameon=False)
    return figure


def describe_experts_touched(tokens: Sequence[int], touched: Sequence[int], n_experts: int) -> str:
    return tr(
        "Experts with at least one row, of {experts}, by the number of tokens in the batch: {points}.",
        experts=n_experts,
        points=tr("; ").join(f"{n} → {m}" for n, m in zip(tokens, touched)),
    )
