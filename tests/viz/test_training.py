"""The figure of a training run holds the log's values, names its units and says the same in words."""

import io

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
}


def test_the_panels_hold_the_columns() -> None:
    losses, balance, _ = viz.draw_training(LOG).axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "next token": LOG["loss"],
        "token after it (MTP)": LOG["mtp_loss"],
    }
    assert all(list(line.get_xdata()) == LOG["step"] for line in losses.lines)
    (mesh,) = balance.collections
    np.testing.assert_array_equal(mesh.get_array(), [LOG["max_vio.layers.1"], LOG["max_vio.mtp.0"]])
    assert [label.get_text() for label in balance.get_yticklabels()] == ["layers.1", "mtp.0"]
    assert balance.yaxis_inverted()  # the first layer on top, as in the other heat maps


def test_axes_name_their_units() -> None:
    losses, balance, bar = viz.draw_training(LOG).axes
    assert "nats per token" in losses.get_ylabel()
    assert "step" in balance.get_xlabel()
    assert "MaxVio" in bar.get_ylabel()


def test_an_even_layer_can_be_drawn() -> None:
    viz.draw_training(LOG | {"max_vio.mtp.0": [1.0, 0.0, 0.0]}).savefig(io.BytesIO())


def test_the_two_losses_differ_without_their_colours() -> None:
    one, other = viz.draw_training(LOG).axes[0].lines
    assert one.get_linestyle() != other.get_linestyle()


def test_a_dense_model_has_one_panel() -> None:
    assert len(viz.draw_training({"step": [1.0], "loss": [2.0]}).axes) == 1


def test_text_is_at_least_nine_points() -> None:
    figure = viz.draw_training(LOG)
    figure.savefig(io.BytesIO())
    assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9


def test_words_give_the_ends_of_the_curves() -> None:
    text = viz.describe_training(LOG)
    assert text == (
        "Training loss from 8.90 at step 10 to 3.25 nats per token at step 30; "
        "MaxVio of the least balanced block from 4.80 to 0.25."
    )


def test_a_log_without_losses_is_refused() -> None:
    with pytest.raises(RequestError, match="no loss"):
        viz.draw_training({"step": [1.0], "lr": [0.1]})
