"""Draws the embedded model's needle map and its experts by language from benchmarks/results/model_card.cpu2.json.

    python docs/figures/embedded_model.py

benchmarks/model_card.py measures what is drawn here; this runs no model.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dsv3 import ModelConfig, viz

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "model_card.cpu2.json"
CONFIG = ROOT / "configs" / "config_tiny.json"
NEEDLE, DISTANCE = "needle accuracy, ", "language distance, "
TITLES = {"en": "English", "es": "Spanish", "zh": "Chinese"}

Row = dict[str, Any]


def read_rows(path: Path) -> dict[str, Row]:
    """The measured rows by their case."""
    return {row["case"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def needle_map(rows: dict[str, Row]) -> tuple[Figure, str]:
    """The figure and its description."""
    notes = {TITLES[case.removeprefix(NEEDLE)]: row["notes"] for case, row in rows.items() if case.startswith(NEEDLE)}
    first = next(iter(notes.values()))
    accuracy = {title: note["accuracy"] for title, note in notes.items()}
    chance = {title: note["chance"] for title, note in notes.items()}
    grid = first["lengths"], first["depths"]
    return viz.draw_recall(accuracy, *grid), viz.describe_recall(accuracy, *grid, chance=chance)


def experts_by_language(rows: dict[str, Row]) -> tuple[Figure, str]:
    """The figure and its description."""
    blocks = {
        case.removeprefix(DISTANCE): {TITLES[k]: v for k, v in row["notes"]["language_shares_by_expert"].items()}
        for case, row in rows.items()
        if case.startswith(DISTANCE)
    }
    config = ModelConfig.from_json(CONFIG)
    group_size = config.n_routed_experts // config.n_expert_groups
    return viz.draw_language_shares(blocks, group_size=group_size), viz.describe_language_shares(blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="what benchmarks/model_card.py wrote")
    parser.add_argument("--out", type=Path, default=HERE, help="directory for the figures")
    args = parser.parse_args()
    rows = read_rows(args.results)
    for name, (figure, description) in (
        ("needle_tiny.png", needle_map(rows)),
        ("experts_by_language_tiny.png", experts_by_language(rows)),
    ):
        viz.save(figure, args.out / name, description=description)


if __name__ == "__main__":
    main()
