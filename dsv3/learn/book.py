"""The walkthrough as a book in three languages: ``python -m dsv3.learn.book navigate | extract | build | check | ...``.

``notebooks/en/NN_name.ipynb`` is what a person edits. ``locales/{es,zh}/NN_name.po`` hold the translations, an entry
for each Markdown cell. ``notebooks/{es,zh}`` are built from both and edited by nobody.

    navigate  the last cell of every chapter, with links to its neighbours, wherever a chapter or a title is new
    extract   catalogues from the English notebooks: new cells are added, changed ones become fuzzy with the previous
              text kept, vanished ones obsolete; labels of plots and widgets likewise
    build     the translated notebooks; a page that is older than its source says so on its first line
    execute   run the notebooks and keep their outputs, English ones in place
    check     everything that the tests demand of the book; prints one line for each problem
    status    how much of each language is up to date; --markdown [language]: as a table in that language
    readme    write that table into README.md, README_ES.md and README_ZH.md, between its two comments

``make notebooks`` does all but ``status`` in order, ``check`` last, for one chapter with ``CHAPTER=NN_name``.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polib
from nbformat import NotebookNode

from dsv3.errors import Dsv3Error, RequestError
from dsv3.learn import audit, catalogue, labels, navigation, pages
from dsv3.learn.labels import tr

TRANSLATIONS = [code for code in labels.LANGUAGES if code != "en"]


@dataclass(frozen=True)
class Book:
    """The folders of one book; ``root`` holds ``notebooks`` and ``locales``, ``label_catalogues`` the labels' own.

    only: the chapters to work on; none given: all.
    """

    root: Path
    label_catalogues: Path = Path(__file__).parent / labels.LOCALES
    only: tuple[str, ...] = ()

    def all_chapters(self) -> list[str]:
        """File names without suffix, in order. Raises RequestError where there is none."""
        folder = self.root / "notebooks" / "en"
        found = sorted(path.stem for path in folder.glob("*.ipynb"))
        if not found:
            raise RequestError(f"there are no notebooks in {folder}: run this in the project's folder, or give --root")
        return found

    def chapters(self) -> list[str]:
        """Those of ``all_chapters`` to work on. Raises RequestError for a name that is not among them."""
        known = self.all_chapters()
        for chapter in self.only:
            if chapter not in known:
                raise RequestError(f"there is no chapter {chapter!r}; there are {', '.join(known)}")
        return [chapter for chapter in known if chapter in self.only or not self.only]

    def page(self, language: str, chapter: str) -> Path:
        return self.root / "notebooks" / language / f"{chapter}.ipynb"

    def catalogue(self, language: str, chapter: str) -> Path:
        return self.root / "locales" / language / f"{chapter}.po"

    def readme(self, language: str) -> Path:
        return self.root / ("README.md" if language == "en" else f"README_{language.upper()}.md")

    def labels(self, language: str) -> Path:
        return self.label_catalogues / language / labels.CATALOGUE


# -------------------------------------------------------------------------------------------------------- navigate


def navigate(book: Book, languages: Sequence[str]) -> list[str]:
    """Bring the navigation of all chapters up to date, whatever ``only`` says; a line for each that changed."""
    changed = navigation.update(book, languages)
    for language in languages:
        for chapter in changed:
            if book.page(language, chapter).is_file():  # a new chapter is built when it is translated
                pages.write_text(book.page(language, chapter), pages.text(built(book, language, chapter)))
    return [f"{chapter}: a new navigation" for chapter in changed]


# --------------------------------------------------------------------------------------------------------- extract


def extract(book: Book, languages: Sequence[str]) -> list[str]:
    """Bring names of cells and catalogues in step with the English notebooks; a line for each file that changed."""
    said: list[str] = []
    for chapter in book.chapters():
        source = pages.read(book.page("en", chapter))
        if named := pages.name_cells(source, chapter):
            pages.write_text(book.page("en", chapter), pages.text(source))
            said.append(f"{chapter}: named {', '.join(named)}")
        for language in languages:
            path = book.catalogue(language, chapter)
            po = catalogue.read(path, language)
            changes = catalogue.merge(po, pages.markdown_cells(source))
            if changes or not path.exists():
                pages.write_text(path, catalogue.text(po))
                counts = {"new": changes.added, "changed": changes.changed, "vanished": changes.vanished}
                said.append(f"{language}/{chapter}: " + ", ".join(f"{len(ids)} {what}" for what, ids in counts.items()))
    used = _used_labels(book)
    for language in languages:
        path = book.labels(language)
        po = catalogue.read(path, language)
        before = catalogue.text(po)
        _merge_labels(po, used)
        if catalogue.text(po) != before:
            pages.write_text(path, catalogue.text(po))
            said.append(f"{language}: labels")
    return said


def _used_labels(book: Book) -> dict[str, list[str]]:
    sources = [*labels.package_sources()]
    for chapter in book.all_chapters():
        cells = pages.code_cells(pages.read(book.page("en", chapter)))
        sources += [(f"notebooks/en/{chapter}.ipynb", _python(cell.source)) for cell in cells]
    return labels.used_labels(sources)


def _python(source: str) -> str:
    """A cell without the lines that only IPython reads."""
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in source.splitlines())


def _merge_labels(po: polib.POFile, used: dict[str, list[str]]) -> None:
    """Labels have no ids: one that changes is a new label, and the old one rests as obsolete."""
    known = {entry.msgid: entry for entry in po}
    for label, places in used.items():
        entry = known.setdefault(label, polib.POEntry(msgid=label))
        entry.obsolete = False
        entry.occurrences = [(place, "") for place in places]
    for label, entry in known.items():
        entry.obsolete = label not in used
    alive = [known[label] for label in used]
    po[:] = [*alive, *(entry for entry in known.values() if entry.obsolete and entry.msgstr)]


# ----------------------------------------------------------------------------------------------------------- build


def built(book: Book, language: str, chapter: str, *, keep_outputs: bool = True) -> NotebookNode:
    """The translated page as it has to be, with the outputs of the page that is there as far as they hold."""
    source = pages.read(book.page("en", chapter))
    entries = catalogue.entries(catalogue.read(book.catalogue(language, chapter), language))
    words: dict[str, str] = {}
    n_stale = 0
    for cell, english in pages.markdown_cells(source).items():
        entry = entries.get(cell)
        if entry is not None and entry.msgstr.strip():
            words[cell] = entry.msgstr
        n_stale += entry is None or not entry.translated() or entry.msgid != english
    path = book.page(language, chapter)
    before = pages.read(path) if keep_outputs and path.is_file() else None
    page = pages.translated(source, words, n_stale, language, path.name, before)
    return pages.normal(page)


def build(book: Book, languages: Sequence[str]) -> list[str]:
    """Write the translated pages, and remove those whose chapter is gone; a line for each file that changed."""
    said: list[str] = []
    for language in languages:
        for chapter in book.chapters():
            path, contents = book.page(language, chapter), pages.text(built(book, language, chapter))
            if not path.is_file() or path.read_text(encoding="utf-8") != contents:
                pages.write_text(path, contents)
                said.append(f"built {language}/{chapter}")
        for path in _strays(book, language):
            path.unlink()
            said.append(f"removed {language}/{path.stem}: no such chapter")
    return said


def _strays(book: Book, language: str) -> list[Path]:
    pages_here = (book.root / "notebooks" / language).glob("*.ipynb")
    return sorted(path for path in pages_here if path.stem not in book.all_chapters())


def execute(book: Book, languages: Sequence[str]) -> Iterator[str]:
    """Run pages in place; a line after each. A page that fails stays as it was."""
    for chapter in book.chapters():
        for language in languages:
            path = book.page(language, chapter)
            done = pages.execute(pages.read(path), path.parent, f"notebooks/{language}/{path.name}")
            pages.write_text(path, pages.text(done))
            yield f"ran {language}/{chapter}"


# ----------------------------------------------------------------------------------------------------------- check


def check(book: Book, languages: Sequence[str]) -> Iterator[str]:
    """Every problem of the book in these languages (English included where it is among them)."""
    for language in languages:
        if not book.only:  # labels are the whole book's
            yield from _label_problems(book, language)
            if table_is_old(book, language):
                yield f"{book.readme(language).name} has an old table of the translations: run `readme`"
        for path in _strays(book, language):
            yield f"notebooks/{language}/{path.name} has no chapter in notebooks/en: run `build`"
        for chapter in book.chapters():
            yield from _chapter_problems(book, language, chapter)


def _chapter_problems(book: Book, language: str, chapter: str) -> Iterator[str]:
    path, name = book.page(language, chapter), f"notebooks/{language}/{chapter}.ipynb"
    if not path.is_file():
        yield f"{name} does not exist: run `build`"
        return
    contents, page = path.read_text(encoding="utf-8"), pages.read(path)
    yield from audit.page_problems(page, name, contents, book.root)
    yield from navigation.problems(book, language, chapter, page)
    if language == "en":
        if contents != pages.text(page):
            yield f"{name} is not in the one form in which notebooks are kept: run `make notebooks`"
        return
    source = pages.read(book.page("en", chapter))
    po = catalogue.read(book.catalogue(language, chapter), language)
    yield from audit.translation_problems(source, po, f"locales/{language}/{chapter}.po", language)
    yield from audit.code_problems(source, page, name)
    if contents != pages.text(built(book, language, chapter)):
        yield f"{name} is not what `build` makes of its source and its catalogue: run `build`"


def _label_problems(book: Book, language: str) -> Iterator[str]:
    if language == "en":
        return
    name = f"the {language} catalogue of labels"
    used = _used_labels(book)
    po = {entry.msgid: entry for entry in catalogue.read(book.labels(language), language) if not entry.obsolete}
    for label, places in used.items():
        if label not in po:
            yield f"{name} has no {label!r} ({', '.join(places)}): run `extract`, then translate"
        elif not po[label].translated():
            yield f"{name} has no finished translation of {label!r} ({', '.join(places)})"
        else:
            yield from labels.label_problems(label, po[label].msgstr, language)
            yield from audit.label_word_problems(label, po[label], language)
    for label in po.keys() - used.keys():
        yield f"{name} has {label!r}, which nothing uses: run `extract`"


# ---------------------------------------------------------------------------------------------------------- status


@dataclass(frozen=True)
class Freshness:
    """Cells of one language: how many there are, are up to date, are older than their source, have no translation."""

    language: str
    cells: int
    fresh: int
    stale: int
    missing: int

    @property
    def percent(self) -> int:
        """Of the cells that are up to date; 100 only when all are."""
        return 100 * self.fresh // self.cells if self.cells else 100

    def line(self) -> str:
        return f"{self.language} {self.percent}%, {self.stale} stale, {self.missing} missing, of {self.cells} cells"


def status(book: Book, languages: Sequence[str]) -> list[Freshness]:
    found: list[Freshness] = []
    for language in languages:
        cells = fresh = stale = 0
        for chapter in book.chapters():
            entries = catalogue.entries(catalogue.read(book.catalogue(language, chapter), language))
            for cell, english in pages.markdown_cells(pages.read(book.page("en", chapter))).items():
                entry = entries.get(cell)
                has_words = entry is not None and bool(entry.msgstr.strip())
                is_fresh = entry is not None and entry.translated() and entry.msgid == english
                cells += 1
                fresh += is_fresh
                stale += has_words and not is_fresh
        found.append(Freshness(language, cells, fresh, stale, cells - fresh - stale))
    return found


TABLE = re.compile(r"<!-- translations -->.*?<!-- /translations -->", re.S)


def status_table(found: Sequence[Freshness], language: str = "en") -> str:
    """The same as a Markdown table, worded in ``language``, between two comments that mark a page's block."""
    rows = [f"| {labels.LANGUAGES[s.language]} | {s.percent}% | {s.stale} | {s.missing} |" for s in found]
    with labels.language(language):
        names = [tr("language"), tr("cells up to date"), tr("older than the source"), tr("not translated")]
    head = [f"| {' | '.join(names)} |", "|---|---|---|---|"]
    return "\n".join(["<!-- translations -->", "", *head, *rows, "", "<!-- /translations -->"])


def _with_table(book: Book, language: str) -> tuple[str, str]:
    """A README as it is and as it has to be; the whole book counts, whatever ``only`` says."""
    before = book.readme(language).read_text(encoding="utf-8")
    table = status_table(status(dataclasses.replace(book, only=()), TRANSLATIONS), language)
    return before, TABLE.sub(lambda _: table, before)


def table_is_old(book: Book, language: str) -> bool:
    """Whether the README of ``language`` has a table that is not of today; one without a table has none to be old."""
    if not book.readme(language).is_file():
        return False
    before, after = _with_table(book, language)
    return before != after


def write_tables(book: Book, languages: Sequence[str]) -> list[str]:
    """Bring the tables of the READMEs up to date; a line for each that changed."""
    old = [language for language in languages if table_is_old(book, language)]
    for language in old:
        pages.write_text(book.readme(language), _with_table(book, language)[1])
    return [f"{book.readme(language).name}: a new table of the translations" for language in old]


# --------------------------------------------------------------------------------------------------------- command


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: problems, or a failure; 2: wrong usage (by argparse)."""
    parser = argparse.ArgumentParser(prog="python -m dsv3.learn.book", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=["navigate", "extract", "build", "execute", "readme", "check", "status"])
    parser.add_argument("--language", choices=list(labels.LANGUAGES), action="append", help="default: all; may repeat")
    parser.add_argument("--chapter", action="append", help="NN_name; default: all; may repeat")
    parser.add_argument("--root", type=Path, default=Path("."), help="the project's folder (default: this one)")
    parser.add_argument(
        "--markdown", nargs="?", const="en", choices=list(labels.LANGUAGES), metavar="LANGUAGE",
        help="for status: a table instead of lines, worded in this language (default: en)",
    )  # fmt: skip
    args = parser.parse_args(arguments)
    book = Book(args.root.resolve(), only=tuple(args.chapter or ()))
    languages: list[str] = args.language or list(labels.LANGUAGES)
    others = [code for code in languages if code != "en"]
    try:
        match args.step:
            case "navigate":
                _say(navigate(book, others))
            case "extract":
                _say(extract(book, others))
            case "build":
                _say(build(book, others))
            case "execute":
                _say(execute(book, languages))
            case "status":
                found = status(book, others)
                table = args.markdown and status_table(found, args.markdown)
                print(table or "\n".join(s.line() for s in found))
            case "readme":
                _say(write_tables(book, languages))
            case _:
                problems = list(check(book, languages))
                _say(problems)
                _say([f"{len(problems)} problems" if problems else f"the book is sound in {', '.join(languages)}"])
                return 1 if problems else 0
    except Dsv3Error as error:
        _say([str(error)])
        return 1
    return 0


def _say(lines: "Sequence[str] | Iterator[str]") -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
