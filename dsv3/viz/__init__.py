"""Figures. Each function takes plain tensors or numbers and returns a matplotlib ``Figure``; none runs a model.

matplotlib is imported in this package only. Drawing uses its object interface on the Agg canvas, so no window, no
global figure list and no display are involved, and a figure is freed like any other object.
"""

from dsv3.viz.routing import describe_expert_load, draw_expert_load
from dsv3.viz.theme import save
from dsv3.viz.training import describe_training, draw_training

__all__ = ["describe_expert_load", "describe_training", "draw_expert_load", "draw_training", "save"]
