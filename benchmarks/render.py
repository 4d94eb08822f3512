"""Write the tables of docs/performance.md from benchmarks/results/*.json.

    python benchmarks/render.py            rewrite the page
    python benchmarks/render.py --check    exit with 1 if the page is not what the results say

A table stands between ``<!-- results: NAME -->`` and ``<!-- end -->``; everything outside is written by hand. One table
is made for each file ``NAME.<device>.json``. A result that no marker shows is an error: nothing measured stays unseen.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common import RESULTS, ROOT, Row, table

PAGE = ROOT / "docs" / "performance.md"
MARKED = re.compile(r"(<!-- results: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "*Not measured yet: run the command above.*\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 if the page is stale")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = render(old, read_results(RESULTS))
    if new == old:
        return 0
    if check:
        print(f"{PAGE.relative_to(ROOT)} is stale: run python benchmarks/render.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


def read_results(folder: Path) -> dict[str, list[list[Row]]]:
    """Benchmark's name -> the rows of each of its files, in order of the files' names."""
    results: dict[str, list[list[Row]]] = {}
    for path in sorted(folder.glob("*.json")):
        rows = [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        results.setdefault(path.name.split(".", 1)[0], []).append(rows)
    return results


def render(page: str, results: Mapping[str, Sequence[Sequence[Row]]]) -> str:
    """``page`` with every marked table made anew. Raises ValueError for a result that the page has no marker for."""
    shown = {match["name"] for match in MARKED.finditer(page)}
    unseen = sorted(set(results) - shown)
    if unseen:
        raise ValueError(f"no marker for {', '.join(unseen)}: add <!-- results: {unseen[0]} --> and <!-- end -->")

    def fill(match: re.Match[str]) -> str:
        sections = [section(rows) for rows in results.get(match["name"], [])]
        return match[1] + ("\n".join(sections) or NOT_MEASURED) + match[3]

    return MARKED.sub(fill, page)


def section(rows: Sequence[Row]) -> str:
    """Where and when the rows were measured, their table, and how far both sides agreed before it was measured."""
    first = rows[0]
    versions = ", ".join(f"{package} {number}" for package, number in first.versions.items())
    agreed = {row.notes["batch"]: row.notes for row in rows if "equal_sequences" in row.notes}.values()
    agreement = ""
    if agreed:
        equal, compared = (sum(notes[key] for notes in agreed) for key in ("equal_sequences", "sequences"))
        agreement = f"\n{equal} of {compared} generated sequences equal the peer's token by token.\n"
    return f"{first.device}; {versions}; commit {first.commit}, {first.date}\n\n{table(rows)}\n{agreement}"


if __name__ == "__main__":
    sys.exit(main())
