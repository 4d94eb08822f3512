"""What each chapter of the walkthrough asks of a machine: time and memory, for docs/teaching.md in three languages.

    python benchmarks/chapter_times.py                       every English page, each in a fresh kernel with one thread
    python benchmarks/chapter_times.py --chapter 05_fp8      one page; the figures of the others stay
    python benchmarks/chapter_times.py --check               run nothing; exit with 1 if a page or a figure is missing

Results go to docs/data/chapter-times.json and, between ``<!-- NN_name: seconds -->`` and ``<!-- end -->`` (or
``memory``), into the pages. The notebooks are not changed.

The time is the CPU time of the page's kernel and of what it starts, imports included: on an idle core that is also the
time on the clock, and other work on the machine does not lengthen it. The memory is the largest process's at its peak.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import ROOT, cpu_name, replace_text, versions_of

from dsv3.learn import book, pages

FILE = ROOT / "docs" / "data" / "chapter-times.json"
PAGES = [ROOT / "docs" / name for name in ("teaching.md", "teaching_ES.md", "teaching_ZH.md")]
MARKED = re.compile(r"(<!-- (?P<chapter>\w+): (?P<what>seconds|memory) -->).*?(<!-- end -->)")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

Figures = Mapping[str, Mapping[str, float]]
"""Chapter -> {"seconds": ..., "memory": gigabytes}."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chapter", action="append", help="NN_name; default: all; may repeat")
    parser.add_argument("--check", action="store_true", help="only say whether file and pages are complete and agree")
    parser.add_argument("--one", metavar="PAGE", type=Path, help="print the figures of one notebook as JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one)))
        return 0
    the_book = book.Book(ROOT, only=tuple(args.chapter or ()))
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    figures: dict[str, Any] = known.get("chapters", {})
    if not args.check:
        for chapter in the_book.chapters():
            figures[chapter] = measured(the_book.page("en", chapter))
            print(f"{chapter}: {figures[chapter]}", file=sys.stderr, flush=True)
        figures = {chapter: figures[chapter] for chapter in the_book.all_chapters() if chapter in figures}
        replace_text(FILE, json.dumps(contents(figures), indent=1) + "\n")
        for page in PAGES:
            replace_text(page, filled(page.read_text(encoding="utf-8"), figures))
    wrong = problems(figures, the_book.all_chapters(), {page.name: page.read_text(encoding="utf-8") for page in PAGES})
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


def measured(page: Path) -> dict[str, float]:
    """In a process of its own, since the memory of ended children is known only as the largest of all of them."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", str(page)], env=os.environ | ONE_THREAD, check=True, capture_output=True
    )
    return json.loads(done.stdout)


def run(page: Path) -> dict[str, float]:
    pages.execute(pages.read(page), page.parent, page.name)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return {"seconds": round(used.ru_utime + used.ru_stime, 1), "memory": round(used.ru_maxrss * unit / 1e9, 2)}


def contents(figures: Figures) -> dict[str, Any]:
    return {"cpu": cpu_name(), "threads": 1, "versions": versions_of("torch", "nbclient"), "chapters": figures}


def filled(text: str, figures: Figures) -> str:
    """A page with its figures: whole seconds, memory to a tenth of a gigabyte, a dash for what was not measured."""

    def figure(match: re.Match[str]) -> str:
        value = figures.get(match["chapter"], {}).get(match["what"])
        shown = "—" if value is None else f"{value:.0f}" if match["what"] == "seconds" else f"{value:.1f}"
        return f"{match[1]}{shown}{match[4]}"

    return MARKED.sub(figure, text)


def problems(figures: Figures, chapters: list[str], texts: Mapping[str, str]) -> list[str]:
    found = [
        f"{chapter} was not measured: run python benchmarks/chapter_times.py --chapter {chapter}"
        for chapter in chapters
        if chapter not in figures
    ]
    for name, text in texts.items():
        shown = {match["chapter"] for match in MARKED.finditer(text)}
        found += [
            f"docs/{name} has no figures of {chapter}: add its row" for chapter in chapters if chapter not in shown
        ]
        if filled(text, figures) != text:
            found.append(f"docs/{name} does not show what was measured: run python benchmarks/chapter_times.py")
    return found


if __name__ == "__main__":
    sys.exit(main())
