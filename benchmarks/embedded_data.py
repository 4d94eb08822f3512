"""The logs of embedded_training.py to the small files in docs/data that pages, figures and notebooks are made of.

python benchmarks/embedded_data.py out/embedded [more directories of runs]

embedded-runs.json      the embedded and the dense model: last evaluations, by text (see embedded_runs.py)
embedded-choices.json   the short runs that the settings were chosen by, one line each
embedded-curves.csv     balancing and MTP compared: every tenth step of each run, losses and MaxVio by block
train_tiny.csv          the embedded model's own training, every 30 steps; train_tiny_eval.csv its evaluations
"""

import csv
import io
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import ROOT, replace_text

from dsv3.train.log import read_log

DATA = ROOT / "docs" / "data"
SAME_RUN = {"balance-bias-0": "muon-lr-6e-3"}  # a comparison that is a choice under another name
CURVE = ("loss", "mtp_loss", "lr")
EVERY = 3  # of the training log's lines, which come every 10 steps

Record = dict[str, Any]


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    folders = [Path(argument) for argument in arguments]
    lines = [json.loads(line) for folder in folders for line in (folder / "runs.jsonl").read_text().splitlines()]
    runs = {line["name"]: line for line in lines}
    logs = {name: read_log(next(f / name / "log.jsonl" for f in folders if (f / name).is_dir())) for name in runs}
    for name, same in SAME_RUN.items():
        if same in runs and name not in runs:
            runs[name], logs[name] = runs[same], logs[same]

    write_json("embedded-runs.json", {name: last_evaluation(runs[name]) for name in ("final", "dense") if name in runs})
    compared = sorted(name for name in runs if name.startswith(("balance-", "mtp-")))
    choices = [choice(line, logs[line["name"]]) for line in lines if is_choice(line["name"])]
    choices += [choice(runs[name] | {"name": name}, logs[name]) for name in compared]
    write_json("embedded-choices.json", choices)
    curves = [{"run": name} | flat(record, CURVE) for name in compared for record in of_kind(logs[name], "train")]
    write_csv("embedded-curves.csv", curves)
    if "final" in runs:
        write_csv("train_tiny.csv", [flat(record) for record in of_kind(logs["final"], "train")[1::EVERY]])
        evaluations = [record for record in of_kind(logs["final"], "eval") if not record.get("final")]
        write_csv("train_tiny_eval.csv", [flat(record) for record in evaluations])
    return 0


def is_choice(name: str) -> bool:
    return not name.startswith(("balance-", "mtp-")) and name not in ("final", "dense")


def of_kind(log: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in log if record["kind"] == kind]


def last_evaluation(run: Record) -> Record:
    keys = ("bits_per_byte", "max_vio", "mtp_loss", "mtp_agreement")
    figures = ("steps", "tokens", "parameters", "activated", "seconds", "device")
    return {
        "step": run["steps"],
        "run": {key: run[key] for key in figures},
        "last_losses": run["last_losses"],
        "validation": {key: run[key] for key in keys},
        "heldout": {"bits_per_byte": run["verses_bits_per_byte"]},
    }


def choice(run: Record, log: Sequence[Record]) -> Record:
    """One line of the table of choices; speed without compilation: the median of the log's laps."""
    speeds = [record["tokens_per_second"] for record in of_kind(log, "train")]
    keys = ("name", "changes", "steps", "tokens", "parameters", "activated", "bits_per_byte", "max_vio")
    return {key: run[key] for key in keys} | {"tokens_per_second": round(statistics.median(speeds), -3)}


def flat(record: Record, only: Sequence[str] = ()) -> Record:
    """Nested values as ``key.inner``; ``only`` these keys and MaxVio, all but the kind without it."""
    row: Record = {"step": record["step"]}
    for key, value in record.items():
        if key in ("kind", "step", "final") or (only and key not in (*only, "max_vio")):
            continue
        inner = value if isinstance(value, Mapping) else {"": value}
        row |= {f"{key}.{name}" if name else key: figure(number) for name, number in inner.items()}
    return row


def figure(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_json(name: str, value: Any) -> None:
    replace_text(DATA / name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_csv(name: str, rows: Sequence[Record]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace_text(DATA / name, text.getvalue())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
