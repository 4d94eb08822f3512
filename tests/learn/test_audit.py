"""What is wrong with a page is said, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import polib
import pytest
from nbformat import NotebookNode

from dsv3.learn import audit, catalogue, pages
from tests.learn.small_book import notebook

OUT = nbformat.v4.new_output
PICTURE = {"image/png": "aGVsbG8=", "text/plain": "<IPython.core.display.Image object>"}


def page_problems(page: NotebookNode, root: Path = Path("/nowhere")) -> list[str]:
    return list(audit.page_problems(page, "page", pages.text(page), root))


def with_outputs(*outputs: NotebookNode) -> NotebookNode:
    page = notebook({"small-text": "x"})
    page.cells[-1].outputs = list(outputs)
    return page


def line(text: str = "What the picture shows, in words.") -> NotebookNode:
    return OUT("stream", name="stdout", text=text)


def test_a_sound_page() -> None:
    assert page_problems(notebook({"small-text": "x"})) == []
    assert page_problems(with_outputs(OUT("display_data", data=PICTURE), line())) == []
    assert page_problems(with_outputs(line(), OUT("display_data", data=PICTURE))) == []


def test_a_line_of_the_next_cell_describes_a_figure() -> None:
    page = with_outputs(OUT("display_data", data=PICTURE))
    assert len(page_problems(page)) == 1
    page.cells.append(nbformat.v4.new_markdown_cell("*Figure: the load of every expert.*", id="small-alt"))
    assert page_problems(page) == []


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ([OUT("display_data", data=PICTURE)], "without alternative text"),
        ([OUT("display_data", data=PICTURE), OUT("display_data", data=PICTURE)], "without alternative text"),
        ([OUT("display_data", data=PICTURE), line("Fig.")], "without alternative text"),
        ([OUT("error", ename="ValueError", evalue="no", traceback=[])], "ends in ValueError: no"),
        ([OUT("stream", name="stderr", text="UserWarning: Glyph 32 missing")], "writes on stderr"),
        ([line("x" * 30_000)], "prints 30,000 characters"),
        ([line("/some/where/main/x.py")], "path of this machine"),
        ([OUT("display_data", data={"image/png": "a" * 800_000}), line()], "draws 600,000 bytes"),
    ],
)
def test_outputs(outputs: list[NotebookNode], said: str) -> None:
    problems = page_problems(with_outputs(*outputs), Path("/some/where/main"))
    assert any(said in problem for problem in problems), problems


def unnamed(page: NotebookNode) -> None:
    page.cells[0].id = "1f3e9a2c"


def mistagged(page: NotebookNode) -> None:
    page.cells[-1].metadata["tags"] = ["NBVAL_SKIP"]


def unrun(page: NotebookNode) -> None:
    page.cells[-1].execution_count = None


def empty(page: NotebookNode) -> None:
    page.cells[0].source = " "


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(unnamed, "not readable"), (mistagged, "unknown tag"), (unrun, "not been run"), (empty, "empty")],
)
def test_cells(spoil: Callable[[NotebookNode], None], said: str) -> None:
    page = notebook({"small-text": "x"})
    spoil(page)
    (problem,) = page_problems(page)
    assert said in problem


def translation_problems(english: str, spanish: str, flags: list[str] | None = None) -> list[str]:
    po = polib.POFile()
    po.append(polib.POEntry(msgctxt="small-text", msgid=english, msgstr=spanish, flags=flags or []))
    return list(audit.translation_problems(notebook({"small-text": english}), po, "po", "es"))


@pytest.mark.parametrize(
    ("english", "spanish", "said"),
    [
        ("The gate $g$", "La compuerta $h$", "formulas"),
        ("See [it](a.md)", "Véase [eso](b.md)", "links"),
        ("# Title", "## Título", "heading"),
        ("`x`", "x", "code spans"),
        ("The gate", "La puerta", "does not say 'compuerta'"),
        ("The gate", "La puerta: una compuerta", "forbidden"),
        ("Text", "", "no translation"),
    ],
)
def test_translations(english: str, spanish: str, said: str) -> None:
    problems = translation_problems(english, spanish)
    assert any(said in problem for problem in problems), problems


def test_stale_translations() -> None:
    assert translation_problems("Text", "Texto") == []
    assert "fuzzy" in translation_problems("Text", "Texto", ["fuzzy"])[0]
    po = polib.POFile()
    catalogue.merge(po, {"small-text": "old", "small-gone": "x"})
    problems = list(audit.translation_problems(notebook({"small-text": "new", "small-more": "y"}), po, "po", "es"))
    for said in ("no cell small-gone", "small-more is not in the catalogue", "English has changed"):
        assert any(said in problem for problem in problems), said


def test_code_is_the_same_in_every_language() -> None:
    source = notebook({})
    page = pages.translated(source, {}, 0, "es", "x.ipynb", None)
    assert page.cells[0].source != source.cells[0].source
    assert list(audit.code_problems(source, page, "page")) == []
    page.cells[-1].source += " "
    assert "small-sum: the code differs" in next(audit.code_problems(source, page, "page"))
    del page.cells[-1]
    assert "does not have the code cells" in next(audit.code_problems(source, page, "page"))
