"""A book of one chapter and no kernels, for the tests of its machinery."""

import shutil
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from dsv3.learn import book, catalogue, labels, pages

CHAPTER = "01_small"
CELLS = {"small-title": "# A page", "small-text": "It is short.", "small-end": "The end."}
LANGUAGE_CELL = 'from dsv3.learn.labels import set_language\n\nset_language("en")'


def notebook(cells: dict[str, str], code: str = "print(1 + 1)") -> NotebookNode:
    """Markdown cells, then one that chooses the language and one with ``code``, both as if they had run."""
    first = nbformat.v4.new_code_cell(LANGUAGE_CELL, id="small-language", execution_count=1)
    first.metadata["tags"] = ["lang"]
    output = nbformat.v4.new_output("stream", name="stdout", text="2\n")
    second = nbformat.v4.new_code_cell(code, id="small-sum", execution_count=2, outputs=[output])
    markdown = [nbformat.v4.new_markdown_cell(text, id=cell) for cell, text in cells.items()]
    return nbformat.v4.new_notebook(cells=[*markdown, first, second])


def small_book(root: Path, cells: dict[str, str] = CELLS) -> book.Book:
    """In ``root``, extracted; the labels' catalogues are copies, so that a test may change them."""
    found = book.Book(root, root / "labels")
    shutil.copytree(Path(labels.__file__).parent / labels.LOCALES, found.label_catalogues, dirs_exist_ok=True)
    write_source(found, notebook(cells))
    book.extract(found, ["es", "zh"])
    return found


def write_source(where: book.Book, source: NotebookNode) -> None:
    pages.write_text(where.page("en", CHAPTER), pages.text(source))


def translate(where: book.Book, language: str, words: dict[str, str]) -> None:
    """Give cells a translation that counts as up to date."""
    path = where.catalogue(language, CHAPTER)
    po = catalogue.read(path, language)
    for cell, entry in catalogue.entries(po).items():
        if cell in words:
            entry.msgstr = words[cell]
            entry.flags, entry.previous_msgid = [], None
    pages.write_text(path, catalogue.text(po))


def run_as_it_is(where: book.Book, language: str) -> None:
    """Give a built page the outputs of a run without starting a kernel."""
    page = pages.read(where.page(language, CHAPTER))
    for cell, ran in zip(pages.code_cells(page), pages.code_cells(notebook({})), strict=True):
        cell.execution_count, cell.outputs = ran.execution_count, ran.outputs
    pages.write_text(where.page(language, CHAPTER), pages.text(page))
