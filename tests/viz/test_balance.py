"""The heat map of load by expert and step: what it holds, and what it says to someone who does not see it."""

import io

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError
from dsv3.learn.labels import language

EVEN = torch.full((12, 4), 3)
SKEWED = torch.tensor([[6, 6, 0, 0]] * 6 + [[12, 0, 0, 0]] * 6)
RUNS = {"even": EVEN, "skewed": SKEWED}


@pytest.mark.parametrize("code", ["en", "es", "zh"])
def test_text_is_large_enough_and_every_glyph_exists(code, recwarn):
    with language(code):
        figure = viz.draw_load_course(RUNS, every=3)
        figure.savefig(io.BytesIO(), format="png")
    assert not [str(warning.message) for warning in recwarn]
    assert all(text.get_fontsize() >= 9 for text in figure.findobj(Text) if text.get_text())


def test_columns_are_summed_steps_in_multiples_of_the_uniform_load():
    even, skewed = (ax.images[0] for ax in viz.draw_load_course(RUNS, every=3).axes[:2])
    assert np.array_equal(even.get_array(), np.ones((4, 4)))
    assert skewed.get_array().T.tolist() == [[2, 2, 0, 0]] * 2 + [[4, 0, 0, 0]] * 2
    assert skewed.get_extent() == [0, 12, 3.5, -0.5]
    assert even.norm is skewed.norm
    assert even.norm(1.0) == 0.5


def test_steps_that_fill_no_column_are_left_out_and_no_load_is_even():
    (image,) = viz.draw_load_course({"idle": torch.zeros(7, 4)}, every=5).axes[0].images
    assert np.array_equal(image.get_array(), np.ones((4, 1)))


def test_description_names_the_extremes_at_the_end():
    said = viz.describe_load_course(RUNS, every=1)
    assert "even: at the end the busiest expert has 1.0 times its share, the idlest 1.00 times" in said
    assert "skewed: at the end the busiest expert has 3.2 times its share, the idlest 0.00 times" in said


@pytest.mark.parametrize("runs", [{}, {"short": torch.zeros(3, 4)}, {"flat": torch.zeros(9)}])
def test_what_cannot_be_drawn_is_refused(runs):
    with pytest.raises(RequestError):
        viz.draw_load_course(runs)
