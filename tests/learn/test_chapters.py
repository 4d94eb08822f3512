"""The chapters show every exercise as the package gives it: the task, the stub of ``dsv3.learn``, the check."""

import re

import pytest

from dsv3.learn import book, pages
from dsv3.learn.exercises import EXERCISES, by_chapter, source
from tests.conftest import ROOT

BOOK = book.Book(ROOT)
TO_BE_WRITTEN: set[str] = set()
"""Chapters whose exercises may be there before them. One that exists is held to its exercises all the same."""

CHECKED = re.compile(r'\blearn\.check\(\s*"([^"]*)"')


def code_of(chapter: str) -> list[tuple[str, str]]:
    """Ids and sources of the code cells of the English page; the others' are the same (``book.check``)."""
    return [(cell.id, cell.source) for cell in pages.code_cells(pages.read(BOOK.page("en", chapter)))]


SHOWN = {
    (chapter, cell): (exercise, code)
    for chapter in BOOK.all_chapters()
    for cell, code in code_of(chapter)
    for exercise in CHECKED.findall(code)
}
"""(chapter, cell) -> the exercise that the cell checks, and its code."""


def written_chapters() -> list[str]:
    return [chapter for chapter in by_chapter() if chapter in BOOK.all_chapters()]


@pytest.mark.parametrize(("chapter", "cell"), SHOWN)
def test_an_exercise_starts_from_its_stub(chapter: str, cell: str) -> None:
    exercise, code = SHOWN[chapter, cell]
    assert exercise in EXERCISES
    stub = source.stub(EXERCISES[exercise])
    # Shown, not printed: printed text is broken in the middle of words. The task may also have a cell of its own.
    task = f'display(learn.task("{exercise}"))\n\n\n' if code.startswith(("print", "display")) else ""
    check = f'learn.check("{exercise}", {source.name_of(EXERCISES[exercise])})'
    assert code == f"{task}{stub}\n\n{check}"


@pytest.mark.parametrize("chapter", written_chapters())
def test_every_exercise_of_a_chapter_is_shown_in_it_once(chapter: str) -> None:
    assert sorted(exercise for (where, _), (exercise, _) in SHOWN.items() if where == chapter) == sorted(
        by_chapter()[chapter]
    )


@pytest.mark.parametrize("chapter", written_chapters())
def test_the_task_stands_before_the_stub(chapter: str) -> None:
    code = "\n".join(text for _, text in code_of(chapter))
    for exercise in by_chapter()[chapter]:
        assert 0 <= code.find(f'learn.task("{exercise}")') < code.find(f'learn.check("{exercise}"'), exercise


def test_every_chapter_with_exercises_is_written() -> None:
    assert set(by_chapter()) - set(BOOK.all_chapters()) <= TO_BE_WRITTEN
