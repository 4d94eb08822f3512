"""Figures are checked on what they hold: data, colours' centre, labels, sizes of text."""

import io
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from dsv3 import viz
from dsv3.errors import RequestError
from dsv3.expert_load import LayerLoad

GROUPS = {
    "English": [LayerLoad("layer 1", torch.tensor([4, 2, 2, 0])), LayerLoad("MTP 0", torch.tensor([1, 1, 1, 1]))],
    "中文": [LayerLoad("layer 1", torch.tensor([0, 0, 0, 9])), LayerLoad("MTP 0", torch.tensor([2, 1, 1, 0]))],
}
LATIN = {"English": GROUPS["English"], "Spanish": GROUPS["中文"]}


def heat_maps(figure: Figure) -> list:
    return [ax.images[0] for ax in figure.axes if ax.images]


def test_each_panel_holds_the_load_relative_to_uniform() -> None:
    english, spanish = heat_maps(viz.draw_expert_load(LATIN))
    np.testing.assert_allclose(english.get_array(), [[2, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(spanish.get_array(), [[0, 0, 0, 4], [2, 1, 1, 0]])


def test_colours_diverge_from_the_uniform_load_on_one_scale() -> None:
    norms = [image.norm for image in heat_maps(viz.draw_expert_load(LATIN))]
    assert all(isinstance(norm, TwoSlopeNorm) for norm in norms)
    assert {(norm.vmin, norm.vcenter, norm.vmax) for norm in norms} == {(0.0, 1.0, 4.0)}


def test_noise_of_an_even_layer_stays_pale() -> None:
    figure = viz.draw_expert_load({"even": [LayerLoad("layer 1", torch.tensor([100, 101, 99, 100]))]})
    assert heat_maps(figure)[0].norm.vmax == 2.0


def test_axes_name_layers_experts_and_units() -> None:
    figure = viz.draw_expert_load(LATIN)
    first, last, bar = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["layer 1", "MTP 0"]
    assert [first.get_title(loc="left"), last.get_title(loc="left")] == ["English", "Spanish"]
    assert "expert" in last.get_xlabel()
    assert "multiples of the uniform load" in bar.get_ylabel()


def test_busiest_and_idlest_are_marked_not_only_coloured() -> None:
    ax = viz.draw_expert_load(LATIN).axes[0]
    marks = {(round(text.get_position()[0]), round(text.get_position()[1])): text.get_text() for text in ax.texts}
    assert marks[(0, 0)] == "▲"
    assert marks[(3, 0)] == "▽"


def test_text_is_at_least_nine_points() -> None:
    figure = viz.draw_expert_load(LATIN)
    figure.savefig(io.BytesIO())
    sizes = {text.get_fontsize() for text in figure.findobj(Text) if text.get_text()}
    assert min(sizes) >= 9


def test_the_callers_settings_survive() -> None:
    before = dict(matplotlib.rcParams)
    viz.draw_expert_load(LATIN)
    assert dict(matplotlib.rcParams) == before


def test_alternative_text_names_the_extreme_of_each_panel() -> None:
    text = viz.describe_expert_load(GROUPS)
    assert "English: the busiest is expert 0 of layer 1 with 2.0 times" in text
    assert "中文: the busiest is expert 3 of layer 1 with 4.0 times" in text


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "no expert load"),
        ({"x": []}, "'x' have no experts"),
        ({"x": [LayerLoad("layer 1", torch.ones(4)), LayerLoad("layer 2", torch.ones(8))]}, r"\[4, 8\] experts"),
    ],
)
def test_groups_that_cannot_be_drawn(groups: dict[str, list[LayerLoad]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        viz.draw_expert_load(groups)


def test_save_writes_the_description_into_a_png(tmp_path) -> None:
    path = viz.save(viz.draw_expert_load(LATIN), tmp_path / "load.png", description="what it shows")
    with Image.open(path) as image:
        assert image.info["Description"] == "what it shows"
    assert [entry.name for entry in tmp_path.iterdir()] == ["load.png"]


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_save_follows_the_suffix(tmp_path, suffix: str) -> None:
    assert viz.save(viz.draw_expert_load(LATIN), tmp_path / f"load.{suffix}").stat().st_size > 1000


def test_save_refuses_what_it_cannot_write(tmp_path) -> None:
    figure = viz.draw_expert_load(LATIN)
    with pytest.raises(RequestError, match=r"load\.docx.*png"):
        viz.save(figure, tmp_path / "load.docx")
    with pytest.raises(RequestError, match="no such directory"):
        viz.save(figure, tmp_path / "absent" / "load.png")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "load.png"
    path.write_bytes(b"old")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    figure = viz.draw_expert_load(LATIN)
    monkeypatch.setattr(figure, "savefig", full_disk)
    with pytest.raises(Exception, match="No space left"):
        viz.save(figure, path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["load.png"]


@pytest.mark.parametrize("busiest", [2, 7, 15, 30, 46])
def test_the_numbers_beside_the_colours_do_not_run_into_one_another(busiest: int) -> None:
    load = LayerLoad("layer 1", torch.tensor([busiest, *[2] * 30]))
    figure = viz.draw_expert_load({"one": [load] * 4})
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[-1].get_yticklabels() if label.get_text()]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) >= 4
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))
