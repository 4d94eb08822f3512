"""Figures about routing: which experts the tokens went to."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dsv3.errors import RequestError
from dsv3.expert_load import LayerLoad, relative_load
from dsv3.viz.labels import tr
from dsv3.viz.theme import DEVIATION_MAP, panels, themed

BUSIEST, IDLEST = "▲", "▽"
"""Marks in each row, so that its extremes are found without telling colours apart."""


@themed
def draw_expert_load(groups: Mapping[str, Sequence[LayerLoad]]) -> Figure:
    """Heat map of layer x expert: each expert's load in multiples of the layer's uniform load.

    The colours diverge from 1, the fair share: below it an expert idles, above it is busy. All panels share one scale,
    so languages can be compared.

    Args:
        groups: title -> the loads of its layers (``dsv3.expert_load.loads_from_records``); one panel each, from top to
            bottom. All layers have the same number of experts.
    """
    loads = {title: _relative_loads(title, layers) for title, layers in groups.items()}
    if not loads:
        raise RequestError("there is no expert load to draw: give at least one group of layers")
    n_experts = max(load.shape[1] for load in loads.values())
    # Idle is 0 and even is 1; the upper end stretches to the data, but at least to twice the fair share, so that the
    # noise of a well-balanced layer stays pale.
    top = max(2.0, *(float(load.max()) for load in loads.values()))
    norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=top)

    width = min(14.0, max(6.5, 2.2 + 0.2 * n_experts))
    heights = [0.75 + 0.28 * load.shape[0] for load in loads.values()]
    heights[-1] += 0.5  # the axis label below
    figure, axes = panels(len(loads), width, heights)
    image = None
    for ax, (title, load) in zip(axes, loads.items(), strict=True):
        image = ax.imshow(load, cmap=DEVIATION_MAP, norm=norm, aspect="auto", interpolation="nearest")
        _mark_extremes(ax, load, norm)
        ax.set_title(title, loc="left")
        ax.set_yticks(range(load.shape[0]), [_layer_label(layer.name) for layer in groups[title]])
        ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True))
    axes[-1].set_xlabel(tr("expert ({busiest} busiest, {idlest} idlest of its layer)", busiest=BUSIEST, idlest=IDLEST))
    assert image is not None
    near = 1.0 + 0.15 * (top - 1.0)  # a number so near the one at 1 would run into it
    upper = [tick for tick in MaxNLocator(nbins=5).tick_values(1.0, top) if near < tick <= top]
    bar = figure.colorbar(image, ax=axes, pad=0.02, ticks=[0.0, 0.5, 1.0, *upper])
    bar.set_label(tr("load (multiples of the uniform load; 1 = fair share)"))
    return figure


def _relative_loads(title: str, layers: Sequence[LayerLoad]) -> np.ndarray:
    sizes = {layer.counts_E.numel() for layer in layers}
    if len(sizes) != 1:
        raise RequestError(
            f"the layers of {title!r} have {sorted(sizes) or 'no'} experts; a heat map needs layers of one size"
        )
    return np.stack([relative_load(layer.counts_E).numpy() for layer in layers])


def _mark_extremes(ax: Axes, load: np.ndarray, norm: TwoSlopeNorm) -> None:
    for row, values in enumerate(load):
        for expert, mark in ((int(values.argmax()), BUSIEST), (int(values.argmin()), IDLEST)):
            dark = abs(float(norm(values[expert])) - 0.5) > 0.3
            ax.text(expert, row, mark, ha="center", va="center", fontsize=9, color="white" if dark else "black")


def _layer_label(name: str) -> str:
    """The name that ``loads_from_records`` gives a layer, in the reader's language."""
    if match := re.fullmatch(r"layer (\d+)", name):
        return tr("layer {index}", index=match[1])
    return name


def describe_expert_load(groups: Mapping[str, Sequence[LayerLoad]]) -> str:
    """One line of alternative text for ``draw_expert_load``: what it shows, and the extreme of each panel."""
    parts = []
    for title, layers in groups.items():
        worst = max(layers, key=lambda layer: layer.max_violation)
        expert, share = worst.busiest
        parts.append(
            tr(
                "{title}: the busiest is expert {expert} of {layer} with {times:.1f} times the uniform load, the mean "
                "entropy is {entropy:.0%} of its maximum",
                title=title,
                expert=expert,
                layer=_layer_label(worst.name),
                times=share * worst.counts_E.numel(),
                entropy=sum(layer.entropy for layer in layers) / len(layers),
            )
        )
    return tr(
        "Heat map of expert load by layer and expert, in multiples of the uniform load. {panels}.",
        panels=tr("; ").join(parts),
    )
