"""The needle map: how often a model repeats a fact from its context, by the context's length and the fact's place."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import themed

SHARE_MAP = "cividis"
"""Sequential map for shares from 0 to 1, the same to every kind of colour vision."""


@themed
def draw_recall(
    accuracy: Mapping[str, Sequence[Sequence[float]]], lengths: Sequence[int], depths: Sequence[float]
) -> Figure:
    """Heat maps side by side, colours from 0 to 1; each cell also states its accuracy in percent.

    Args:
        accuracy: title -> share of right answers, one row for each depth, one value for each length.
        lengths: of the context, in tokens.
        depths: where the fact stands: 0 at the beginning of the context, 1 right before the question.
    """
    maps = {title: np.asarray(values, float) for title, values in accuracy.items()}
    if not maps:
        raise RequestError("there is no needle map to draw: give the accuracy of at least one language")
    for title, values in maps.items():
        if values.shape != (len(depths), len(lengths)):
            raise RequestError(
                f"the needle map of {title!r} has shape {values.shape}, but there are {len(depths)} depths and "
                f"{len(lengths)} lengths"
            )
    figure = Figure(figsize=(1.2 + 0.5 * len(lengths) * len(maps), 1.1 + 0.42 * len(depths)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, len(maps), squeeze=False, sharey=True)[0])
    image = None
    for ax, (title, values) in zip(axes, maps.items(), strict=True):
        image = ax.imshow(values, cmap=SHARE_MAP, vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if value < 0.5 else "black"
            ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=9, color=colour)
        ax.set_title(title, loc="left")
        ax.set_xticks(range(len(lengths)), [str(length) for length in lengths])
        ax.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    axes[0].set_ylabel(tr("depth of the fact\n(0: first, 1: last)"))
    figure.supxlabel(tr("context length (tokens)"), fontsize=10)
    assert image is not None
    figure.colorbar(image, ax=axes, pad=0.02, ticks=[0.0, 0.25, 0.5, 0.75, 1.0]).set_label(
        tr("right answers (cells: in percent)")
    )
    return figure


def describe_recall(
    accuracy: Mapping[str, Sequence[Sequence[float]]],
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    chance: Mapping[str, float] | None = None,
) -> str:
    """One line of alternative text for ``draw_recall``: each mean, the worst cell, and the share that luck would get.

    chance: title -> the share of right answers of a reader who knows the question's form but not the fact.
    """
    parts: list[str] = []
    for title, table in accuracy.items():
        values = np.asarray(table, float)
        row, column = divmod(int(values.argmin()), len(lengths))
        luck = tr(", chance {share:.2g}", share=chance[title]) if chance else ""
        parts.append(
            tr(
                "{title}: mean {mean:.0%}, lowest {lowest:.0%} at {length} tokens and depth {depth:g}{luck}",
                title=title,
                mean=values.mean(),
                lowest=values[row, column],
                length=lengths[column],
                depth=depths[row],
                luck=luck,
            )
        )
    return tr(
        "Heat maps of the share of right answers to a question about a fact in the context, by context length and "
        "depth of the fact. {maps}.",
        maps=tr("; ").join(parts),
    )
