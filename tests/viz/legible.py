"""What every figure of the walkthrough owes its reader."""

import io
from collections.abc import Callable

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from dsv3.learn.labels import language


def assert_legible(draw: Callable[[], Figure], code: str, recwarn: pytest.WarningsRecorder) -> None:
    """In the language ``code`` no glyph is missing, which matplotlib would warn of, and no text is below 9 points."""
    with language(code):
        figure = draw()
        figure.savefig(io.BytesIO(), format="png")
    assert not [str(warning.message) for warning in recwarn]
    assert all(text.get_fontsize() >= 9 for text in figure.findobj(Text) if text.get_text())
