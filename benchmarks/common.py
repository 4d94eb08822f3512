"""What every benchmark shares: rows of one format, where they were measured, and files of results."""

import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one quantity."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Samples":
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Half the range over the median: 0.05 reads "± 5 %"."""
        return (max(self.values) - min(self.values)) / 2 / self.median


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure of ours, the peer's from the same run, and the limit of the machine, each None where there is none.

    ``ratio`` above 1 means that ours is better, whichever direction that is; ``share`` is ours over the limit.
    """

    name: str
    case: str
    ours: float
    ours_spread: float
    unit: str
    better: Literal["higher", "lower"]
    peer: str | None = None
    peer_value: float | None = None
    peer_spread: float | None = None
    ratio: float | None = None
    limit: float | None = None
    share: float | None = None
    device: str
    versions: dict[str, str]
    commit: str
    date: str
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rows of one run have in common."""

    name: str
    device: str
    versions: dict[str, str]
    commit: str = field(default_factory=lambda: git_commit())
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())

    def row(
        self,
        case: str,
        ours: Samples,
        unit: str,
        better: Literal["higher", "lower"],
        *,
        peer: str | None = None,
        peer_samples: Samples | None = None,
        limit: float | None = None,
        notes: dict[str, Any] | None = None,
    ) -> Row:
        ratio = None
        if peer_samples is not None:
            ratio = ours.median / peer_samples.median if better == "higher" else peer_samples.median / ours.median
        return Row(
            case=case,
            ours=_digits(ours.median),
            ours_spread=_digits(ours.spread),
            unit=unit,
            better=better,
            peer=peer,
            peer_value=_digits(peer_samples.median) if peer_samples else None,
            peer_spread=_digits(peer_samples.spread) if peer_samples else None,
            ratio=_digits(ratio),
            limit=_digits(limit),
            share=_digits(ours.median / limit) if limit else None,
            notes=notes or {},
            **vars(self),
        )


def _digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def write(rows: Sequence[Row], name: str, device: str) -> Path:
    """Replace ``results/<name>.<device>.json``; the old file survives an interrupt."""
    path = RESULTS / f"{name}.{device}.json"
    replace_text(path, json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")
    return path


def replace_text(path: Path, text: str) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, also readable in a terminal."""
    cells = [["case", "unit", "dsv3", "peer", "ratio", "share of the limit"]]
    for row in rows:
        peer = f"{row.peer} {row.peer_value:,.4g} ± {row.peer_spread:.0%}" if row.peer_value is not None else "–"
        accepted = f" ({row.notes['acceptance']:.0%} of drafts accepted)" if "acceptance" in row.notes else ""
        cells.append(
            [
                row.case + accepted,
                row.unit + (" (less is better)" if row.better == "lower" else ""),
                f"{row.ours:,.4g} ± {row.ours_spread:.0%}",
                peer,
                f"{row.ratio:.2f}×" if row.ratio is not None else "–",
                f"{row.share:.0%} of {row.limit:,.4g}" if row.share is not None else "–",
            ]
        )
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def versions_of(*packages: str) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_name() -> str:
    """The processor's own name where Linux tells it, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def git_commit() -> str:
    """The short hash of HEAD, with a + where the tracked files differ from it; "unknown" outside a repository."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")
