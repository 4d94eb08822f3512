"""Draws docs/figures/train_tiny.png, the embedded model's training, from docs/data/train_tiny.csv.

    python docs/figures/train_tiny.py

The CSV is the run's own log.csv (`dsv3 train` writes it every 10 steps), every third row of it.
"""

import csv
from pathlib import Path

from matplotlib.figure import Figure

from dsv3 import viz

HERE = Path(__file__).parent
LOG = HERE.parent / "data" / "train_tiny.csv"


def read_log() -> dict[str, list[float]]:
    """The columns of numbers."""
    with LOG.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0] if name != "kind"}


def draw() -> Figure:
    return viz.draw_training(read_log())


if __name__ == "__main__":
    viz.save(draw(), HERE / "train_tiny.png", description=viz.describe_training(read_log()))
