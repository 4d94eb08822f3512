"""The teachers' guide: every cell, exercise, command and measured figure that it names is there."""

import re
import shlex
import subprocess
import sys

import pytest
from markdown_it.token import Token

from dsv3.learn import book, pages
from dsv3.learn.exercises import EXERCISES, by_chapter
from tests.docs.markdown import ROOT, TRANSLATED, fences, parse

GUIDES = TRANSLATED["teaching"]
BOOK = book.Book(ROOT)
CHAPTER = re.compile(r"\d\d_\w+")
TASK = re.compile(r"(?:bug-[a-z-]+|[a-z]+\d*-\d)")
CELL = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")


def spans(tokens: list[Token]) -> list[str]:
    return [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]


def sections(page: str) -> dict[str, list[Token]]:
    """Chapter -> the tokens below its heading, up to the next heading."""
    found: dict[str, list[Token]] = {}
    tokens = parse(page)
    name = ""
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            name = tokens[i + 1].content
        elif CHAPTER.fullmatch(name):
            found.setdefault(name, []).append(token)
    return found


def cells(chapter: str) -> set[str]:
    return {cell.id for cell in pages.code_cells(pages.read(BOOK.page("en", chapter)))}


@pytest.mark.parametrize("page", GUIDES)
def test_every_chapter_has_a_section(page: str) -> None:
    assert set(BOOK.all_chapters()) | set(by_chapter()) == set(sections(page))


@pytest.mark.parametrize("page", GUIDES)
def test_a_section_names_all_exercises_of_its_chapter_and_cells_that_exist(page: str) -> None:
    n_cells = 0
    for chapter, tokens in sections(page).items():
        named = spans(tokens)
        tasks = [span for span in named if TASK.fullmatch(span)]
        expected = by_chapter().get(chapter) or ["cost-1"]  # the tour borrows one
        assert sorted(tasks) == sorted(expected), chapter
        asked = {span for span in named if CELL.fullmatch(span)} - set(tasks)
        n_cells += len(asked)
        if chapter in BOOK.all_chapters():
            assert asked, f"{chapter} asks nothing whose answer a cell computes"
            assert asked <= cells(chapter), chapter
    assert n_cells > 20


def test_the_plans_name_exercises_that_exist() -> None:
    tasks = {span for span in spans(parse(GUIDES[0])) if TASK.fullmatch(span)}
    assert tasks == set(EXERCISES)


def test_the_figures_are_those_that_were_measured() -> None:
    command = [sys.executable, "benchmarks/chapter_times.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_page_runs_longer_than_promised() -> None:
    """The walkthrough promises 40 s for a page with one thread."""
    (table,) = (block for block in parse_tables(GUIDES[0]) if "00_tour" in block[1][0])
    seconds = [cell for row in table[1:] for cell in re.findall(r"\w+: seconds -->(\d+)<", row[2])]
    assert len(seconds) == len(BOOK.all_chapters())
    assert all(0 < int(figure) <= 40 for figure in seconds)


def parse_tables(page: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    tokens = parse(page)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append(tokens[i + 1].content)
    return found


def test_commands_name_what_exists() -> None:
    lines = [line for block in fences(GUIDES[0], "bash") for line in block.splitlines()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    steps = {"extract", "build", "execute", "readme", "check", "status"}
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        if words[0] == "make":
            assert words[1] in targets
            chapters = [word.removeprefix("CHAPTER=") for word in words[2:]]
            assert set(chapters) <= set(BOOK.all_chapters())
        elif "dsv3.learn.book" in words:
            assert words[-1] in steps
        else:
            files = [word.split("=")[-1] for word in words if re.search(r"\.(ipynb|py|cfg)$", word)]
            assert files, line
            assert all((ROOT / file).is_file() for file in files), line
