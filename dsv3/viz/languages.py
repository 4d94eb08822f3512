"""Which language each expert works for."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import panels, themed

STYLES = (("#4b2e83", ""), ("#e08214", "////"), ("#b2dbe8", "...."), ("#7f7f7f", "xx"))
"""Colour and hatching of each language in turn, so that either is enough."""

Shares = Mapping[str, Mapping[str, Sequence[float]]]


@themed
def draw_language_shares(blocks: Shares, *, group_size: int | None = None) -> Figure:
    """A bar for each expert, a panel for each block: the languages' parts of the expert's work, one on the other.

    Args:
        blocks: block's name -> language -> that language's part of the routing to each expert, from 0 to 1; the parts
            of an expert sum to 1. Languages should count as if all had as many tokens.
        group_size: experts in one group; lines separate the groups.
    """
    if not blocks:
        raise RequestError("there are no shares to draw: give at least one block")
    tables = {name: np.array(list(by_language.values())) for name, by_language in blocks.items()}
    for name, table_LE in tables.items():
        if table_LE.ndim != 2 or len(table_LE) > len(STYLES):
            raise RequestError(
                f"the shares of {name!r} have shape {table_LE.shape}; expected one row of experts for each of 1 to "
                f"{len(STYLES)} languages"
            )
    n_experts = max(table_LE.shape[1] for table_LE in tables.values())
    around = 0.8  # inches for the legend and the axis label
    heights = [1.0 + around / len(tables)] * len(tables)
    figure, axes = panels(len(tables), max(6.5, 1.5 + 0.2 * n_experts), heights)
    for ax, (name, table_LE) in zip(axes, tables.items(), strict=True):
        experts = np.arange(table_LE.shape[1])
        below_E = np.zeros(table_LE.shape[1])
        for language, share_E, (colour, hatch) in zip(blocks[name], table_LE, STYLES):
            ax.bar(experts, share_E, 0.9, below_E, color=colour, hatch=hatch, edgecolor="white", lw=0, label=language)
            below_E += share_E
        for border in range(group_size or n_experts, len(experts), group_size or n_experts):
            ax.axvline(border - 0.5, color="black", lw=1.0)
        ax.set_ylabel(name)
        ax.set(xlim=(-0.6, len(experts) - 0.4), ylim=(0, 1), yticks=[0, 0.5, 1])
        ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
        ax.tick_params(labelbottom=ax is axes[-1])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(STYLES))
    axes[-1].set_xlabel(tr("expert, with lines between the groups") if group_size else tr("expert"))
    return figure


def describe_language_shares(blocks: Shares) -> str:
    """One line of alternative text for ``draw_language_shares``: how many experts of each block one language owns."""
    parts: list[str] = []
    for name, by_language in blocks.items():
        table_LE = np.array(list(by_language.values()))
        owned = (f"{int((row_E > 0.5).sum())} {language}" for language, row_E in zip(by_language, table_LE))
        parts.append(tr("{name}: {parts}", name=name, parts=tr(", ").join(owned)))
    return tr(
        "Bars of the languages' parts of each expert's work, block by block. Experts of which one language has more "
        "than half: {blocks}.",
        blocks=tr("; ").join(parts),
    )
