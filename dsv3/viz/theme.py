"""One look for every figure: sizes, colours, and how a figure is created and saved.

Colour never carries a meaning alone: a marker or a label repeats it. Nothing sets red against green. Text is at least
9 points at the size at which the figure is shown.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsv3.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DEVIATION_MAP = "PuOr_r"
"""Diverging map for quantities with a neutral value in the middle, such as the uniform load."""

STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "figure.facecolor": "white",
}

P = ParamSpec("P")


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorate a drawing function: it runs with this theme's settings, and the caller's come back afterwards."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def panels(rows: int, width: float, heights: list[float]) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows`` stacked panels of the given heights, in inches, that fits its labels by itself."""
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)
    return figure, list(axes[:, 0])


def save(figure: Figure, path: str | Path, *, description: str = "") -> Path:
    """Write ``figure`` in the format of the suffix (.png, .svg, .pdf); a PNG carries ``description`` as metadata.

    The file is written beside its place and renamed, so an interrupted save leaves the old file. Raises RequestError
    for an unknown suffix or a missing directory, CapacityError when the disk refuses.
    """
    path = Path(path)
    suffix = path.suffix.lstrip(".").lower()
    known = figure.canvas.get_supported_filetypes()
    if suffix not in known:
        raise RequestError(
            f"cannot save a figure as {path.name!r}: the suffix must be one of {', '.join(sorted(known))}"
        )
    if not path.parent.is_dir():
        raise RequestError(f"cannot save a figure in {path.parent}: there is no such directory; create it first")
    metadata = {"Description": description} if suffix == "png" and description else None
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        figure.savefig(partial, format=suffix, dpi=150, metadata=metadata)
        os.replace(partial, path)
    except OSError as error:
        raise CapacityError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another place"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path
