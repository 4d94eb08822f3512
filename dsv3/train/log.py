"""The log of a run: one JSON object a line, appended and flushed, readable while the run goes on.

``kind`` is "train" (means since the line before) or "eval". Resuming from step n drops the lines after n, so a curve
never runs twice over the same steps.
"""

import csv
import io
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dsv3.errors import CapacityError, CheckpointError

Record = dict[str, Any]


def read_log(path: str | Path) -> list[Record]:
    """All records, in order. A last line cut short by an interrupt is left out.

    Raises CheckpointError naming any other line that is not JSON.
    """
    records = []
    whole, _, _cut_short = Path(path).read_text(encoding="utf-8").rpartition("\n")
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{path}, line {number} is not JSON ({error}); remove the line") from None
    return records


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CapacityError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another out, and go on with --resume"
        ) from None


def _write_beside(path: Path, text: str) -> None:
    beside = path.with_suffix(path.suffix + ".tmp")
    with _explained(path):
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


class RunLog:
    """Appends records to ``path``.

    after_step: keep the records up to this step; None starts an empty log. write: False on ranks that only watch.
    Raises CapacityError where the disk refuses.
    """

    def __init__(self, path: str | Path, *, after_step: int | None = None, write: bool = True) -> None:
        self.path = Path(path)
        self.writes = write
        if not write:
            return
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if after_step is not None and self.path.exists():
            kept = [record for record in read_log(self.path) if record["step"] <= after_step]
        _write_beside(self.path, "".join(_line(record) for record in kept))

    def write(self, kind: str, step: int, **values: Any) -> Record:
        """Append one record; what is not finite becomes null, which JSON has in place of NaN."""
        record = {"kind": kind, "step": step} | {key: _finite(value) for key, value in values.items()}
        if self.writes:
            with _explained(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        return record

    def write_tables(self) -> None:
        """Write log.csv (training) and eval.csv (evaluations) beside the log, as far as it has come."""
        if self.writes:
            write_csv(self.path, self.path.with_suffix(".csv"))
            write_csv(self.path, self.path.with_name("eval.csv"), kind="eval")


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return value


def write_csv(log_path: str | Path, csv_path: str | Path, kind: str = "train") -> None:
    """The records of one kind as a table for spreadsheets; nested values become columns ``key.inner``."""
    rows = _rows(log_path, kind)
    columns = _names(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    _write_beside(Path(csv_path), text.getvalue())


def read_columns(log_path: str | Path, kind: str = "train") -> dict[str, list[float]]:
    """The columns of numbers of ``write_csv``, equally long; NaN where a record has no value."""
    rows = _rows(log_path, kind)
    columns = {name: [row.get(name) for row in rows] for name in _names(rows)}
    return {
        name: [math.nan if value is None else float(value) for value in values]
        for name, values in columns.items()
        if all(value is None or isinstance(value, (int, float)) for value in values)
    }


def _rows(log_path: str | Path, kind: str) -> list[Record]:
    return [_flat(record) for record in read_log(log_path) if record["kind"] == kind]


def _names(rows: list[Record]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def _flat(record: Record) -> Record:
    flat: Record = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[key] = value
    return flat


class Meter:
    """Tokens per second of training alone: pauses for evaluation and saving are left out."""

    def __init__(self, tokens_per_step: int, step: int) -> None:
        self.tokens_per_step = tokens_per_step
        self.first = self.last = step
        self.start = self.lap_start = time.monotonic()

    def lap(self, step: int) -> float:
        now = time.monotonic()
        speed = (step - self.last) * self.tokens_per_step / max(now - self.lap_start, 1e-9)
        self.last, self.lap_start = step, now
        return speed

    def mean(self, step: int) -> float:
        return (step - self.first) * self.tokens_per_step / max(time.monotonic() - self.start, 1e-9)

    @contextmanager
    def pause(self) -> Iterator[None]:
        begin = time.monotonic()
        yield
        spent = time.monotonic() - begin
        self.start += spent
        self.lap_start += spent
