"""The pictures of multi-token prediction on what they hold: cells, bars, curves, and the lines that describe them."""

import io

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError

WORDS = ["a", "b", "c", "d"]
ROWS = {"read": [0, 1], "main": [1, 2], "module": [2, -1]}
STEPS = [viz.DraftStep((), ("x",)), viz.DraftStep(("y",), ("y", "z")), viz.DraftStep(("u",), ("v",))]
COUNTS = {"greedy": {"en": (3, 4), "es": (1, 2)}, "sampled": {"en": (1, 4), "es": (0, 2)}}


def texts(figure: Figure) -> dict[str, float]:
    figure.savefig(io.BytesIO())
    return {text.get_text(): text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}


@pytest.mark.parametrize(
    "figure",
    [
        viz.draw_shifted_targets(WORDS, ROWS),
        viz.draw_draft_steps(STEPS),
        viz.draw_acceptance(COUNTS),
        viz.draw_speed_up(0.5, 0.2),
    ],
    ids=["targets", "steps", "acceptance", "speed-up"],
)
def test_text_is_large_enough(figure: Figure) -> None:
    assert min(texts(figure).values()) >= 9


def test_the_grid_names_each_token_and_hatches_what_is_missing() -> None:
    (ax,) = viz.draw_shifted_targets(WORDS, ROWS).axes
    assert [text.get_text() for text in ax.texts] == ["a", "b", "b", "c", "c"]
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert [bool(box.get_hatch()) for box in boxes] == [False] * 5 + [True]
    assert boxes[1].get_facecolor() == boxes[2].get_facecolor()
    assert [label.get_text() for label in ax.get_yticklabels()] == list(ROWS)
    assert "At position 0, read: a; main: b; module: c." in viz.describe_shifted_targets(WORDS, ROWS)


def test_steps_show_accepted_and_refused_drafts_at_their_places() -> None:
    (ax,) = viz.draw_draft_steps(STEPS).axes
    assert [(text.get_text(), text.get_position()[0]) for text in ax.texts] == [
        ("x", 0), ("y", 1), ("z", 2), ("v", 3), ("u", 3),
    ]  # fmt: skip
    assert [bool(box.get_hatch()) for box in ax.patches] == [False] * 4 + [True]
    assert len(ax.get_yticklabels()) == 3
    assert "3 steps that make 4 tokens: of 2 drafts 1 were accepted" in viz.describe_draft_steps(STEPS)


def test_acceptance_bars_and_their_labels() -> None:
    (ax,) = viz.draw_acceptance(COUNTS).axes
    assert [bar.get_height() for bar in ax.patches if isinstance(bar, Rectangle)] == [75, 50, 25, 0]
    assert [text.get_text() for text in ax.texts] == ["75", "50", "25", "0"]
    assert "greedy: en 75%, es 50%; sampled: en 25%, es 0%." in viz.describe_acceptance(COUNTS)


def test_speed_up_of_free_and_of_useless_drafts() -> None:
    assert viz.speed_up(1, 0) == 2
    assert viz.speed_up(0, 0) == 1
    (ax,) = viz.draw_speed_up(0.5, 0.2, costs=(0.0, 1.0)).axes
    free, dear, _, point = ax.lines
    assert [free.get_ydata()[0], free.get_ydata()[-1]] == [1, 2]
    assert [dear.get_ydata()[0], dear.get_ydata()[-1]] == [0.5, 1]
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (50, 1.5 / 1.2)
    assert "50% and 0.20 of a step is 1.25 times" in viz.describe_speed_up(0.5, 0.2)


def test_what_cannot_be_drawn() -> None:
    with pytest.raises(RequestError, match="all of the same length"):
        viz.draw_shifted_targets(WORDS, {"a": [0], "b": [0, 1]})
    with pytest.raises(RequestError, match="outside the text of 4 words"):
        viz.draw_shifted_targets(WORDS, {"a": [4]})
    with pytest.raises(RequestError, match="no step to draw"):
        viz.draw_draft_steps([])
    with pytest.raises(RequestError, match="different languages"):
        viz.draw_acceptance({"a": {"en": (1, 2)}, "b": {"es": (1, 2)}})
    with pytest.raises(RequestError, match="0 ways"):
        viz.draw_acceptance({})
    with pytest.raises(RequestError, match="no more accepted"):
        viz.draw_acceptance({"a": {"en": (3, 2)}})
