"""Multi-token prediction: the grid of shifted targets, drafts step by step, acceptance, the expected speed-up."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import panels, themed

MODEL, DRAFT, REFUSED = "#56b4e9", "#e69f00", "#ffffff"
KINDS = (("#0072b2", ""), ("#e69f00", "///"), ("#7a5195", "..."))
CURVES = (("#0072b2", "-"), ("#e69f00", "--"), ("#7a5195", ":"), ("#222222", "-."))


class DraftStep(NamedTuple):
    """One step of speculative decoding: what had been drafted, and what came of it (all as words)."""

    drafts: tuple[str, ...]
    tokens: tuple[str, ...]

    @property
    def accepted(self) -> int:
        return len(self.tokens) - 1


def speed_up(acceptance: float, cost: float) -> float:
    """Expected tokens in the time of one plain step, with one draft: (1 + p) / (1 + cost)."""
    return (1 + acceptance) / (1 + cost)


@themed
def draw_shifted_targets(words: Sequence[str], rows: Mapping[str, Sequence[int]]) -> Figure:
    """A grid: a column for each position, a row for each thing read or predicted there; one colour per token.

    Args:
        words: the tokens of the text as words, in order.
        rows: title -> for each position the index into ``words``; -1 where there is nothing.
    """
    n = _positions(words, rows)
    figure, (ax,) = panels(1, max(5.0, 2.2 + 0.72 * n), [0.9 + 0.5 * len(rows)])
    shades = colormaps["cividis"]
    for y, indices in enumerate(rows.values()):
        for x, index in enumerate(indices):
            share = index / max(len(words) - 1, 1)
            colour = shades(share) if index >= 0 else "white"
            hatch = None if index >= 0 else "////"
            box = Rectangle((x - 0.48, y - 0.44), 0.96, 0.88, facecolor=colour, edgecolor="#444444", hatch=hatch)
            ax.add_patch(box)
            if index >= 0:
                ink = "white" if share < 0.55 else "black"
                ax.text(x, y, words[index], ha="center", va="center", fontsize=9, color=ink)
    ax.set_xlim(-0.6, n - 0.4)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xticks(range(n), [str(i) for i in range(n)])
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xlabel(tr("position i"))
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return figure


def describe_shifted_targets(words: Sequence[str], rows: Mapping[str, Sequence[int]]) -> str:
    """One line of alternative text for ``draw_shifted_targets``."""
    n = _positions(words, rows)
    first = [
        tr("{row}: {word}", row=title, word=words[indices[0]] if indices[0] >= 0 else "–")
        for title, indices in rows.items()
    ]
    return tr(
        "Grid of {n} positions with the tokens read and predicted there. At position 0, {rows}.",
        n=n,
        rows=tr("; ").join(first),
    )


@themed
def draw_draft_steps(steps: Sequence[DraftStep]) -> Figure:
    """Speculative decoding as a table: a line for each step, the tokens at their place in the output.

    A token from the model alone, an accepted draft and a refused one differ in colour, and in a mark: accepted drafts
    have a thick frame, refused ones are hatched and stand above the model's own choice.
    """
    if not steps:
        raise RequestError("there is no step to draw: give at least one DraftStep")
    total = sum(len(step.tokens) for step in steps)
    figure, (ax,) = panels(1, max(5.0, 1.3 + 0.78 * total), [1.2 + 0.55 * len(steps)])
    at = 0
    for y, step in enumerate(steps):
        for j, token in enumerate(step.tokens):
            is_draft = j < step.accepted
            _cell(ax, at + j, y, token, DRAFT if is_draft else MODEL, width=2.2 if is_draft else 0.8)
        if len(step.drafts) > step.accepted:
            _cell(ax, at + step.accepted, y, step.drafts[step.accepted], REFUSED, hatch="////", upper=True)
        at += len(step.tokens)
    ax.set_xlim(-0.6, total - 0.4)
    ax.set_ylim(len(steps) - 0.4, -0.6)
    ax.set_xticks(range(total), [str(i) for i in range(1, total + 1)])
    ax.set_yticks(range(len(steps)), [str(i) for i in range(1, len(steps) + 1)])
    ax.set_xlabel(tr("place in the output"))
    ax.set_ylabel(tr("step of the main model"))
    kinds = (
        (tr("chosen by the model"), MODEL, None, 0.8),
        (tr("accepted draft"), DRAFT, None, 2.2),
        (tr("refused draft"), REFUSED, "////", 0.8),
    )
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="#222222", hatch=hatch, linewidth=width, label=label)
        for label, colour, hatch, width in kinds
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def describe_draft_steps(steps: Sequence[DraftStep]) -> str:
    """One line of alternative text for ``draw_draft_steps``."""
    return tr(
        "Table of {steps} steps that make {tokens} tokens: of {drafted} drafts {accepted} were accepted.",
        steps=len(steps),
        tokens=sum(len(step.tokens) for step in steps),
        drafted=sum(len(step.drafts) for step in steps),
        accepted=sum(step.accepted for step in steps),
    )


@themed
def draw_acceptance(counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> Figure:
    """Bars of the acceptance rate: a group for each language, a bar for each way of choosing tokens.

    Args:
        counts: way of choosing -> language -> (accepted, drafted); the same languages everywhere.
    """
    languages = _languages(counts)
    figure, (ax,) = panels(1, 7.0, [3.2])
    width = 0.8 / len(counts)
    for i, ((way, row), (colour, hatch)) in enumerate(zip(counts.items(), KINDS)):
        rates = [100 * accepted / drafted for accepted, drafted in row.values()]
        places = np.arange(len(languages)) + (i - (len(counts) - 1) / 2) * width
        ax.bar(places, rates, 0.92 * width, color=colour, hatch=hatch, edgecolor="white", label=way)
        for x, rate in zip(places, rates):
            ax.text(x, rate + 1.5, f"{rate:.0f}", ha="center", va="bottom", fontsize=9)
    ax.set_xticks(range(len(languages)), languages)
    ax.set_ylim(0, 108)
    ax.set_yticks(range(0, 101, 25))
    ax.set_ylabel(tr("accepted drafts (percent)"))
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(counts), frameon=False)
    return figure


def describe_acceptance(counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """One line of alternative text for ``draw_acceptance``."""
    _languages(counts)
    ways = []
    for way, row in counts.items():
        parts = [tr("{language} {rate:.0%}", language=name, rate=a / d) for name, (a, d) in row.items()]
        ways.append(tr("{way}: {languages}", way=way, languages=tr(", ").join(parts)))
    return tr("Bars of the acceptance rate of drafts. {ways}.", ways=tr("; ").join(ways))


@themed
def draw_speed_up(acceptance: float, cost: float, *, costs: Sequence[float] = (0.0, 0.1, 0.3)) -> Figure:
    """Expected speed-up by acceptance for several costs of a draft, and one point: this acceptance at this cost.

    Cost is that of one draft, in steps of the main model. Below the line at 1 speculation is slower than plain
    decoding.
    """
    figure, (ax,) = panels(1, 7.0, [3.8])
    p = np.linspace(0, 1, 101)
    for each, (colour, style) in zip(costs, CURVES):
        ax.plot(100 * p, (1 + p) / (1 + each), style, color=colour, label=f"{each:g}")
    ax.axhline(1, color="#888888", linewidth=1)
    ax.text(99, 0.985, tr("as fast as plain decoding"), fontsize=9, color="#444444", ha="right", va="top")
    ax.plot([100 * acceptance], [speed_up(acceptance, cost)], "o", color="#222222", markersize=8, zorder=4)
    ax.annotate(
        f"{speed_up(acceptance, cost):.2f}", (100 * acceptance, speed_up(acceptance, cost)), (-10, 10),
        textcoords="offset points", ha="right", fontsize=11,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip
    ax.set_xlim(0, 100)
    ax.set_ylim(0.45, 2.1)
    ax.set_xlabel(tr("acceptance rate (percent)"))
    ax.set_ylabel(tr("speed-up (factor)"))
    ax.grid(alpha=0.3)
    title = tr("cost of a draft (in steps)")
    figure.legend(title=title, title_fontsize=9, loc="outside lower center", ncols=len(costs), frameon=False)
    return figure


def describe_speed_up(acceptance: float, cost: float) -> str:
    """One line of alternative text for ``draw_speed_up``."""
    return tr(
        "Expected speed-up, rising with the acceptance rate and falling with the cost of a draft; the point at "
        "{acceptance:.0%} and {cost:.2f} of a step is {value:.2f} times plain decoding.",
        acceptance=acceptance,
        cost=cost,
        value=speed_up(acceptance, cost),
    )


def _cell(
    ax: Axes, x: int, y: int, word: str, colour: str, *, width: float = 0.8, hatch: str | None = None,
    upper: bool = False,
) -> None:  # fmt: skip
    """A box with a word. ``upper``: a low box on top of the line of its step, for a draft that was not kept."""
    low, height = (y - 0.5, 0.34) if upper else (y - 0.14, 0.56)
    ax.add_patch(
        Rectangle((x - 0.47, low), 0.94, height, facecolor=colour, edgecolor="#222222", hatch=hatch, linewidth=width)
    )
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.6} if hatch else None
    ax.text(x, low + height / 2, word, ha="center", va="center", fontsize=9, bbox=box)


def _positions(words: Sequence[str], rows: Mapping[str, Sequence[int]]) -> int:
    lengths = {len(indices) for indices in rows.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise RequestError(f"the rows have {sorted(lengths)} positions; give at least one row, all of the same length")
    if any(not -1 <= index < len(words) for indices in rows.values() for index in indices):
        raise RequestError(f"an index lies outside the text of {len(words)} words; -1 stands for nothing")
    return lengths.pop()


def _languages(counts: Mapping[str, Mapping[str, tuple[int, int]]]) -> list[str]:
    if not 1 <= len(counts) <= len(KINDS):
        raise RequestError(f"{len(counts)} ways of choosing tokens; there are styles for 1 to {len(KINDS)}")
    languages = {tuple(row) for row in counts.values()}
    if len(languages) != 1:
        raise RequestError(f"the ways have different languages: {sorted(languages)}")
    if any(
        not 0 <= accepted <= drafted or not drafted for row in counts.values() for accepted, drafted in row.values()
    ):
        raise RequestError("every count is (accepted, drafted), with at least one draft and no more accepted than that")
    return list(languages.pop())
