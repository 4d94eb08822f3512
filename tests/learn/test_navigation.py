"""Every chapter ends with the way on: in each language, with the titles of the pages that it leads to."""

import re
import shutil
from pathlib import Path

import pytest

from dsv3.learn import book, catalogue, navigation, pages
from dsv3.learn.exercises import by_chapter
from tests.conftest import ROOT
from tests.learn.small_book import CHAPTER, notebook, run_as_it_is, small_book, translate, write_source

BOOK = book.Book(ROOT)
CHAPTERS = BOOK.all_chapters()
LANGUAGES = ["en", "es", "zh"]
ANNOUNCED = set(by_chapter()) - set(CHAPTERS)
"""Chapters whose exercises are there before them: the tour may link them already."""

LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")


def cells(language: str, chapter: str) -> dict[str, str]:
    return pages.markdown_cells(pages.read(BOOK.page(language, chapter)))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_ends_with_links_to_its_neighbours_and_the_tour(language: str, chapter: str) -> None:
    last, text = list(cells(language, chapter).items())[-1]
    assert last == navigation.CELL
    assert pages.read(BOOK.page(language, chapter)).cells[-1].id == last  # no code comes after it
    place = CHAPTERS.index(chapter)
    expected = [*CHAPTERS[max(place - 1, 0) : place], CHAPTERS[0], *CHAPTERS[place + 1 : place + 2]]
    found = LINK.findall(text)
    assert [target for _, target in found] == [f"{name}.ipynb" for name in expected]
    for title, target in found:
        assert next(iter(cells(language, target.removesuffix(".ipynb")).values())).startswith(f"# {title}\n")
    assert text.count("—") == 3 - len(expected)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_links_to_files_lead_somewhere(language: str, chapter: str) -> None:
    path = BOOK.page(language, chapter)
    for cell, text in cells(language, chapter).items():
        for _, target in LINK.findall(text):
            if re.match(r"https?:", target) or Path(target).stem in ANNOUNCED:
                continue
            assert (path.parent / target.partition("#")[0]).exists(), f"{cell} links to {target}"


def test_the_tour_leads_to_every_chapter() -> None:
    linked = {target for text in cells("en", CHAPTERS[0]).values() for _, target in LINK.findall(text)}
    assert {f"{chapter}.ipynb" for chapter in CHAPTERS} <= linked


def two_chapters(root: Path) -> book.Book:
    """Chapters 01_small and 02_more, translated and run, without navigation yet."""
    small = small_book(root)
    shutil.copy(small.page("en", CHAPTER), small.page("en", "02_more"))
    book.extract(small, ["es", "zh"])
    translate(small, "es", {"small-title": "# Una página", "small-text": "Es corta.", "small-end": "Fin."})
    translate(small, "zh", {"small-title": "# 一页", "small-text": "很短。", "small-end": "完。"})
    book.build(small, ["es", "zh"])
    for language in ("es", "zh"):
        run_as_it_is(small, language)
    return small


def test_navigation_is_made_once_and_keeps_translations_and_outputs(tmp_path: Path) -> None:
    small = two_chapters(tmp_path)
    said = book.navigate(small, ["es", "zh"])
    assert said == ["01_small: a new navigation", "02_more: a new navigation"]
    entries = catalogue.entries(catalogue.read(small.catalogue("es", CHAPTER), "es"))
    assert entries["small-text"].msgstr == "Es corta."
    assert entries[navigation.CELL].msgstr == (
        "| ← anterior | el libro | siguiente → |\n|---|---|---|\n"
        "| — | [Una página](01_small.ipynb) | [A page](02_more.ipynb) |"  # the second is not translated yet
    )
    page = pages.read(small.page("es", CHAPTER))
    assert page.cells[-1].source == entries[navigation.CELL].msgstr
    assert pages.code_cells(page)[1].outputs[0].text == "2\n"
    assert book.extract(small, ["es", "zh"]) == []
    assert book.navigate(small, ["es", "zh"]) == []


def test_a_new_title_makes_the_neighbours_navigation_old(tmp_path: Path) -> None:
    small = two_chapters(tmp_path)
    book.navigate(small, ["es", "zh"])
    assert not [problem for problem in book.check(small, ["en"]) if "navigation" in problem]
    write_source(small, notebook({"small-title": "# Another title"}))
    assert list(book.check(small, ["en"])) == ["notebooks/en/02_more.ipynb has an old navigation: run `navigate`"]
    assert book.navigate(small, ["es", "zh"]) == ["01_small: a new navigation", "02_more: a new navigation"]
    assert "[Another title](01_small.ipynb)" in pages.read(small.page("en", "02_more")).cells[-1].source


def test_a_page_without_a_title_is_refused(tmp_path: Path) -> None:
    small = small_book(tmp_path, {"small-text": "It is short."})
    with pytest.raises(book.RequestError, match="must begin with a cell whose first line is its title"):
        book.navigate(small, ["es", "zh"])
