"""The comparison of balancing methods holds every run, and methods can be told apart without colour."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError


def run(loss: float, violation: float, n: int = 20) -> dict[str, list[float]]:
    steps = [10.0 * (i + 1) for i in range(n)]
    falling = [loss + 5 * 0.5**i for i in range(n)]
    return {"step": steps, "loss": falling, "max_vio.layers.1": [violation] * n, "max_vio.mtp.0": [3 * violation] * n}


RUNS = {
    "auxiliary loss": [run(3.1, 0.5), run(3.2, 0.6)],
    "bias": [run(3.0, 0.1), run(3.0, 0.2, 15)],
    "nothing": [run(3, 2)],
}


def test_every_run_is_drawn_and_the_mean_of_each_method() -> None:
    left, right = viz.draw_comparison(RUNS).axes
    named = {line.get_label(): line for line in left.lines if not line.get_label().startswith("_")}
    assert list(named) == list(RUNS)
    assert len(left.lines) == len(right.lines) == 7  # of two runs each and their mean; the only run is its own mean
    np.testing.assert_allclose(
        named["auxiliary loss"].get_ydata(), np.mean([run["loss"] for run in RUNS["auxiliary loss"]], axis=0)
    )
    assert len(named["bias"].get_xdata()) == 15  # up to where both runs have come
    violation = next(line for line in right.lines if line.get_label() == "nothing")
    np.testing.assert_allclose(violation.get_ydata(), 4.0)  # of 2 and 6


def test_axes_have_units_and_maxvio_is_logarithmic() -> None:
    left, right = viz.draw_comparison(RUNS).axes
    assert "nats per token" in left.get_ylabel()
    assert "MaxVio" in right.get_ylabel()
    assert (left.get_yscale(), right.get_yscale()) == ("linear", "log")
    assert left.get_ylim()[1] < 6  # the fall that all share leaves the frame
    assert viz.draw_comparison(RUNS, label="validation loss").axes[0].get_ylabel() == "validation loss"


def test_methods_differ_without_their_colours_and_text_is_readable() -> None:
    figure = viz.draw_comparison(RUNS)
    named = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert len({line.get_linestyle() for line in named}) == 3
    figure.savefig(io.BytesIO())
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
    assert "mean of 2 runs" in figure.legends[0].get_title().get_text()


def test_words_give_the_ends() -> None:
    text = viz.describe_comparison({"bias": [run(3.0, 0.1)]})
    assert text == "Loss and imbalance of the experts by step: bias ends at a loss of 3.000 with MaxVio 0.20."


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({}, "0 methods"),
        ({str(i): [run(3, 1)] for i in range(5)}, "5 methods"),
        ({"bias": []}, "'bias' has no runs"),
        ({"bias": [{"step": [1.0], "max_vio.layers.1": [1.0]}]}, "no loss"),
        ({"bias": [{"step": [1.0], "loss": [1.0]}]}, r"no max_vio\.\*"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, message) -> None:
    with pytest.raises(RequestError, match=message):
        viz.draw_comparison(runs)
