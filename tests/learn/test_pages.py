"""Notebooks in their one form, named cells, outputs that stay only as long as they hold."""

from pathlib import Path

import nbformat
import pytest

from dsv3.errors import RequestError
from dsv3.learn import pages
from tests.learn.small_book import LANGUAGE_CELL, notebook

OUT = nbformat.v4.new_output


def test_one_form_drops_what_differs_between_runs() -> None:
    source = notebook({"small-text": "x"})
    cell = source.cells[-1]
    cell.execution_count = 17
    cell.metadata.update(execution={"iopub.status.busy": "now"}, scrolled=True)
    source.metadata["language_info"] = {"name": "python", "version": "3.99"}
    source.metadata["widgets"] = {"state": {}}
    widget = {"text/plain": "IntSlider(value=3)", pages.WIDGET: {"model_id": "6f1"}}
    cell.outputs = [
        OUT("stream", name="stdout", text="one <object at 0x7f00aa"),
        OUT("stream", name="stdout", text="bb12>\ntwo\n"),
        OUT("display_data", data=widget),
        OUT("error", ename="ValueError", evalue="no", traceback=["/home/somebody/x.py"]),
    ]
    text = pages.text(source)
    for passing in ("0x7f00", "iopub", "scrolled", "3.99", "6f1", "somebody", "widgets"):
        assert passing not in text
    again = nbformat.reads(text, as_version=4)
    assert [out.output_type for out in again.cells[-1].outputs] == ["stream", "display_data", "error"]
    assert [cell.execution_count for cell in pages.code_cells(again)] == [1, 2]
    assert pages.text(again) == text


def test_random_ids_get_names() -> None:
    source = notebook({"small-title": "# A page", "1f3e9a2c": "## Why a gate?", "77aa01bc": "## Why a gate?"})
    assert pages.name_cells(source, "01_moe_gating") == ["moe-gating-why-a-gate", "moe-gating-why-a-gate-2"]
    assert pages.name_cells(source, "01_moe_gating") == []
    assert source.cells[0].id == "small-title"


def test_outputs_stay_up_to_the_first_changed_cell() -> None:
    before = pages.translated(notebook({}), {}, 0, "es", "x.ipynb", None)
    assert all(cell.execution_count is None for cell in pages.code_cells(before)), "English outputs are not taken over"
    for number, cell in enumerate(pages.code_cells(before), 1):
        cell.execution_count = number

    same = pages.translated(notebook({}), {}, 0, "es", "x.ipynb", before)
    assert [cell.execution_count for cell in pages.code_cells(same)] == [1, 2]
    changed = pages.translated(notebook({}, code="print(3)"), {}, 0, "es", "x.ipynb", before)
    assert [cell.execution_count for cell in pages.code_cells(changed)] == [1, None]


@pytest.mark.parametrize("code", ["", 'set_language("en"); set_language("en")', 'set_language("es")'])
def test_a_page_chooses_its_language_once(code: str) -> None:
    source = notebook({})
    assert source.cells[0].source == LANGUAGE_CELL
    source.cells[0].source = code
    with pytest.raises(RequestError, match="chooses its language"):
        pages.translated(source, {}, 0, "zh", "x.ipynb", None)


def test_a_failing_cell_is_said(tmp_path: Path) -> None:
    with pytest.raises(pages.NotebookFailed, match=r"x\.ipynb does not run(?s:.*)assert 1 \+ 1 == 3"):
        pages.execute(notebook({}, code="assert 1 + 1 == 3"), tmp_path, "x.ipynb")


@pytest.mark.parametrize(
    "contents", ["{}", "no json", '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 2}']
)
def test_other_files_are_refused(tmp_path: Path, contents: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(contents, encoding="utf-8")
    with pytest.raises(RequestError, match=r"x\.ipynb"):
        pages.read(path)
