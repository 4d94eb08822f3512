"""The course of a training run by step: losses, quality, the balance of the experts, learning rate and speed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogFormatter

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import panels, themed

BALANCE = "max_vio."
"""Prefix of the log's columns that hold MaxVio; the rest of the name is the block's."""
LOSS, BITS = "loss_by_language.", "bits_per_byte."
"""Prefixes of the columns by language: training loss in the log, bits per byte among the evaluations."""

TOTAL, MTP = "#222222", "#7f7f7f"
# Told apart by colour-blind readers (Okabe and Ito's palette, its red and green left out); the style repeats it.
STYLES = (
    ("#0072b2", "--"),
    ("#e69f00", "-."),
    ("#cc79a7", (0, (9, 2))),
    ("#56b4e9", ":"),
    ("#7a5195", (0, (3, 1, 1, 1))),
    ("#8c6d31", (0, (1, 4))),
)
MARKERS = "osD^v"

Columns = Mapping[str, Sequence[float]]


@themed
def draw_training(log: Columns, evaluations: Columns | None = None) -> Figure:
    """Panels over the same steps: losses; bits per byte; MaxVio of every MoE block as a heat map; rate and speed.

    A panel whose columns are missing is left out. A batch's MaxVio jumps from step to step, so that lines of several
    blocks would hide each other.

    Args:
        log: the columns of the trainer's log.csv, equally long: ``step``; ``loss`` and, with an MTP module,
            ``mtp_loss``, in nats per token; ``loss_by_language.en`` and the like; ``max_vio.layers.3``,
            ``max_vio.mtp.0`` and the like, for the step's batch; ``lr``; ``tokens_per_second``. NaN: no such value.
        evaluations: the columns of its eval.csv: ``step``, and ``bits_per_byte.en`` and the like.
    """
    missing = [name for name in ("step", "loss") if not log.get(name)]
    if missing:
        raise RequestError(f"the training log has no {' and no '.join(missing)}; its columns are {', '.join(log)}")
    evaluations = evaluations or {}
    blocks, bits = _starting_with(BALANCE, log), _starting_with(BITS, evaluations)
    heights = {"loss": 2.8}
    if bits and evaluations.get("step"):
        heights["bits"] = 2.3
    if blocks:
        heights["balance"] = 0.8 + 0.25 * len(blocks)
    heights |= {name: 1.5 for name in ("lr", "tokens_per_second") if name in log}
    figure, axes = panels(len(heights), 8.0, list(heights.values()))
    for name, ax in zip(heights, axes, strict=True):
        if name == "loss":
            _draw_losses(ax, log)
        elif name == "bits":
            _draw_bits(ax, evaluations["step"], bits)
        elif name == "balance":
            _draw_balance(figure, ax, log["step"], blocks)
        else:
            label = tr("learning rate") if name == "lr" else tr("training speed\n(tokens/s)")
            _draw_line(ax, log["step"], log[name], label)
    first, last = _ends(log["step"], evaluations.get("step", ()))
    for ax in axes:
        ax.set_xlim(first, last)
        if ax is not axes[-1]:
            ax.tick_params(labelbottom=False)
    axes[-1].set_xlabel(tr("optimiser step"))
    figure.align_ylabels(axes)
    return figure


def _starting_with(prefix: str, columns: Columns) -> dict[str, Sequence[float]]:
    """The columns of that prefix, by the rest of their names."""
    return {name.removeprefix(prefix): values for name, values in columns.items() if name.startswith(prefix)}


def _ends(*steps: Sequence[float]) -> tuple[float, float]:
    flat = [step for some in steps for step in some]
    return (min(flat), max(flat)) if min(flat) < max(flat) else (flat[0] - 0.5, flat[0] + 0.5)


def _draw_losses(ax: Axes, log: Columns) -> None:
    for (language, losses), (colour, style) in zip(_starting_with(LOSS, log).items(), STYLES * 4):
        given = [(step, loss) for step, loss in zip(log["step"], losses, strict=True) if math.isfinite(loss)]
        if given:  # a rare language is not in every batch: its line joins the steps that had it
            ax.plot(*zip(*given, strict=True), color=colour, linestyle=style, linewidth=1.2, label=language)
    if any(log.get("mtp_loss", ())):  # 0 throughout without a module
        dots = (0, (1, 1))
        label = tr("token after it (MTP)")
        ax.plot(log["step"], log["mtp_loss"], color=MTP, linestyle=dots, linewidth=1.5, label=label)
    # Thick and behind the others, so that a language that lies on it is seen.
    ax.plot(log["step"], log["loss"], color=TOTAL, linewidth=2.8, zorder=1.5, label=tr("next token"))
    ax.set_ylabel(tr("training loss\n(nats per token)"))
    _finish(ax)


def _draw_bits(ax: Axes, steps: Sequence[float], bits: Mapping[str, Sequence[float]]) -> None:
    for (language, values), (colour, style), marker in zip(bits.items(), STYLES * 4, MARKERS * 4):
        ax.plot(
            steps, values, color=colour, linestyle=style, linewidth=1.5, marker=marker, markersize=4, label=language,
            clip_on=False, zorder=3,
        )  # fmt: skip
    ax.set_ylabel(tr("validation\n(bits per byte)"))
    _finish(ax)


def _finish(ax: Axes) -> None:
    """A legend outside, on the right, where no curve can run into it, in the order of what ends highest."""
    handles, labels = ax.get_legend_handles_labels()
    ends = [_last_number(np.asarray(line.get_ydata(), dtype=float)) for line in ax.lines]
    order = sorted(range(len(labels)), key=lambda i: -ends[i])
    ax.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="center left", bbox_to_anchor=(1.0, 0.5),
        frameon=False, handlelength=3.0,
    )  # fmt: skip
    ax.grid(alpha=0.3)


def _last_number(values: np.ndarray) -> float:
    numbers = values[np.isfinite(values)]
    return float(numbers[-1]) if len(numbers) else -math.inf


def _draw_balance(figure: Figure, ax: Axes, steps: Sequence[float], blocks: Mapping[str, Sequence[float]]) -> None:
    violation = np.array(list(blocks.values()), dtype=float)
    # An even layer has 0, which a logarithm has no place for: 0.01 is as good as even.
    low, high = float(np.nanmin(violation)), float(np.nanmax(violation))
    norm = LogNorm(vmin=max(low, 0.01), vmax=max(high, 1.0), clip=True)
    # Edges, since with centres matplotlib gives a single row or column no extent, and the map would be empty.
    rows = np.arange(len(blocks) + 1) - 0.5
    image = ax.pcolormesh(_edges(steps), rows, violation, norm=norm, cmap="Purples")
    ax.set_yticks(range(len(blocks)), list(blocks))
    ax.invert_yaxis()
    ax.set_ylabel(tr("MoE block"))
    bar = figure.colorbar(image, cax=ax.inset_axes((1.02, 0.0, 0.02, 1.0)))  # beside it, not beside the widest legend
    bar.set_label(tr("MaxVio of a batch"))
    plain_numbers(bar.ax)


def _edges(centres: Sequence[float]) -> np.ndarray:
    """Where the cells around ascending ``centres`` begin and end, halfway between neighbours -> (n + 1,)."""
    at = np.asarray(centres, dtype=float)
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    between = (at[1:] + at[:-1]) / 2
    return np.concatenate(([2 * at[0] - between[0]], between, [2 * at[-1] - between[-1]]))


class _Plain(LogFormatter):
    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def plain_numbers(ax: Axes) -> None:
    """Write 0.1 and 10 on a logarithmic y axis; where these are few, what stands between them as well."""
    ax.yaxis.set_major_formatter(_Plain())
    ax.yaxis.set_minor_formatter(_Plain(minor_thresholds=(1.0, 0.4)))


def _draw_line(ax: Axes, steps: Sequence[float], values: Sequence[float], label: str) -> None:
    ax.plot(steps, values, color=TOTAL, linewidth=1.2)
    ax.set_ylabel(label)
    ax.set_ylim(0, 1.1 * max((value for value in values if math.isfinite(value)), default=1.0) or 1.0)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    ax.grid(alpha=0.3)


def _short(value: float) -> str:
    """1500000 as 1.5M, 12000 as 12k, 0.001 as 0.001."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def describe_training(log: Columns, evaluations: Columns | None = None) -> str:
    """One line of alternative text for ``draw_training``: where losses, quality and balance begin and end."""
    first, last = log["step"][0], log["step"][-1]
    text = tr(
        "Training loss from {before:.2f} at step {first:.0f} to {after:.2f} nats per token at step {last:.0f}",
        before=log["loss"][0],
        first=first,
        after=log["loss"][-1],
        last=last,
    )
    ends = {language: _last_number(np.asarray(values)) for language, values in _starting_with(LOSS, log).items()}
    languages = [f"{language} {loss:.2f}" for language, loss in ends.items() if math.isfinite(loss)]
    if languages:
        text += tr(" ({languages})", languages=tr(", ").join(languages))
    bits = _starting_with(BITS, evaluations or {})
    if bits:
        courses = (
            tr("{language} from {before:.2f} to {after:.2f}", language=language, before=values[0], after=values[-1])
            for language, values in bits.items()
        )
        text += tr("; validation bits per byte of {courses}", courses=tr(", ").join(courses))
    blocks = list(_starting_with(BALANCE, log).values())
    if blocks:
        before, after = (max(values[i] for values in blocks) for i in (0, -1))
        text += tr("; MaxVio of the least balanced block from {before:.2f} to {after:.2f}", before=before, after=after)
    speeds = [speed for speed in log.get("tokens_per_second", ()) if math.isfinite(speed)]
    if speeds:
        median = sorted(speeds)[len(speeds) // 2]
        text += tr("; {median:,.0f} tokens per second in the median", median=median)
    return text + tr(".")
