"""The load of one router's experts, step by step of its training."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from dsv3.errors import RequestError
from dsv3.viz.labels import tr
from dsv3.viz.theme import DEVIATION_MAP, panels, themed


@themed
def draw_load_course(runs: Mapping[str, ArrayLike], *, every: int = 5) -> Figure:
    """Heat maps expert x step, one below the other: each expert's load in multiples of the uniform load.

    Args:
        runs: title -> load of a run, (steps, experts): how often each expert was chosen in each step.
        every: so many steps are summed into one column of the picture.
    """
    loads = {title: _relative(title, run, every) for title, run in runs.items()}
    if not loads:
        raise RequestError("there is no run to draw: give at least one")
    top = max(2.0, *(float(load.max()) for load in loads.values()))
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=top)
    heights = [max(2.0, 3.0 / len(loads)) for _ in loads]
    heights[-1] += 0.4  # the axis label below
    figure, axes = panels(len(loads), 8.0, heights)
    image = None
    for ax, (title, load_SE) in zip(axes, loads.items(), strict=True):
        n_columns, n_experts = load_SE.shape
        image = ax.imshow(
            load_SE.T, cmap=DEVIATION_MAP, norm=norm, aspect="auto", interpolation="nearest",
            extent=(0, n_columns * every, n_experts - 0.5, -0.5),
        )  # fmt: skip
        ax.set_title(title, loc="left")
        ax.set_ylabel(tr("expert"))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        ax.tick_params(labelbottom=ax is axes[-1])
    axes[-1].set_xlabel(tr("optimiser step"))
    assert image is not None
    upper = [tick for tick in MaxNLocator(nbins=5).tick_values(1.0, top) if 1.7 < tick <= top]
    bar = figure.colorbar(image, ax=axes, pad=0.02, ticks=[0.0, 0.5, 1.0, *upper])
    bar.set_label(tr("load (1 = fair share)"))
    return figure


def describe_load_course(runs: Mapping[str, ArrayLike], *, every: int = 5) -> str:
    """One line of alternative text for ``draw_load_course``: the busiest and the idlest expert at each run's end."""
    parts = []
    for title, run in runs.items():
        end_E = _relative(title, run, every)[-10:].mean(0)
        parts.append(
            tr(
                "{title}: at the end the busiest expert has {most:.1f} times its share, the idlest {least:.2f} times",
                title=title,
                most=float(end_E.max()),
                least=float(end_E.min()),
            )
        )
    return tr("Heat maps of expert load by expert and step. {panels}.", panels=tr("; ").join(parts))


def _relative(title: str, run: ArrayLike, every: int) -> np.ndarray:
    """(columns, experts), in multiples of the uniform load; the steps that fill no column are left out."""
    load_SE = np.asarray(run, dtype=float)
    if load_SE.ndim != 2 or len(load_SE) < every or every < 1:
        raise RequestError(
            f"the load of {title!r} has the shape {_shape(load_SE.shape)}; it needs (steps, experts) and at least "
            f"{max(every, 1)} steps, which make one column"
        )
    n_columns = len(load_SE) // every
    columns = load_SE[: n_columns * every].reshape(n_columns, every, -1).sum(1)
    mean = columns.mean(1, keepdims=True)
    return np.divide(columns, mean, out=np.ones_like(columns), where=mean > 0)


def _shape(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
