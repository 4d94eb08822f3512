"""Bars of the languages' shares: their heights, a second cue beside colour, borders of groups, the description."""

import io

import pytest
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError

BLOCKS = {
    "layer 1": {"English": [0.5, 0.2, 0.3, 1.0], "Spanish": [0.25, 0.2, 0.3, 0.0], "Chinese": [0.25, 0.6, 0.4, 0.0]},
    "MTP 0": {"English": [0.0, 0.0, 0.0, 0.0], "Spanish": [0.0, 1.0, 0.0, 0.0], "Chinese": [1.0, 0.0, 1.0, 1.0]},
}


def test_bars_stand_on_one_another() -> None:
    first = viz.draw_language_shares(BLOCKS).axes[0]
    english, spanish, chinese = first.containers
    assert [bar.get_height() for bar in english] == [0.5, 0.2, 0.3, 1.0]
    assert [bar.get_y() for bar in spanish] == [0.5, 0.2, 0.3, 1.0]
    assert [bar.get_y() + bar.get_height() for bar in chinese] == pytest.approx([1.0] * 4)
    assert len({bars[0].get_hatch() for bars in first.containers}) == 3


def test_blocks_are_named_and_groups_separated() -> None:
    figure = viz.draw_language_shares(BLOCKS, group_size=2)
    assert [ax.get_ylabel() for ax in figure.axes] == ["layer 1", "MTP 0"]
    for ax in figure.axes:
        assert [line.get_xdata()[0] for line in ax.lines] == [1.5]
    assert "lines between the groups" in figure.axes[-1].get_xlabel()
    figure.savefig(io.BytesIO())
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_without_groups_there_is_no_line() -> None:
    figure = viz.draw_language_shares(BLOCKS)
    assert not figure.axes[0].lines
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["English", "Spanish", "Chinese"]


def test_the_description_counts_the_experts_of_one_language() -> None:
    text = viz.describe_language_shares(BLOCKS)
    assert text.endswith("layer 1: 1 English, 0 Spanish, 1 Chinese; MTP 0: 0 English, 1 Spanish, 3 Chinese.")


def test_shares_that_cannot_be_drawn() -> None:
    with pytest.raises(RequestError, match="no shares"):
        viz.draw_language_shares({})
    with pytest.raises(RequestError, match=r"'x' have shape \(5, 1\).*1 to 4 languages"):
        viz.draw_language_shares({"x": {str(i): [0.2] for i in range(5)}})
