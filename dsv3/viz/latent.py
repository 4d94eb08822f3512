"""Figures about the latent cache: its size, the cost of the two forms, where attention looks, what a rank loses."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import TENSOR, themed

HATCHES = {"k": "", "v": "////", "c_kv": "", "k_pe": "....", "scales": "xxxx"}
STYLES = (("#0072b2", "-", "o"), ("#e69f00", "--", "s"), ("#7a5195", ":", "^"), ("#222222", "-.", "D"))
PROBABILITY_MAP = "cividis"

CacheSizes = Mapping[str, Mapping[str, Mapping[str, int]]]


@themed
def draw_cache_sizes(models: CacheSizes) -> Figure:
    """Bars of the bytes that one token occupies in the cache, cut into the tensors that are stored; a panel per model.

    Args:
        models: model -> way of attending -> tensor (k, v, c_kv, k_pe or scales) -> bytes a token. Every panel has a
            scale of its own.
    """
    if not models or not all(models.values()):
        raise RequestError("there is no cache to draw: give at least one model with one way of attending")
    unknown = sorted({part for ways in models.values() for parts in ways.values() for part in parts} - set(HATCHES))
    if unknown:
        raise RequestError(f"no tensor of a cache is called {', '.join(unknown)}; known are {', '.join(HATCHES)}")
    rows = max(len(ways) for ways in models.values())
    figure = Figure(figsize=(3.3 * len(models) + 1.0, 1.3 + 0.34 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(1, len(models), squeeze=False)[0])
    for ax, (model, ways) in zip(axes, models.items(), strict=True):
        top = max(sum(parts.values()) for parts in ways.values())
        for row, parts in enumerate(ways.values()):
            left = 0
            for part, size in parts.items():
                ax.barh(
                    row, size, 0.7, left, color=TENSOR[part], hatch=HATCHES[part], edgecolor="white", lw=0, label=part
                )
                left += size
            ax.text(left + 0.02 * top, row, _bytes(left), va="center", fontsize=9)
        ax.set_title(model, loc="left")
        ax.set_yticks(range(len(ways)), list(ways))
        ax.invert_yaxis()
        ax.set_xlim(0, 1.3 * top)
        ax.xaxis.set_major_locator(MaxNLocator(nbins=3))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _bytes(size)))
        ax.set_xlabel(tr("bytes per token, all layers"))
        ax.spines[["top", "right"]].set_visible(False)
    names = {
        "k": tr("keys"), "v": tr("values"), "c_kv": tr("latent c_kv"), "k_pe": tr("rope key k_pe"),
        "scales": tr("FP8 scales"),
    }  # fmt: skip
    handles = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [part for part in HATCHES if part in handles]
    figure.legend(
        [handles[part] for part in shown], [names[part] for part in shown], loc="outside lower center",
        ncols=len(shown), frameon=False,
    )  # fmt: skip
    return figure


def _bytes(size: float) -> str:
    """1234 as 1.23 kB, 70272 as 70.3 kB, 4997120 as 5 MB; decimal units."""
    for unit, letter in ((1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.3g} {letter}"
    return f"{size:g} B"


def describe_cache_sizes(models: CacheSizes) -> str:
    """One line of alternative text: the largest and the smallest cache of every model."""
    parts: list[str] = []
    for model, ways in models.items():
        totals = {way: sum(tensors.values()) for way, tensors in ways.items()}
        largest, smallest = max(totals, key=totals.__getitem__), min(totals, key=totals.__getitem__)
        parts.append(
            tr(
                "{model}: from {low} ({smallest}) to {high} ({largest})",
                model=model,
                low=_bytes(totals[smallest]),
                smallest=smallest,
                high=_bytes(totals[largest]),
                largest=largest,
            )
        )
    return tr("Bars of the bytes that a token occupies in the cache. {models}.", models=tr("; ").join(parts))


Costs = Mapping[str, Sequence[float]]


@themed
def draw_form_costs(
    queries: Sequence[int],
    costs: Costs,
    crossing: float,
    *,
    counted: Mapping[str, Mapping[int, float]] | None = None,
) -> Figure:
    """Multiply-adds per head and cached token by the number of query tokens, a line for each form of attention.

    Args:
        queries: numbers of query tokens, increasing. costs: form -> value for each of them.
        crossing: number of queries at which the forms cost the same; a vertical line.
        counted: form -> number of queries -> what a counter found; drawn as marks on the lines.
    """
    if not queries or any(len(values) != len(queries) for values in costs.values()) or not costs:
        raise RequestError(
            f"each form needs {len(queries)} costs, one for each number of queries, and there must be one"
        )
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    for (form, values), (colour, style, marker) in zip(costs.items(), STYLES):
        ax.plot(queries, values, color=colour, linestyle=style, linewidth=2.0, label=form)
        found = (counted or {}).get(form, {})
        if found:
            ax.plot(
                list(found),
                list(found.values()),
                marker,
                color=colour,
                markersize=7,
                label=tr("counted: {form}", form=form),
            )
    ax.axvline(crossing, color="#666666", lw=1.2)
    ax.annotate(
        tr("equal at {n:.0f}", n=crossing), (crossing, ax.get_ylim()[1]), xytext=(-5, -12), textcoords="offset points",
        fontsize=9, ha="right", va="top",
    )  # fmt: skip
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:g}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(tr("query tokens in one step"))
    ax.set_ylabel(tr("multiply-adds per head\nand cached token"))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return figure


def describe_form_costs(queries: Sequence[int], costs: Costs, crossing: float) -> str:
    """One line of alternative text: both ends of each line, and where they cross."""
    parts = [
        tr("{form}: from {low:,.0f} to {high:,.0f}", form=form, low=values[0], high=values[-1])
        for form, values in costs.items()
    ]
    return tr(
        "Multiply-adds per head and cached token for {first} to {last} query tokens. {forms}. The lines cross at "
        "{crossing:.0f} queries.",
        first=queries[0],
        last=queries[-1],
        forms=tr("; ").join(parts),
        crossing=crossing,
    )


Maps = Mapping[str, Sequence[Sequence[float]]]


@themed
def draw_attention(maps: Maps, tokens: Sequence[str]) -> Figure:
    """Where each token looks: heat maps side by side, a row for each query, a column for each key, colours 0 to 1.

    Args:
        maps: title -> probabilities (S, L), rows that sum to 1, with S = L = len(tokens).
    """
    tables = {title: np.asarray(values, dtype=float) for title, values in maps.items()}
    n = len(tokens)
    if not tables:
        raise RequestError("there is no attention to draw: give at least one map")
    for title, table_SL in tables.items():
        if table_SL.shape != (n, n):
            raise RequestError(f"the attention map {title!r} has shape {table_SL.shape}; expected {(n, n)}")
    figure = Figure(figsize=(1.6 + (0.9 + 0.18 * n) * len(tables), 1.7 + 0.2 * n), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Axes] = list(figure.subplots(1, len(tables), squeeze=False, sharey=True)[0])
    colours = matplotlib.colormaps[PROBABILITY_MAP].with_extremes(bad="white")
    image = None
    for ax, (title, table_SL) in zip(axes, tables.items(), strict=True):
        hidden = np.triu(np.ones((n, n), dtype=bool), 1)
        image = ax.imshow(np.ma.array(table_SL, mask=hidden), cmap=colours, vmin=0, vmax=1, interpolation="nearest")
        for row in range(n):
            column = int(table_SL[row].argmax())
            colour = "black" if table_SL[row, column] > 0.5 else "white"
            ax.text(column, row, "•", ha="center", va="center", color=colour, fontsize=11)
        ax.set_title(title, loc="left")
        ax.set_xticks(range(n), tokens, rotation=90)
        ax.set_yticks(range(n), tokens)
        ax.set_xlabel(tr("token looked at (key)"))
    axes[0].set_ylabel(tr("looking token (query)"))
    assert image is not None
    figure.colorbar(image, ax=axes, pad=0.02, ticks=[0.0, 0.5, 1.0]).set_label(
        tr("attention probability (• row's largest)")
    )
    return figure


def describe_attention(
    maps: Maps, tokens: Sequence[str], places: Mapping[str, Sequence[tuple[int, int]]] | None = None
) -> str:
    """One line of alternative text: the strongest look of each map away from the looking token itself.

    places: title -> the (query, key) pairs that matter in this map; default: all.
    """
    parts: list[str] = []
    for title, values in maps.items():
        pairs = (places or {}).get(title) or [(row, column) for row in range(len(tokens)) for column in range(row)]
        row, column = max(pairs, key=lambda pair: values[pair[0]][pair[1]])
        parts.append(
            tr(
                "{title}: most clearly from “{query}” to “{key}”, probability {p:.2f}",
                title=title.replace("\n", " · "),
                query=tokens[row].strip(),
                key=tokens[column].strip(),
                p=values[row][column],
            )
        )
    return tr("Heat maps of attention between {n} tokens. {maps}.", n=len(tokens), maps=tr("; ").join(parts))


@themed
def draw_squeeze(
    lost: Mapping[str, Sequence[float]],
    ranks: Sequence[int],
    losses: Mapping[str, Sequence[float]],
    *,
    rope_width: int,
    rank: int | None = None,
) -> Figure:
    """What remains of a latent that is projected on its r main directions.

    Left: share of the latents' energy that is lost, by rank, a line for each layer. Right: how much the loss of the
    model rises, a line for each language; the upper axis counts what would be cached.

    Args:
        lost: layer -> share lost with rank 1, 2, ..., C.
        ranks: ranks at which the model was run. losses: language -> rise of the loss at each, in nats per token.
        rope_width: values of the rope key, cached in any case.
        rank: a rank to mark on both sides.
    """
    if not lost or not losses or any(len(values) != len(ranks) for values in losses.values()):
        raise RequestError(f"give the energy lost by layer, and {len(ranks)} losses for each language, one a rank")
    width = max(len(values) for values in lost.values())
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.85, len(lost)))
    for (layer, values), shade, style in zip(lost.items(), shades, ("-", "--", "-.", ":") * len(lost)):
        left.plot(range(1, len(values) + 1), values, color=shade, linestyle=style, linewidth=1.8, label=layer)
    left.set_ylabel(tr("share of the latents' energy lost"))
    left.set_ylim(0, 1)
    for (name, values), (colour, style, marker) in zip(losses.items(), STYLES):
        right.plot(ranks, values, color=colour, linestyle=style, marker=marker, markersize=5, label=name)
    right.set_ylabel(tr("rise of the loss (nats per token)"))
    right.set_ylim(bottom=min(0.0, *(min(values) for values in losses.values())))
    for ax in (left, right):
        ax.set_xlim(0, width)
        ax.set_xlabel(tr("rank kept, of {width}", width=width))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False)
        upper = ax.secondary_xaxis("top", functions=(lambda r: r + rope_width, lambda n: n - rope_width))
        upper.set_xlabel(tr("values cached per token and layer"))
        if rank is not None:
            ax.axvline(rank, color="black", lw=1.2)
    return figure


def describe_squeeze(ranks: Sequence[int], losses: Mapping[str, Sequence[float]], *, rank: int | None = None) -> str:
    """One line of alternative text: the rise of the loss at ``rank`` (default: the middle one of ``ranks``)."""
    at = min(range(len(ranks)), key=lambda i: abs(ranks[i] - (rank or ranks[len(ranks) // 2])))
    rises = tr("; ").join(tr("{name} {rise:.2f}", name=name, rise=values[at]) for name, values in losses.items())
    return tr(
        "Energy that is lost by rank and layer, and the rise of the loss by rank and language. At rank {rank} of "
        "{width}: {rises} nats per token.",
        rank=ranks[at],
        width=ranks[-1],
        rises=rises,
    )
