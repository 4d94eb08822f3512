"""Draws docs/figures/train_tiny.png, the embedded model's training, from docs/data/train_tiny.csv and _eval.csv.

    python docs/figures/train_tiny.py

The CSVs are the run's own log.csv (`dsv3 train` writes it every 10 steps), every third row of it, and its eval.csv.
"""

import csv
import math
from pathlib import Path

from matplotlib.figure import Figure

from dsv3 import viz

HERE = Path(__file__).parent
LOG = HERE.parent / "data" / "train_tiny.csv"
EVALUATIONS = HERE.parent / "data" / "train_tiny_eval.csv"
RECALL = "loss_by_language.recall-"  # a few rows in a hundred: not every batch has them, and their curves only jump


def read(path: Path) -> dict[str, list[float]]:
    """The columns of numbers; NaN where a step has none."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: [float(row[name] or math.nan) for row in rows]
        for name in rows[0]
        if name != "kind" and not name.startswith(RECALL)
    }


def draw() -> Figure:
    return viz.draw_training(read(LOG), read(EVALUATIONS))


if __name__ == "__main__":
    viz.save(draw(), HERE / "train_tiny.png", description=viz.describe_training(read(LOG), read(EVALUATIONS)))
