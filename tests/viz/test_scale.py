"""Figures of scale: what they hold, and what they say to someone who does not see them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dsv3 import viz
from dsv3.errors import RequestError
from tests.viz.legible import assert_legible

MODELS = {
    "stored": {"routed experts": 90, "attention": 8, "gate and norms": 2},
    "used": {"routed experts": 30, "shared experts": 20, "attention": 50},
}
ROWS = {"16B": {"weights": 31e9, "cache": 1e9}, "671B": {"weights": 673e9, "cache": 9e9}}
MACHINES = {"80 GB": 80e9, "8 x 80 GB": 640e9, "8 x 141 GB": 1128e9}
POINTS = {"16B": [(1, 1.0), (64, 10.0)], "671B": [(1, 1.0), (4096, 1000.0)]}


def shares() -> Figure:
    return viz.draw_parameter_shares(MODELS)


def memory() -> Figure:
    return viz.draw_memory(ROWS, MACHINES)


def roofline() -> Figure:
    return viz.draw_roofline(POINTS, bandwidth=3e12, peak=780e12)


@pytest.mark.parametrize("draw", [shares, memory, roofline])
@pytest.mark.parametrize("code", ["en", "es", "zh"])
def test_text_is_large_enough_and_every_glyph_exists(draw: type, code: str, recwarn: pytest.WarningsRecorder) -> None:
    assert_legible(draw, code, recwarn)


def test_each_bar_is_cut_into_shares_that_fill_it() -> None:
    (ax,) = shares().axes
    ends = {
        row: max(bar.get_x() + bar.get_width() for bar in ax.patches if round(bar.get_y()) == row) for row in (0, 1)
    }
    assert all(end == pytest.approx(1.0) for end in ends.values())
    assert [text.get_text() for text in ax.texts] == ["90%", "30%", "20%", "8%", "50%"]
    assert "stored: 90%; used: 30%" in viz.describe_parameter_shares(MODELS)


def test_memory_bars_are_gigabytes_and_only_machines_in_reach_are_drawn() -> None:
    (ax,) = memory().axes
    assert [bar.get_width() for bar in ax.patches] == [31, 673, 1, 9]
    assert [line.get_xdata()[0] for line in ax.lines] == [80, 640]
    said = viz.describe_memory(ROWS, MACHINES)
    assert "16B: 32 GB, fits 80 GB; 671B: 682 GB, fits 8 x 141 GB" in said
    assert "671B: 682 GB, fits none of them" in viz.describe_memory(ROWS, {"80 GB": 80e9})


def test_points_lie_under_the_roof() -> None:
    (ax,) = roofline().axes
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(lines["16B"].get_xydata(), [[1.0, 3.0], [10.0, 30.0]])
    np.testing.assert_allclose(lines["671B"].get_xydata()[-1], [1000.0, 780.0])
    said = viz.describe_roofline(POINTS, bandwidth=3e12, peak=780e12)
    assert "ridge at 260 FLOP per byte" in said
    assert "671B: 1 FLOP per byte at batch 1, 1e+03 at batch 4,096" in said


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: viz.draw_parameter_shares({}), "no parameters to draw"),
        (lambda: viz.draw_parameter_shares({"x": {"brain": 1}}), "no part of a model is called brain"),
        (lambda: viz.draw_memory({}, MACHINES), "nothing to compare"),
        (lambda: viz.draw_memory({"x": {"logits": 1}}, MACHINES), "no part of the memory is called logits"),
        (lambda: viz.draw_roofline({"x": []}, bandwidth=1.0, peak=1.0), "at least one point"),
        (lambda: viz.draw_roofline(POINTS, bandwidth=0.0, peak=1.0), "above 0"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw: type, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        draw()
