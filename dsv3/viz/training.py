"""The course of a training run: losses, and the balance of the experts, by step."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from dsv3.errors import RequestError
from dsv3.viz.theme import panels, themed

BALANCE = "max_vio."
"""Prefix of the log's columns that hold MaxVio; the rest of the name is the block's."""


@themed
def draw_training(log: Mapping[str, Sequence[float]]) -> Figure:
    """The losses as lines and, below, MaxVio of every MoE block as a heat map over the same steps.

    A batch's MaxVio jumps from step to step, so that lines of several blocks would hide each other.

    Args:
        log: the columns of the trainer's log.csv, equally long: ``step``; ``loss`` and, with an MTP module,
            ``mtp_loss``, in nats per token; ``max_vio.layers.3``, ``max_vio.mtp.0`` and the like, for the step's batch.
    """
    missing = [name for name in ("step", "loss") if not log.get(name)]
    if missing:
        raise RequestError(f"the training log has no {' and no '.join(missing)}; its columns are {', '.join(log)}")
    blocks = [name for name in log if name.startswith(BALANCE)]
    heights = [2.8, 0.8 + 0.25 * len(blocks)] if blocks else [2.8]
    figure, axes = panels(len(heights), 7.0, heights)
    steps = log["step"]
    axes[0].plot(steps, log["loss"], color="#4b2e83", label="next token")
    if "mtp_loss" in log:
        axes[0].plot(steps, log["mtp_loss"], color="#b35806", linestyle="--", label="token after it (MTP)")
    axes[0].set_ylabel("training loss (nats per token)")
    axes[0].legend()
    axes[0].grid(alpha=0.3)
    if blocks:
        violation = np.array([log[name] for name in blocks])
        # An even layer has 0, which a logarithm has no place for: 0.01 is as good as even.
        norm = LogNorm(vmin=max(float(violation.min()), 0.01), vmax=max(float(violation.max()), 1.0), clip=True)
        image = axes[1].pcolormesh(steps, range(len(blocks)), violation, norm=norm, cmap="Purples", shading="nearest")
        axes[1].set_yticks(range(len(blocks)), [name.removeprefix(BALANCE) for name in blocks])
        axes[1].invert_yaxis()
        figure.colorbar(image, ax=axes[1], pad=0.02).set_label("MaxVio of a batch")
    for ax in axes:
        ax.margins(x=0)
    axes[-1].set_xlabel("optimiser step")
    return figure


def describe_training(log: Mapping[str, Sequence[float]]) -> str:
    """One line of alternative text for ``draw_training``: where the losses and the balance begin and end."""
    first, last = log["step"][0], log["step"][-1]
    text = f"Training loss from {log['loss'][0]:.2f} at step {first:.0f} to {log['loss'][-1]:.2f} nats per token"
    text += f" at step {last:.0f}"
    blocks = [values for name, values in log.items() if name.startswith(BALANCE)]
    if blocks:
        before, after = (max(values[i] for values in blocks) for i in (0, -1))
        text += f"; MaxVio of the least balanced block from {before:.2f} to {after:.2f}"
    return text + "."
