"""What can be wrong with a page or its translation. A finding is one sentence: where, what was found, what to do."""

import re
from collections.abc import Iterator
from pathlib import Path

import polib
from nbformat import NotebookNode

from dsv3.learn import catalogue, glossary, prose
from dsv3.learn.pages import LANGUAGE_TAG, READABLE_ID, code_cells, markdown_cells, tags

PAGE_BYTES = 2_000_000
"""A code host shows a notebook up to about this size."""

PICTURE_BYTES = 400_000
TEXT_CHARACTERS = 20_000

KNOWN_TAGS = {
    LANGUAGE_TAG,
    "nbval-ignore-output",  # what is printed differs from run to run: times, speeds
    "nbval-skip",
    "raises-exception",
    "predict",
    "exercise",
    "find-the-bug",
}
_ALTERNATIVE = re.compile(r"\S.{13,}", re.S)


def page_problems(notebook: NotebookNode, name: str, contents: str, root: Path) -> Iterator[str]:
    """A page by itself, in whatever language: ids, tags, that it has run, its outputs."""
    if len(contents.encode()) > PAGE_BYTES:
        yield f"{name} has {len(contents.encode()):,} bytes; at most {PAGE_BYTES:,}: draw fewer or smaller figures"
    for cell in notebook.cells:
        where = f"{name}, cell {cell.id}"
        if not READABLE_ID.fullmatch(cell.id):
            yield f"{where}: the id is not readable; `extract` gives it a name, or write one, such as gate-03-predict"
        for tag in tags(cell):
            if tag not in KNOWN_TAGS:
                yield f"{where} has the unknown tag {tag!r}; known are {', '.join(sorted(KNOWN_TAGS))}"
        if cell.cell_type == "markdown" and not cell.source.strip():
            yield f"{where} is empty: delete it"
    numbers = [cell.execution_count for cell in code_cells(notebook)]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"{name} has not been run from its first cell to its last: run `make notebooks`"
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            after = notebook.cells[position + 1] if position + 1 < len(notebook.cells) else None
            yield from _output_problems(cell, after, f"{name}, cell {cell.id}", root)


def _output_problems(cell: NotebookNode, after: NotebookNode | None, where: str, root: Path) -> Iterator[str]:
    for i, output in enumerate(cell.outputs):
        if output.output_type == "error" and "raises-exception" not in tags(cell):
            yield f"{where} ends in {output.ename}: {output.evalue}"
        if output.get("name") == "stderr":
            yield f"{where} writes on stderr, which differs from run to run: {output.text.strip()[:200]!r}"
        for text in _texts(output):
            if len(text) > TEXT_CHARACTERS:
                yield f"{where} prints {len(text):,} characters; at most {TEXT_CHARACTERS:,}: print less"
            if str(root) in text or str(Path.home()) + "/" in text:
                yield f"{where} prints a path of this machine: print names relative to the project"
        picture = output.get("data", {}).get("image/png")
        if picture is None:
            continue
        if (size := len(picture) * 3 // 4) > PICTURE_BYTES:
            yield f"{where} draws {size:,} bytes; at most {PICTURE_BYTES:,}: make the figure smaller or simpler"
        neighbours = [*cell.outputs[:i][-1:], *cell.outputs[i + 1 :][:1]]
        beside = [text for neighbour in neighbours for text in _texts(neighbour)]
        if after is not None and after.cell_type == "markdown":
            beside += [line for line in after.source.splitlines()[:1] if line.startswith("*")]
        if not any(_ALTERNATIVE.search(text) for text in beside):
            yield (
                f"{where} draws a figure without alternative text: show it with dsv3.learn.figures.show(figure, "
                "description), or print a line that says what it shows"
            )


def _texts(output: NotebookNode) -> list[str]:
    """What an output says to someone who sees no pictures; a picture's own text/plain says nothing."""
    if output.output_type == "stream":
        return [output.text]
    data = output.get("data", {})
    plain = [] if "image/png" in data else [data[kind] for kind in ("text/plain",) if kind in data]
    return [*plain, *(data[kind] for kind in ("text/markdown", "text/html") if kind in data)]


def translation_problems(source: NotebookNode, po: polib.POFile, name: str, language: str) -> Iterator[str]:
    """A catalogue against its source: every cell translated, nothing lost, the glossary's words."""
    entries = catalogue.entries(po)
    cells = markdown_cells(source)
    for extra in entries.keys() - cells.keys():
        yield f"{name}: the source has no cell {extra}: run `extract`"
    for cell, english in cells.items():
        where = f"{name}, cell {cell}"
        entry = entries.get(cell)
        if entry is None:
            yield f"{where} is not in the catalogue: run `extract`, then translate"
        elif entry.msgid != english:
            yield f"{where}: the English has changed since the last `extract`: run it, then look at the translation"
        elif entry.fuzzy:
            yield f"{where} is fuzzy: bring the translation up to date and take the flag off"
        elif not entry.msgstr.strip():
            yield f"{where} has no translation"
        else:
            yield from (f"{where}: {problem}" for problem in prose.differences(english, entry.msgstr))
            yield from (
                f"{where}: {problem}"
                for problem in glossary.problems(english, entry.msgstr, language, catalogue.exempt(entry))
            )


def code_problems(source: NotebookNode, page: NotebookNode, name: str) -> Iterator[str]:
    """The code of a translated page: the same cells with the same bytes, but for the one that chooses the language."""
    ours, theirs = code_cells(source), code_cells(page)
    if [cell.id for cell in ours] != [cell.id for cell in theirs]:
        yield f"{name} does not have the code cells of its source: run `build`"
        return
    for our, their in zip(ours, theirs):
        if our.source != their.source and LANGUAGE_TAG not in tags(our):
            yield f"{name}, cell {our.id}: the code differs from the source's: edit the English notebook, then `build`"


def label_word_problems(label: str, entry: polib.POEntry, language: str) -> Iterator[str]:
    """The glossary's words in one label; its placeholders are no words."""
    english, theirs = (re.sub(r"\{[^{}]*\}", "\ufffc", text) for text in (label, entry.msgstr))
    for problem in glossary.problems(english, theirs, language, catalogue.exempt(entry)):
        yield f"label {label!r}: {problem}"
