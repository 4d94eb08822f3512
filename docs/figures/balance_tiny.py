"""Draws docs/figures/balance_tiny.png, three ways of balancing the experts, from docs/data/embedded-curves.csv.

    python docs/figures/balance_tiny.py

benchmarks/embedded_training.py trains the runs and benchmarks/embedded_data.py collects their logs.
"""

import csv
from collections import defaultdict
from pathlib import Path

from dsv3 import viz

HERE = Path(__file__).parent
CURVES = HERE.parent / "data" / "embedded-curves.csv"
METHODS = {"bias": "bias", "auxiliary": "balance loss alone", "nothing": "neither"}

Run = dict[str, list[float]]


def read() -> dict[str, list[Run]]:
    """Method -> the columns of its runs, one for each seed."""
    runs: dict[str, Run] = {}
    with CURVES.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            columns = runs.setdefault(row.pop("run"), defaultdict(list))
            for name, value in row.items():
                if value:  # a model without MTP module has no MaxVio of one
                    columns[name].append(float(value))
    return {
        f"{title} ({n_seeds(len(of))})": of
        for method, title in METHODS.items()
        if (of := [run for name, run in runs.items() if name.startswith(f"balance-{method}-")])
    }


def n_seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"


if __name__ == "__main__":
    methods = read()
    viz.save(viz.draw_comparison(methods), HERE / "balance_tiny.png", description=viz.describe_comparison(methods))
