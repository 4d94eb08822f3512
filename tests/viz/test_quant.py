"""The figures about FP8 on what they hold: lines, bins, cells, scales, and the lines that describe them."""

import io

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError

E4M3 = torch.float8_e4m3fn
VALUES = torch.arange(256).to(torch.uint8).view(E4M3).double()


def assert_readable(figure: Figure) -> None:
    figure.savefig(io.BytesIO())
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert min(text.get_fontsize() for text in texts) >= 9
    assert not any("$" in text.get_text() for text in texts)


def test_the_number_line_has_every_magnitude_and_its_gap() -> None:
    figure = viz.draw_number_line(VALUES)
    whole, near, gaps = figure.axes
    assert len(whole.collections[0].get_segments()) == 127
    assert len(near.collections[0].get_segments()) == 25  # zero, 7 subnormals, 8 to each of two powers of two, the end
    line = gaps.lines[0]
    assert line.get_ydata()[0] == 2.0**-9
    assert line.get_ydata()[-1] == 32
    assert line.get_xdata()[-1] == 448
    assert_readable(figure)
    assert viz.describe_number_line(VALUES) == (
        "Number line of 127 magnitudes up to 448. Below 2⁻⁶ they are evenly spaced, 2⁻⁹ apart; above, the gap doubles "
        "with every power of two and ends at 32."
    )


def test_no_number_line_of_nothing() -> None:
    with pytest.raises(RequestError, match="0 different magnitudes"):
        viz.draw_number_line(torch.full((3,), float("nan")))


def test_relative_errors_leave_zeros_out() -> None:
    errors = viz.relative_errors(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([2.0, -4.0, 0.0]))
    assert errors.tolist() == [0.5, 1.0]


def test_the_histogram_counts_every_element_once() -> None:
    errors = {"coarse": torch.tensor([0.0, 0.02, 1.0, 1.0]), "fine": torch.tensor([0.01, 0.02, 0.02, 0.03])}
    figure = viz.draw_error_histogram(errors)
    (ax,) = figure.axes
    for stairs in ax.patches:
        assert sum(stairs.get_data().values) == pytest.approx(1.0)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["coarse: median 2.0%, lost 50.0%", "fine: median 2.0%, lost 0.0%"]
    assert_readable(figure)
    assert "coarse: median 2.0%, lost 50.0%; fine" in viz.describe_error_histogram(errors)
    with pytest.raises(RequestError, match="5 curves to draw"):
        viz.draw_error_histogram(dict.fromkeys("abcde", torch.ones(1)))


def test_error_maps_share_one_scale() -> None:
    maps = {"one": torch.full((4, 3), 0.2).double(), "tiles": torch.full((4, 3), 0.02).double()}
    figure = viz.draw_error_maps(maps)
    *panels, bar = figure.axes
    for ax in panels:
        assert (ax.images[0].norm.vmin, ax.images[0].norm.vmax) == pytest.approx((0.02, 0.2))
    for ax, errors in zip(panels, maps.values(), strict=True):
        np.testing.assert_allclose(ax.images[0].get_array(), errors)
    figure.savefig(io.BytesIO())
    assert [label.get_text() for label in bar.get_yticklabels()] == ["2%", "5%", "10%", "20%"]
    assert_readable(figure)
    assert "tiles: median 2.0%, worst tile 2%" in viz.describe_error_maps(maps)
    with pytest.raises(RequestError, match="one shape"):
        viz.draw_error_maps({"a": torch.ones(2, 3), "b": torch.ones(3, 3)})


def test_accumulation_draws_each_curve_against_the_lengths() -> None:
    curves = {"14 bits": [0.001, 0.02], "promoted": [0.001, 0.001]}
    figure = viz.draw_accumulation([128, 4096], curves)
    (ax,) = figure.axes
    assert [list(line.get_ydata()) for line in ax.lines] == list(curves.values())
    assert [label.get_text() for label in ax.get_xticklabels()] == ["128", "4096"]
    assert_readable(figure)
    assert "from 128 to 4096 terms. 14 bits: from 0.1% to 2%;" in viz.describe_accumulation([128, 4096], curves)
    with pytest.raises(RequestError, match="'x' has 1 errors, and there are 2 lengths"):
        viz.draw_accumulation([128, 256], {"x": [0.1]})


def test_codes_are_counted_by_their_exponent() -> None:
    codes = torch.tensor([0.0, -(2.0**-9), 2.0**-6, 1.0, -1.5, 448.0]).to(E4M3)
    counts = viz.code_exponents(codes)
    assert counts.sum() == 6
    assert {i: int(n) for i, n in enumerate(counts) if n} == {0: 2, 1: 1, 7: 2, 15: 1}


def test_scales_stand_in_rows_and_codes_in_bars() -> None:
    scales = {"w1": torch.tensor([0.001, 0.002]), "experts.w2": torch.tensor([[0.004]])}
    codes = torch.tensor([1.0, 1.5, 256.0, 0.0]).to(E4M3)
    figure = viz.draw_scales_and_codes(scales, codes)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["w1", "experts.w2"]
    np.testing.assert_allclose(left.lines[0].get_xdata(), [0.001, 0.002], rtol=1e-6)
    heights = [bar.get_height() for bar in right.patches]
    assert (heights[0], heights[7], heights[15]) == (0.25, 0.5, 0.25)
    assert_readable(figure)
    text = viz.describe_scales_and_codes(scales, codes)
    assert "2 kinds of weight, from 0.001 to 0.004" in text
    assert "the fullest bar begins at 2⁰, and 25.0% are subnormal or zero" in text
    with pytest.raises(RequestError, match="positive"):
        viz.draw_scales_and_codes({"w1": torch.zeros(1)}, codes)
