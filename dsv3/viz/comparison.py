"""Ways of keeping the experts busy, side by side: what each costs in loss, and how even it gets the load."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import themed
from dsv3.viz.training import BALANCE, plain_numbers

# Okabe and Ito's palette without its red and green; the line style says the same.
STYLES = (("#0072b2", "-"), ("#e69f00", "--"), ("#7a5195", ":"), ("#222222", "-."))

Run = Mapping[str, Sequence[float]]


@themed
def draw_comparison(runs: Mapping[str, Sequence[Run]], *, loss: str = "loss", label: str | None = None) -> Figure:
    """Left the loss by step, right MaxVio, the mean over the MoE blocks, on a logarithmic axis.

    Each method has a colour and a line style: a thick line for the mean of its runs, and a thin one for each of them.

    Args:
        runs: method -> its runs, one for each seed; a run is the columns of a log: ``step``, the loss, and
            ``max_vio.layers.3`` and the like. Runs of one method may end at different steps: the mean ends with the
            shortest.
        loss: the column on the left; ``label`` is what its axis says (default: training loss in nats per token).
    """
    _check(runs, loss)
    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for (method, seeds), (colour, style) in zip(runs.items(), STYLES):
        for ax, curves in ((left, [np.array(run[loss]) for run in seeds]), (right, [mean_violation(r) for r in seeds])):
            steps = [np.array(run["step"]) for run in seeds]
            _draw(ax, steps, curves, colour, style, method)
    left.set_ylabel(label or tr("training loss (nats per token)"))
    _look_behind_the_fall(left)
    right.set_ylabel(tr("MaxVio of a batch, mean over blocks"))
    right.set_yscale("log")
    plain_numbers(right)
    for ax in (left, right):
        ax.set_xlabel(tr("optimiser step"))
        ax.margins(x=0)
        ax.grid(alpha=0.3)
    handles, labels = left.get_legend_handles_labels()
    n_seeds = max(len(seeds) for seeds in runs.values())
    title = tr("mean of {n} runs; thin: each of them", n=n_seeds) if n_seeds > 1 else None
    figure.legend(
        handles, labels, title=title, title_fontsize=9, loc="outside lower center", ncols=len(runs), frameon=False,
        handlelength=3.5,
    )  # fmt: skip
    return figure


def mean_violation(run: Run) -> np.ndarray:
    """MaxVio by step, the mean over the run's MoE blocks."""
    return np.mean([np.array(values) for name, values in run.items() if name.startswith(BALANCE)], axis=0)


def describe_comparison(runs: Mapping[str, Sequence[Run]], *, loss: str = "loss", last: int = 5) -> str:
    """One line of alternative text: the mean of the last lines of every method's logs."""
    _check(runs, loss)
    parts = []
    for method, seeds in runs.items():
        final = np.mean([np.nanmean(run[loss][-last:]) for run in seeds])
        violation = np.mean([mean_violation(run)[-last:].mean() for run in seeds])
        parts.append(
            tr(
                "{method} ends at a loss of {final:.3f} with MaxVio {violation:.2f}",
                method=method,
                final=final,
                violation=violation,
            )
        )
    return tr("Loss and imbalance of the experts by step: {methods}.", methods=tr("; ").join(parts))


def _check(runs: Mapping[str, Sequence[Run]], loss: str) -> None:
    if not 1 <= len(runs) <= len(STYLES):
        raise RequestError(f"{len(runs)} methods to compare; there are styles for 1 to {len(STYLES)}")
    for method, seeds in runs.items():
        if not seeds:
            raise RequestError(f"the method {method!r} has no runs: give at least one, or leave it out")
        for run in seeds:
            missing = [name for name in ("step", loss) if not run.get(name)]
            if missing or not any(name.startswith(BALANCE) for name in run):
                wanted = " and ".join(missing) or f"{BALANCE}*"
                raise RequestError(f"a run of {method!r} has no {wanted}; its columns are {', '.join(run)}")


def _look_behind_the_fall(ax: Axes) -> None:
    """Let the first tenth of the steps, where every loss falls alike, leave the frame: the rest has the differences."""
    curves = [(np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata())) for line in ax.lines]
    end = max(float(steps.max()) for steps, _ in curves)
    later = np.concatenate([losses[steps >= end / 10] for steps, losses in curves])
    low, high = float(np.nanmin(later)), float(np.nanmax(later))
    if low < high:
        ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _draw(
    ax: Axes, steps: Sequence[np.ndarray], curves: Sequence[np.ndarray], colour: str, style: str, method: str
) -> None:
    if len(curves) > 1:
        for steps_n, curve_n in zip(steps, curves, strict=True):
            ax.plot(steps_n, curve_n, color=colour, linewidth=0.7, alpha=0.45)
    n = min(map(len, curves))
    mean_n = np.mean([curve[:n] for curve in curves], axis=0)
    ax.plot(steps[0][:n], mean_n, color=colour, linestyle=style, linewidth=2.0, label=method, zorder=3)
