"""A figure in a notebook comes with its words."""

import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from dsv3.learn.figures import show
from dsv3.learn.labels import language


def test_show_gives_the_picture_and_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    with language("es"):
        show(Figure(figsize=(2, 1)), "Un mapa de calor.")
    picture, line = shown
    assert picture.data.startswith(b"\x89PNG")
    assert picture.alt == "Un mapa de calor."
    assert line.data == "**Figura.** Un mapa de calor."


def test_a_line_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    show(Figure(figsize=(2, 1)), "From <s> to a * b * c, `x`, ~~y~~.")
    assert MarkdownIt("commonmark").enable("strikethrough").render(shown[1].data) == (
        "<p><strong>Figure.</strong> From &lt;s&gt; to a * b * c, `x`, ~~y~~.</p>\n"
    )


def test_a_picture_is_the_same_bytes_each_time() -> None:
    from dsv3.viz.theme import png

    assert png(Figure(), description="x") == png(Figure(), description="x")
    assert b"matplotlib" not in png(Figure())
