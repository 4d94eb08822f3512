"""The last cell of every chapter: the chapter before, the tour with its map, the chapter after.

It is made from the chapters' titles in each language and written by nobody: ``python -m dsv3.learn.book navigate``
brings it up to date where a chapter is added or a title changes, in the English pages, the catalogues and the built
pages. No code cell changes, so every output stays.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import nbformat
import polib
from nbformat import NotebookNode

from dsv3.errors import RequestError
from dsv3.learn import catalogue, labels, pages
from dsv3.learn.labels import tr

if TYPE_CHECKING:
    from dsv3.learn.book import Book

CELL = "chapter-navigation"


def wanted(book: "Book", language: str, chapter: str) -> str:
    """The cell's text: a table of three links, with a dash before the first chapter and after the last."""
    chapters = book.all_chapters()
    place = chapters.index(chapter)
    links = [_link(book, language, chapters, i) for i in (place - 1, 0, place + 1)]
    with labels.language(language):
        head = [tr("← previous"), tr("the book"), tr("next →")]
    return "\n".join((f"| {' | '.join(head)} |", "|---|---|---|", f"| {' | '.join(links)} |"))


def _link(book: "Book", language: str, chapters: Sequence[str], i: int) -> str:
    if not 0 <= i < len(chapters):
        return "—"
    return f"[{title(book, language, chapters[i])}]({chapters[i]}.ipynb)"


def title(book: "Book", language: str, chapter: str) -> str:
    """A chapter's first heading; the English one where it has no translation yet."""
    path = book.page("en", chapter)
    cell, text = next(iter(pages.markdown_cells(pages.read(path)).items()), ("", ""))
    if language != "en":
        entry = catalogue.entries(catalogue.read(book.catalogue(language, chapter), language)).get(cell)
        text = entry.msgstr if entry is not None and entry.msgstr.strip() else text
    first = text.split("\n", 1)[0]
    if not first.startswith("# "):
        raise RequestError(f"{path} must begin with a cell whose first line is its title, as in # The gate")
    return first.removeprefix("# ")


def update(book: "Book", languages: Sequence[str]) -> list[str]:
    """Bring the cell up to date in every chapter of the book; the chapters that changed."""
    return [chapter for chapter in book.all_chapters() if _update(book, languages, chapter)]


def _update(book: "Book", languages: Sequence[str], chapter: str) -> bool:
    path, english = book.page("en", chapter), wanted(book, "en", chapter)
    source = pages.read(path)
    changed = source.cells[-1].id != CELL or source.cells[-1].source != english
    if changed:
        source.cells = [cell for cell in source.cells if cell.id != CELL]
        source.cells.append(nbformat.v4.new_markdown_cell(english, id=CELL))
        pages.write_text(path, pages.text(source))
    for language in languages:
        file = book.catalogue(language, chapter)
        po = catalogue.read(file, language)
        before, theirs = catalogue.text(po), wanted(book, language, chapter)
        others = [entry for entry in po if entry.msgctxt != CELL]
        alive = sum(not entry.obsolete for entry in others)
        po[:] = [*others[:alive], polib.POEntry(msgctxt=CELL, msgid=english, msgstr=theirs), *others[alive:]]
        if catalogue.text(po) != before:
            pages.write_text(file, catalogue.text(po))
            changed = True
    return changed


def problems(book: "Book", language: str, chapter: str, page: NotebookNode) -> Iterator[str]:
    """A page's navigation that is not of today. A page without any is complete in itself."""
    shown = [cell.source for cell in page.cells if cell.id == CELL]
    if shown and shown != [wanted(book, language, chapter)]:
        yield f"notebooks/{language}/{chapter}.ipynb has an old navigation: run `navigate`"
