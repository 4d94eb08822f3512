"""The needle map on what it holds: its cells, one scale, labels, and the line that describes it."""

import io

import numpy as np
import pytest
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError

LENGTHS, DEPTHS = (128, 1000), (0, 0.5, 1)
MAPS = {"English": [[0.25, 0], [0.5, 0.25], [1, 0.75]], "Spanish": [[0.1, 0.1], [0.1, 0.1], [0.1, 0.05]]}


def test_each_panel_holds_its_language_on_a_scale_from_0_to_1() -> None:
    english, spanish, bar = viz.draw_recall(MAPS, LENGTHS, DEPTHS).axes
    for ax, title in ((english, "English"), (spanish, "Spanish")):
        (image,) = ax.images
        np.testing.assert_allclose(image.get_array(), MAPS[title])
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)
        assert ax.get_title(loc="left") == title
        assert [label.get_text() for label in ax.get_xticklabels()] == ["128", "1000"]
    assert [label.get_text() for label in english.get_yticklabels()] == ["0", "0.5", "1"]
    assert "right answers" in bar.get_ylabel()


def test_cells_state_their_value_and_labels_name_the_axes() -> None:
    figure = viz.draw_recall(MAPS, LENGTHS, DEPTHS)
    assert [text.get_text() for text in figure.axes[0].texts] == ["25", "0", "50", "25", "100", "75"]
    figure.savefig(io.BytesIO())
    texts = {text.get_text(): text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
    assert "context length (tokens)" in texts
    assert min(texts.values()) >= 9


def test_the_description_names_mean_worst_cell_and_chance() -> None:
    text = viz.describe_recall(MAPS, LENGTHS, DEPTHS, chance={"English": 0.01, "Spanish": 0.001})
    assert "English: mean 46%, lowest 0% at 1000 tokens and depth 0, chance 0.01;" in text
    assert "lowest 5% at 1000 tokens and depth 1, chance 0.001." in text
    assert "chance" not in viz.describe_recall(MAPS, LENGTHS, DEPTHS)


def test_maps_that_cannot_be_drawn() -> None:
    with pytest.raises(RequestError, match="no needle map"):
        viz.draw_recall({}, LENGTHS, DEPTHS)
    with pytest.raises(RequestError, match=r"'x' has shape \(1, 2\), but there are 3 depths and 2 lengths"):
        viz.draw_recall({"x": [[0, 1]]}, LENGTHS, DEPTHS)
