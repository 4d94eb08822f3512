"""Figures about positions: what they hold, and what they say to someone who does not see them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from dsv3 import viz
from dsv3.errors import RequestError
from tests.viz.legible import assert_legible

WAVES = {"without YaRN": [6.0, 60.0, 600.0, 6000.0], "YaRN": [6.0, 80.0, 2000.0, 24000.0]}
CONTEXTS = {"trained": 1000.0, "wanted": 4000.0}
TURNS = {"trained": [160.0, 16.0, 1.6, 0.16], "YaRN": [640.0, 50.0, 2.0, 0.16]}
SHARES = [0.0, 0.25, 0.75, 1.0]
LOSSES = {"no change": [np.log(10), np.log(10), np.log(90), np.log(100)], "YaRN": [np.log(11)] * 4}
ENDS = {"trained": 200, "promised": 300, "far beyond": 4000}


def wavelengths() -> Figure:
    return viz.draw_wavelengths(WAVES, CONTEXTS)


def ramp() -> Figure:
    return viz.draw_ramp(TURNS, SHARES, beta_fast=32, beta_slow=1)


def perplexity() -> Figure:
    return viz.draw_perplexity(LOSSES, 100, ENDS)


def in_chinese() -> Figure:
    """Labels as the chapter gives them; those of the functions are translated by ``tr``."""
    from dsv3.viz.labels import tr

    names = [tr("no change"), tr("YaRN, factor {s}", s=4), tr("the same without mscale")]
    return viz.draw_perplexity({name: [2.0, 3.0] for name in names}, 512, {tr("trained on {n:,} tokens", n=1024): 1024})


@pytest.mark.parametrize("draw", [wavelengths, ramp, perplexity, in_chinese])
@pytest.mark.parametrize("code", ["en", "es", "zh"])
def test_text_is_large_enough_and_every_glyph_exists(draw: type, code: str, recwarn: pytest.WarningsRecorder) -> None:
    assert_legible(draw, code, recwarn)


def test_wavelengths_and_the_lengths_that_they_are_held_to() -> None:
    (ax,) = wavelengths().axes
    drawn = {line.get_label(): line for line in ax.lines}
    for name, values in WAVES.items():
        np.testing.assert_allclose(drawn[name].get_xydata(), list(enumerate(values)))
    heights = [line.get_ydata()[0] for line in ax.lines if line.get_label() not in WAVES]
    assert heights == [1000.0, 4000.0]
    assert [text.get_text() for text in ax.texts] == ["trained", "wanted"]
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[1] > 24000
    text = viz.describe_wavelengths(WAVES, CONTEXTS)
    assert "each of 4 pairs" in text
    assert "without YaRN: from 6.0 to 6,000 tokens; YaRN: from 6.0 to 24,000 tokens" in text
    assert "trained: 3 / 2 pairs turn fully; wanted: 3 / 3 pairs turn fully" in text


def test_the_ramp_below_the_turns() -> None:
    above, below = ramp().axes
    drawn = {line.get_label(): line for line in above.lines}
    np.testing.assert_allclose(drawn["trained"].get_ydata(), TURNS["trained"])
    np.testing.assert_allclose(drawn["YaRN"].get_ydata(), TURNS["YaRN"])
    assert [text.get_text() for text in above.texts] == ["beta_fast = 32", "beta_slow = 1"]
    assert [line.get_ydata()[0] for line in above.lines if line.get_label() not in TURNS] == [32, 1]
    assert [bar.get_height() for bar in below.patches] == SHARES
    text = viz.describe_ramp(TURNS, SHARES)
    assert "Of 4 pairs 1 stay, 2 are on the ramp, 1 are slowed" in text
    assert "trained: 0.16; YaRN: 0.16" in text


def test_perplexity_is_drawn_in_the_middle_of_each_stretch() -> None:
    (ax,) = perplexity().axes
    drawn = {line.get_label(): line for line in ax.lines}
    np.testing.assert_allclose(drawn["no change"].get_xydata(), [[50, 10], [150, 10], [250, 90], [350, 100]])
    np.testing.assert_allclose(drawn["YaRN"].get_ydata(), [11] * 4)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_label() not in LOSSES] == [200, 300]
    assert [text.get_text() for text in ax.texts] == ["trained", "promised"]  # 4000 is outside
    text = viz.describe_perplexity(LOSSES, 100, 200)
    assert "no change: 10.0 up to 200 tokens, 100.0 in the last 100; YaRN: 11.0 up to 200 tokens, 11.0" in text
    assert "Perplexity by position, 400 tokens" in text


def test_the_mean_is_that_of_the_losses() -> None:
    """Perplexity of a stretch of stretches is the exponential of the mean loss, not the mean of perplexities."""
    text = viz.describe_perplexity({"x": [np.log(1.0), np.log(100.0), 0.0]}, 10, 20)
    assert "x: 10.0 up to 20 tokens" in text


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: viz.draw_wavelengths({}, CONTEXTS), "no wavelengths to draw"),
        (lambda: viz.draw_wavelengths({"a": [1.0], "b": [1.0, 2.0]}, {}), "different lengths"),
        (lambda: viz.draw_ramp({}, SHARES, beta_fast=32, beta_slow=1), "no turns to draw"),
        (lambda: viz.draw_ramp(TURNS, [0.0], beta_fast=32, beta_slow=1), "different lengths"),
        (lambda: viz.draw_perplexity({"a": []}, 100, {}), "no losses to draw"),
        (lambda: viz.draw_perplexity({str(i): [1.0] for i in range(6)}, 100, {}), "6 series are more"),
    ],
)
def test_what_cannot_be_drawn_is_said(draw: type, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        draw()
