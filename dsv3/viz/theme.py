"""One look for every figure: sizes, colours, and how a figure is created and saved.

Colour never carries a meaning alone: a marker or a label repeats it. Nothing sets red against green. Text is at least
9 points at the size at which the figure is shown.
"""

import functools
import io
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dsv3.errors import CapacityError, RequestError
from dsv3.viz.labels import voice

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DEVIATION_MAP = "PuOr_r"
"""Diverging map for quantities with a neutral value in the middle, such as the uniform load."""

TENSOR = {
    "c_kv": "#e69f00",
    "k_pe": "#56b4e9",
    "q": "#7a5195",
    "experts": "#0072b2",
    "k": "#8c8c8c",
    "v": "#c4c4c4",
    "scales": "#222222",
}
"""One colour per tensor through the whole walkthrough; grey is what the latent replaces."""

LATIN = "DejaVu Sans"
"""The font that matplotlib itself carries."""

CHINESE_FONT = "assets/fonts/dsv3-sans-sc.otf"
"""A subset of Noto Sans SC with the characters that the walkthrough uses (``dsv3.learn.font`` makes it)."""

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
        with matplotlib.rc_context({**STYLE, "font.family": families(voice().language)}):
            return draw(*args, **kwargs)

    return wrapper


def families(language: str) -> list[str]:
    """Font families for a language, in the order in which a glyph is looked for.

    Latin letters and digits come from one font in all languages; for Chinese the packaged subset fills what it lacks.
    """
    return [LATIN, _chinese()] if language == "zh" else [LATIN]


@functools.cache
def _chinese() -> str:
    """Make the packaged Chinese font known to matplotlib; its family, as the file itself says it."""
    with resources.as_file(resources.files("dsv3") / CHINESE_FONT) as path:
        font_manager.fontManager.addfont(path)
        return font_manager.get_font(path).family_name


def panels(rows: int, width: float, heights: list[float]) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows`` stacked panels of the given heights, in inches, that fits its labels by itself."""
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)
    return figure, list(axes[:, 0])


def png(figure: Figure, *, description: str = "", dpi: int = 100) -> bytes:
    """``figure`` as the bytes of a PNG file, the same for the same figure: no date and no version of a library."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None, "Description": description or None})
    return buffer.getvalue()


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
