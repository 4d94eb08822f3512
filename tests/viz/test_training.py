"""The figure of a training run holds the log's values, names its units and says the same in words."""

import io
import math

import numpy as np
import pytest
from matplotlib.text import Text

from dsv3 import viz
from dsv3.errors import RequestError

LOG = {
    "step": [10.0, 20.0, 30.0],
    "loss": [8.9, 5.0, 3.25],
    "mtp_loss": [9.0, 5.5, 3.5],
    "max_vio.layers.1": [4.8, 0.5, 0.1],
    "max_vio.mtp.0": [2.4, 0.3, 0.25],
    "lr": [0.1, 0.2, 0.3],
    "tokens_per_second": [11e3, 12e3, 13e3],
}


EVALUATIONS = {
    "step": [15.0, 30.0],
    "bits_per_byte.en": [2.5, 1.25],
    "bits_per_byte.zh": [2.75, 1.5],
    "mtp_agreement": [0.1, 0.5],
}
LANGUAGES = {"loss_by_language.en": [8.5, 4.5, 3.0], "loss_by_language.zh": [9.0, math.nan, 3.5]}


def curves(ax) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in ax.lines}


def test_the_panels_hold_the_columns() -> None:
    losses, bits, balance, rate, speed = viz.draw_training(LOG | LANGUAGES, EVALUATIONS).axes
    assert curves(losses)["next token"] == LOG["loss"]
    assert curves(losses)["token after it (MTP)"] == LOG["mtp_loss"]
    assert curves(losses)["en"] == LANGUAGES["loss_by_language.en"]
    assert curves(losses)["zh"] == [9.0, 3.5]  # joined over the step that had none of it
    assert len(losses.lines) == 4
    assert curves(bits) == {"en": EVALUATIONS["bits_per_byte.en"], "zh": EVALUATIONS["bits_per_byte.zh"]}
    assert all(list(line.get_xdata()) == EVALUATIONS["step"] for line in bits.lines)
    (mesh,) = balance.collections
    np.testing.assert_array_equal(mesh.get_array(), [LOG["max_vio.layers.1"], LOG["max_vio.mtp.0"]])
    assert [label.get_text() for label in balance.get_yticklabels()] == ["layers.1", "mtp.0"]
    assert balance.yaxis_inverted()  # the first layer on top, as in the other heat maps
    for ax, name in ((rate, "lr"), (speed, "tokens_per_second")):
        (line,) = ax.lines
        assert list(line.get_ydata()) == LOG[name]
        assert ax.get_ylim()[0] == 0
    assert len({ax.get_xlim() for ax in (losses, bits, balance, rate, speed)}) == 1  # the same steps below one another


def test_axes_name_their_units() -> None:
    losses, bits, balance, _, speed = viz.draw_training(LOG, EVALUATIONS).axes
    assert "nats per token" in losses.get_ylabel()
    assert "bits per byte" in bits.get_ylabel()
    assert "tokens/s" in speed.get_ylabel()
    assert "step" in speed.get_xlabel()
    (bar,) = balance.child_axes
    assert "MaxVio" in bar.get_ylabel()


def test_panels_without_data_are_left_out() -> None:
    log = {"step": LOG["step"], "loss": LOG["loss"]}
    assert len(viz.draw_training(log).axes) == 1
    assert len(viz.draw_training(log, {"step": [15.0], "mtp_agreement": [0.5]}).axes) == 1
    assert len(viz.draw_training(log, {}).axes) == 1


def test_a_language_that_no_batch_had_is_left_out() -> None:
    log = LOG | {"loss_by_language.en": LOG["loss"], "loss_by_language.zh": [math.nan] * 3}
    assert "zh" not in curves(viz.draw_training(log).axes[0])
    assert "(en 3.25)" in viz.describe_training(log)


def test_one_line_of_the_log_is_drawn_without_complaint() -> None:
    log = {name: values[:1] for name, values in LOG.items()}
    viz.draw_training(log, {name: values[:1] for name, values in EVALUATIONS.items()}).savefig(io.BytesIO())


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("blocks", [["max_vio.layers.1"], ["max_vio.layers.1", "max_vio.mtp.0"]])
def test_the_heat_map_fills_its_panel(blocks: list[str], n_steps: int) -> None:
    log = {name: LOG[name][:n_steps] for name in ("step", "loss", *blocks)}
    figure = viz.draw_training(log)
    balance = figure.axes[1]
    (mesh,) = balance.collections
    low, high = mesh.get_coordinates().min((0, 1)), mesh.get_coordinates().max((0, 1))
    assert (low[1], high[1]) == (-0.5, len(blocks) - 0.5)
    assert low[0] <= balance.get_xlim()[0] < balance.get_xlim()[1] <= high[0]
    figure.canvas.draw()
    inside = balance.get_window_extent()
    pixels = np.asarray(figure.canvas.buffer_rgba())[::-1]  # the first row is the lowest, as in the extent
    map_only = pixels[int(inside.y0) + 3 : int(inside.y1) - 3, int(inside.x0) + 3 : int(inside.x1) - 3, :3]
    assert (map_only.min(-1) < 255).mean() > 0.95, "most of the panel is white"


def test_an_even_layer_can_be_drawn() -> None:
    viz.draw_training(LOG | {"max_vio.mtp.0": [1.0, 0.0, 0.0]}).savefig(io.BytesIO())


def test_no_two_curves_look_alike_without_their_colours() -> None:
    many = {
        f"loss_by_language.{name}": LOG["loss"] for name in ("en", "es", "zh", "recall-en", "recall-es", "recall-zh")
    }
    axes = viz.draw_training(LOG | many, EVALUATIONS).axes[:2]
    for ax in axes:
        looks = [(str(line._dash_pattern), line.get_linewidth(), line.get_marker()) for line in ax.lines]
        assert len(set(looks)) == len(looks)


def test_a_dense_model_has_one_panel() -> None:
    assert len(viz.draw_training({"step": [1.0], "loss": [2.0]}).axes) == 1


def test_text_is_at_least_nine_points() -> None:
    figure = viz.draw_training(LOG | LANGUAGES, EVALUATIONS)
    figure.savefig(io.BytesIO())
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_words_give_the_ends_of_the_curves() -> None:
    text = viz.describe_training(LOG)
    assert text == (
        "Training loss from 8.90 at step 10 to 3.25 nats per token at step 30; "
        "MaxVio of the least balanced block from 4.80 to 0.25; 12,000 tokens per second in the median."
    )
    text = viz.describe_training(LOG | LANGUAGES, EVALUATIONS)
    assert "(en 3.00, zh 3.50)" in text
    assert "validation bits per byte of en from 2.50 to 1.25, zh from 2.75 to 1.50" in text


def test_a_log_without_losses_is_refused() -> None:
    with pytest.raises(RequestError, match="no loss"):
        viz.draw_training({"step": [1.0], "lr": [0.1]})
