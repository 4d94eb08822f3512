"""The picture of a token's way: its stations in order, their shapes, who calls whom."""

import pytest
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError
from dsv3.viz.theme import TENSOR
from tests.viz.legible import assert_legible

WAY = [
    viz.Station("Transformer", "dsv3/model/transformer.py", "embeds", {"h": (1, 7, 256)}),
    viz.Station("MLA", "dsv3/layers/mla.py", "attends", {"c_kv": (1, 7, 128), "k_pe": (1, 7, 32)}, 1, layers=6),
    viz.Station("Linear", "dsv3/layers/linear.py", "multiplies", {f"x{i}": (7, i) for i in range(5)}, 2, layers=6),
    viz.Station("MoE", "dsv3/layers/moe.py", "mixes", {"routed_TD": (7, 256)}, 1, layers=5),
    viz.Station("Transformer", "dsv3/model/transformer.py", "decides", {"logits_BSV": (1, 7, 8192)}),
]


def way() -> Figure:
    return viz.draw_token_way(WAY, start="said to the", end="queen")


def boxes(figure: Figure) -> list[FancyBboxPatch]:
    (ax,) = figure.axes
    return [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)]


@pytest.mark.parametrize("code", ["en", "es", "zh"])
def test_text_is_large_enough_and_every_glyph_exists(code: str, recwarn: pytest.WarningsRecorder) -> None:
    assert_legible(way, code, recwarn)


def test_stations_stand_below_one_another_and_indented_by_depth() -> None:
    found = boxes(way())
    tops, lefts = [box.get_y() for box in found], [box.get_x() for box in found]
    assert len(found) == len(WAY)
    assert all(below >= above + box.get_height() for above, below, box in zip(tops, tops[1:], found, strict=False))
    assert lefts[0] == lefts[4] < lefts[1] == lefts[3] < lefts[2]


def test_a_box_has_room_for_its_lines() -> None:
    figure = way()
    figure.canvas.draw()
    texts = {text.get_text(): text.get_window_extent() for text in figure.findobj(Text)}
    box = boxes(figure)[2].get_window_extent()
    for words in ("Linear", "multiplies", "x0 7×0", "x4 7×4"):  # the fifth tensor begins a second line
        inside = texts[words]
        assert box.x0 <= inside.x0 < inside.x1 <= box.x1, words
        assert box.y0 <= inside.y0 < inside.y1 <= box.y1, words
    assert texts["x4 7×4"].y1 < texts["x0 7×0"].y0


def test_every_tensor_is_shown_with_its_shape_and_its_colour() -> None:
    (ax,) = way().axes
    words = [text.get_text() for text in ax.texts]
    for shown in ("said to the", "queen", "c_kv 1×7×128", "logits_BSV 1×7×8192", "in 6 layers", "in 5 layers"):
        assert shown in words
    assert "in 0 layers" not in words
    squares = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert len(squares) == sum(len(station.tensors) for station in WAY)
    colours = {patch.get_facecolor() for patch in squares}
    expected = Rectangle((0, 0), 1, 1, facecolor=TENSOR["c_kv"]).get_facecolor()
    assert expected in colours


def test_a_part_hangs_on_the_one_that_calls_it() -> None:
    figure = way()
    (ax,) = figure.axes
    uprights = [line.get_xydata() for line in ax.lines if line.get_xdata()[0] == line.get_xdata()[1]]
    bottoms = [round(box.get_y() + box.get_height(), 6) for box in boxes(figure)]
    # MLA and MoE hang on the first Transformer, Linear on MLA; the Transformers stand on the rail itself.
    assert [round(float(points[0][1]), 6) for points in uprights] == [bottoms[0], bottoms[1], bottoms[0]]


def test_the_words_name_every_station() -> None:
    said = viz.describe_token_way(WAY, start="said to the", end="queen")
    assert said.startswith(
        "A token's way from “said to the” to “queen”. Transformer (dsv3/model/transformer.py): h 1×7"
    )
    assert "MLA (dsv3/layers/mla.py): c_kv 1×7×128, k_pe 1×7×32;" in said


@pytest.mark.parametrize(
    ("stations", "said"),
    [([], "needs stations"), (WAY[1:], "has depth 0"), ([WAY[0], WAY[2]], "Linear has depth 2 behind one of depth 0")],
)
def test_a_way_that_nobody_can_go_is_refused(stations: list[viz.Station], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        viz.draw_token_way(stations, start="a", end="b")
