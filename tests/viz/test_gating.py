"""Figures about the gate are checked on what they hold: values, marks, closed groups, lines, sizes of text."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError

VALUES = torch.tensor([[0.1, 0.9, 0.3, 0.7], [0.2, 0.4, 0.8, 0.6]])
CHOSEN = torch.tensor([[1, 3], [2, 3]])
OPEN = torch.tensor([[True, False], [False, True]])
WIDE = torch.rand(3, 32, generator=torch.Generator().manual_seed(0))


def routes(**more) -> dict[str, viz.Routes]:
    return {"first": viz.Routes(VALUES, CHOSEN), "second": viz.Routes(VALUES / 2, CHOSEN, **more)}


def test_panels_hold_the_values_on_one_scale() -> None:
    figure = viz.draw_routes(routes(), value="affinity")
    first, second, bar = figure.axes
    np.testing.assert_allclose(first.images[0].get_array(), VALUES)
    np.testing.assert_allclose(second.images[0].get_array(), VALUES / 2)
    assert first.images[0].norm.vmax == second.images[0].norm.vmax == pytest.approx(0.9)
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["first", "second"]
    assert bar.get_ylabel() == "affinity"
    assert second.get_xlabel() == "expert"


def test_few_experts_have_their_values_written_and_the_chosen_ones_framed() -> None:
    ax = viz.draw_routes(routes(), value="affinity").axes[0]
    assert [text.get_text() for text in ax.texts] == [f"{value:.2f}" for value in VALUES.flatten()]
    frames = {(patch.get_x() + 0.46, patch.get_y() + 0.44) for patch in ax.patches if isinstance(patch, Rectangle)}
    assert {(round(x), round(y)) for x, y in frames} == {(1, 0), (3, 0), (2, 1), (3, 1)}


def test_many_experts_have_dots() -> None:
    indices = WIDE.topk(4).indices
    ax = viz.draw_routes({"gate": viz.Routes(WIDE, indices)}, value="affinity").axes[0]
    dots = {(round(text.get_position()[1]), round(text.get_position()[0])) for text in ax.texts}
    assert dots == {(t, int(e)) for t, row in enumerate(indices) for e in row}


def test_groups_are_separated_and_closed_ones_hatched() -> None:
    ax = viz.draw_routes(routes(open_TG=OPEN), value="affinity", n_groups=2).axes[1]
    assert [line.get_xdata()[0] for line in ax.lines] == [1.5]
    hatched = [(p.get_x(), p.get_y(), p.get_width()) for p in ax.patches if p.get_hatch()]
    assert hatched == [(1.5, -0.5, 2), (-0.5, 0.5, 2)]
    assert "groups" in ax.get_xlabel()


def test_rows_may_be_named() -> None:
    ax = viz.draw_routes(routes(), value="affinity", tokens=["Once", " upon"]).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Once", " upon"]


def test_alternative_text_of_routes() -> None:
    text = viz.describe_routes(routes(), value="affinity")
    assert "2 tokens and 4 experts" in text
    assert "first: expert 3 is chosen most, 2 times; experts that no token chose: 1" in text


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "no routes"),
        ({"a": viz.Routes(VALUES, CHOSEN), "b": viz.Routes(WIDE, CHOSEN)}, {}, "shapes"),
        ({"a": viz.Routes(VALUES, CHOSEN)}, {"n_groups": 3}, "do not divide"),
        ({"a": viz.Routes(VALUES, CHOSEN)}, {"tokens": ["one"]}, "1 labels for 2 tokens"),
    ],
)
def test_routes_that_cannot_be_drawn(given, options, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        viz.draw_routes(given, value="affinity", **options)


def test_load_bars_are_multiples_of_the_uniform_load() -> None:
    figure = viz.draw_load_bars({"small": torch.tensor([4, 2, 1, 1]), "large": torch.tensor([3, 3, 3, 3])})
    small, large = figure.axes
    assert [bar.get_height() for bar in small.patches] == [2, 1, 0.5, 0.5]
    assert [bar.get_height() for bar in large.patches] == [1, 1, 1, 1]
    assert small.get_ylim() == large.get_ylim()
    assert [bool(bar.get_hatch()) for bar in small.patches] == [True, False, False, False]
    text = viz.describe_load_bars({"small": torch.tensor([4, 2, 1, 1])})
    assert "small: the busiest is expert 0 with 2.00 times the uniform load, the idlest has 0.50" in text


@pytest.mark.parametrize(("counts", "message"), [({}, "no load"), ({"a": [0, 0]}, "sum 0"), ({"a": [[1]]}, "shape")])
def test_load_bars_that_cannot_be_drawn(counts, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        viz.draw_load_bars(counts)


def test_dispatch_draws_a_line_for_each_copy_from_its_token_to_its_experts_rows() -> None:
    ax = viz.draw_dispatch(CHOSEN, 4).axes[0]
    assert len(ax.lines) == CHOSEN.numel()
    starts = [line.get_xdata()[0] for line in ax.lines]
    assert [starts.count(x) for x in sorted(set(starts))] == [2, 2]
    ends = [line.get_xdata()[1] for line in ax.lines]
    assert ends == sorted(ends)  # rows stand in the order of their experts
    written = [text.get_text() for text in ax.texts]
    assert written[:2] == ["0", "1"]  # the tokens
    assert written[2:6] == ["0", "1", "0", "1"]  # the token of each row: experts 1, 2, 3, 3
    assert written[6:] == ["0", "0", "1", "1", "2", "1", "3", "2"]  # each expert and its number of rows


def test_alternative_text_of_dispatch() -> None:
    assert "2 tokens above, 4 rows below" in viz.describe_dispatch(CHOSEN, 4)
    assert "0, 1, 1, 2" in viz.describe_dispatch(CHOSEN, 4)


@pytest.mark.parametrize(("indices", "message"), [([[4]], "4 was chosen"), ([1], "shape"), ([[-1]], "chosen")])
def test_dispatch_that_cannot_be_drawn(indices, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        viz.draw_dispatch(indices, 4)


def test_experts_touched() -> None:
    ax = viz.draw_experts_touched([1, 4], [2, 5], [2.0, 5.5], 8).axes[0]
    expected, counted, limit = ax.lines
    assert [*expected.get_ydata()] == [2.0, 5.5]
    assert [*counted.get_ydata()] == [2, 5]
    assert {*limit.get_ydata()} == {8}
    assert "1 → 2; 4 → 5" in viz.describe_experts_touched([1, 4], [2, 5], 8)
    with pytest.raises(RequestError, match="2 batch sizes, 1 counts"):
        viz.draw_experts_touched([1, 4], [2], [2.0, 5.5], 8)


@pytest.mark.parametrize(
    "figure",
    [
        viz.draw_routes(routes(open_TG=OPEN), value="affinity", n_groups=2),
        viz.draw_dispatch(CHOSEN, 4),
        viz.draw_experts_touched([1, 4], [2, 5], [2.0, 5.5], 8),
        viz.draw_load_bars({"a": [1, 2]}),
    ],
    ids=["routes", "dispatch", "touched", "load"],
)
def test_text_is_at_least_nine_points(figure: Figure) -> None:
    sizes = [text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(sizes) >= 9
