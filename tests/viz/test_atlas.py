"""Figures of the expert atlas: marks, intervals of chance, ratios and their limits, descriptions."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError
from dsv3.learn.labels import language

CHANCE = np.linspace(0, 1, 101)
SERIES = {
    "en": {"layer 1": viz.Measured(2.0, CHANCE), "layer 2": viz.Measured(0.5, CHANCE)},
    "zh": {"layer 1": viz.Measured(-1.0, CHANCE), "layer 2": viz.Measured(3.0, CHANCE)},
}
RATIOS = np.array(
    [[np.nan, 4.0, 0.0, 1.0], [4.0, np.nan, 32.0, 1.0], [0.0, 32.0, np.nan, 1.0], [1.0, 1.0, 1.0, np.nan]]
)


def sizes(figure: viz.Figure) -> list[float]:
    figure.savefig(io.BytesIO())
    return [text.get_fontsize() for text in figure.findobj(Text) if text.get_text()]


def test_chance_is_the_middle_95_percent() -> None:
    one = viz.Measured(0.5, CHANCE)
    assert one.interval == pytest.approx((0.025, 0.975))
    assert [viz.Measured(value, CHANCE).outside for value in (0.0, 0.5, 1.0)] == [True, False, True]


def test_marks_stand_on_their_intervals() -> None:
    figure = viz.draw_against_chance(SERIES, at="layer", value="MaxVio")
    ax = figure.axes[0]
    marks = [line for line in ax.lines if line.get_marker() not in ("None", "")]
    assert [list(line.get_ydata()) for line in marks] == [[2.0, 0.5], [-1.0, 3.0]]
    assert len({line.get_marker() for line in marks}) == 2
    bars = [bar for container in ax.containers for bar in container]
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == pytest.approx(
        [x for line in marks for x in line.get_xdata()]
    )
    assert {(round(bar.get_y(), 3), round(bar.get_height(), 3)) for bar in bars} == {(0.025, 0.95)}
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["layer 1", "layer 2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "MaxVio")
    assert min(sizes(figure)) >= 9


def test_the_description_counts_what_is_no_chance() -> None:
    text = viz.describe_against_chance(SERIES, value="MaxVio")
    assert "en: from 0.50 to 2.00, 1 of 2 outside" in text
    assert "zh: from -1.00 to 3.00, 2 of 2 outside" in text


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "0 series"),
        ({str(i): SERIES["en"] for i in range(5)}, "5 series"),
        ({"a": SERIES["en"], "b": {"layer 1": viz.Measured(0, [0])}}, "different places"),
    ],
)
def test_series_that_cannot_be_drawn(series, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        viz.draw_against_chance(series, at="layer", value="x")


def test_ratios_are_logarithms_with_limits() -> None:
    figure = viz.draw_ratios(RATIOS, group_size=2, value="times")
    ax, bar = figure.axes
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shown[0], [np.nan, 2, -3, 0])
    assert shown[1, 2] == 3
    assert [line.get_xdata()[0] for line in ax.lines] == [1.5, 0]
    assert bar.get_ylabel() == "times"
    assert min(sizes(figure)) >= 9


def test_rows_may_be_named() -> None:
    figure = viz.draw_ratios(RATIOS[:2], rows=["a", "b"], value="times")
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["a", "b"]
    text = viz.describe_ratios(RATIOS[:2], rows=["a", "b"], value="times")
    assert "The highest is b with expert 2: 32.0 times; 3 of 6 cells are above 2, 1 below 1/2" in text
    assert "expert 1 with expert 2" in viz.describe_ratios(RATIOS, value="times")


def test_ratios_that_are_no_table() -> None:
    with pytest.raises(RequestError, match=r"shape \(2, 4\) and no names"):
        viz.draw_ratios(RATIOS[:2], value="times")
    with pytest.raises(RequestError, match="1 names"):
        viz.draw_ratios(RATIOS[:2], rows=["a"], value="times")


def test_in_chinese() -> None:
    with language("zh"):
        assert min(sizes(viz.draw_ratios(RATIOS, group_size=2, value="x"))) >= 9
        assert min(sizes(viz.draw_against_chance(SERIES, at="x", value="x"))) >= 9
