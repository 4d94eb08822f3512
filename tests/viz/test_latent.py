"""Figures of the latent cache: what they hold, and what they say to someone who does not see them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dsv3 import viz
from dsv3.errors import RequestError
from dsv3.viz.theme import TENSOR
from tests.viz.legible import assert_legible

SIZES = {
    "tiny": {"MHA": {"k": 600, "v": 400}, "MLA": {"c_kv": 80, "k_pe": 20}},
    "671B": {"MHA": {"k": 3_000_000, "v": 1_997_120}, "MLA": {"c_kv": 62_464, "k_pe": 7_808, "scales": 10}},
}
COSTS = {"absorbed": [10.0, 20.0, 40.0], "expanded": [24.0, 28.0, 36.0]}
MAP = [[1.0, 0.0, 0.0], [0.7, 0.3, 0.0], [0.1, 0.8, 0.1]]
LOST = {"layer 0": [0.5, 0.2, 0.1, 0.0], "layer 1": [0.6, 0.4, 0.2, 0.0]}
RISE = {"English": [2.0, 0.5, 0.0], "Chinese": [3.0, 1.0, 0.0]}


def sizes() -> Figure:
    return viz.draw_cache_sizes(SIZES)


def costs() -> Figure:
    return viz.draw_form_costs([1, 2, 4], COSTS, 3.4, counted={"absorbed": {2: 20.0}})


def attention() -> Figure:
    return viz.draw_attention({"first token": MAP, "previous token": MAP}, ["a", "b", "c"])


def squeeze() -> Figure:
    return viz.draw_squeeze(LOST, [1, 2, 4], RISE, rope_width=32, rank=2)


@pytest.mark.parametrize("draw", [sizes, costs, attention, squeeze])
@pytest.mark.parametrize("code", ["en", "es", "zh"])
def test_text_is_large_enough_and_every_glyph_exists(draw: type, code: str, recwarn: pytest.WarningsRecorder) -> None:
    assert_legible(draw, code, recwarn)


def test_bars_are_the_bytes_in_the_colour_of_their_tensor() -> None:
    tiny, large = sizes().axes
    assert [bar.get_width() for bar in tiny.patches] == [600, 400, 80, 20]
    assert [bar.get_x() for bar in tiny.patches] == [0, 600, 0, 80]
    colours = [bar.get_facecolor() for bar in large.patches]
    assert len(set(colours)) == 5
    assert np.allclose(colours[2][:3], [int(TENSOR["c_kv"][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    said = [text.get_text() for text in large.texts]
    assert said == ["5 MB", "70.3 kB"]
    assert [label.get_text() for label in large.get_yticklabels()] == ["MHA", "MLA"]


def test_sizes_in_words() -> None:
    text = viz.describe_cache_sizes(SIZES)
    assert "tiny: from 100 B (MLA) to 1 kB (MHA); 671B: from 70.3 kB (MLA) to 5 MB (MHA)" in text


def test_lines_are_the_costs_and_marks_what_was_counted() -> None:
    (ax,) = costs().axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["absorbed"].get_ydata(), COSTS["absorbed"])
    np.testing.assert_allclose(lines["counted: absorbed"].get_xydata(), [[2, 20.0]])
    assert any(list(line.get_xdata()) == [3.4, 3.4] for line in ax.lines)
    assert "cross at 3 queries" in viz.describe_form_costs([1, 2, 4], COSTS, 3.4)


def test_attention_hides_the_future_and_marks_the_largest() -> None:
    figure = attention()
    (image,) = figure.axes[0].images
    shown = image.get_array()
    assert shown.mask[0, 1]
    assert not shown.mask[2, 1]
    np.testing.assert_allclose(shown.filled(0.0), MAP)
    assert [text.get_position() for text in figure.axes[0].texts] == [(0, 0), (0, 1), (1, 2)]
    assert "first token: most clearly from “c” to “b”, probability 0.80" in viz.describe_attention(
        {"first token": MAP}, ["a", "b", "c"]
    )
    chosen = viz.describe_attention({"first\nhead": MAP}, ["a", "b", "c"], {"first\nhead": [(1, 0), (2, 0)]})
    assert "first · head: most clearly from “b” to “a”, probability 0.70" in chosen


def test_squeeze_holds_both_sides_and_the_marked_rank() -> None:
    left, right = squeeze().axes
    np.testing.assert_allclose(left.lines[0].get_xydata(), list(enumerate(LOST["layer 0"], 1)))
    np.testing.assert_allclose(right.lines[1].get_ydata(), RISE["Chinese"])
    assert list(left.lines[-1].get_xdata()) == [2, 2]
    assert "At rank 2 of 4: English 0.50; Chinese 1.00" in viz.describe_squeeze([1, 2, 4], RISE, rank=2)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: viz.draw_cache_sizes({}), "no cache to draw"),
        (lambda: viz.draw_cache_sizes({"tiny": {"MHA": {"keys": 1}}}), "no tensor of a cache is called keys"),
        (lambda: viz.draw_form_costs([1], {"absorbed": []}, 2.0), "each form needs 1 costs"),
        (lambda: viz.draw_attention({}, ["a"]), "no attention to draw"),
        (lambda: viz.draw_attention({"head": MAP}, ["a"]), r"shape \(3, 3\); expected \(1, 1\)"),
        (lambda: viz.draw_squeeze(LOST, [1], RISE, rope_width=1), "1 losses for each language"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw: type, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        draw()
