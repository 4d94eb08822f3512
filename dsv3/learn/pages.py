"""Notebooks as files: read, put into one form, translated, executed, written.

One form, so that the same notebook is the same bytes whoever ran it: cell ids, sources and tags stay; outputs lose
what differs from run to run (addresses, model ids of widgets, how a stream was cut into pieces), and the notebook's
metadata say no more than that it is Python.
"""

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import nbformat
from nbformat import NotebookNode

from dsv3.errors import CapacityError, Dsv3Error, RequestError

LANGUAGE_TAG = "lang"
LANGUAGE_CALL = 'set_language("{}")'
NOTE_ID = "translation-note"
CELL_SECONDS = 120

METADATA: dict[str, Any] = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
READABLE_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")

NOTES = {
    "es": (
        "> **Esta página es anterior a su original en inglés.** Celdas cuya traducción falta o está desfasada: {n}. "
        "El texto vigente: [English](../en/{file})."
    ),
    "zh": "> **本页比英文原文旧。** 译文缺失或过时的单元格：{n} 个。最新内容见 [English](../en/{file})。",
}
"""What stands on top of a page that is older than its source."""


class NotebookFailed(Dsv3Error):
    """A notebook's cell raised an error or took too long."""


def read(path: Path) -> NotebookNode:
    """Raises RequestError where the file is no notebook of format 4.5, the first with cell ids."""
    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        nbformat.validate(notebook)
    except (OSError, ValueError, nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
        raise RequestError(f"cannot read the notebook {path}: {str(error).splitlines()[0]}") from None
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        raise RequestError(
            f"{path} has notebook format {notebook.nbformat}.{notebook.nbformat_minor}, which has no cell ids; save it "
            "as 4.5"
        )
    return notebook


def write_text(path: Path, contents: str) -> None:
    write_bytes(path, contents.encode())


def write_bytes(path: Path, contents: bytes) -> None:
    """Beside its place, then renamed. Raises CapacityError where the disk refuses."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(contents)
        os.replace(partial, path)
    except OSError as error:
        raise CapacityError(f"cannot write {path}: {error.strerror or error}; free space or check the folder") from None
    finally:
        partial.unlink(missing_ok=True)


def text(notebook: NotebookNode) -> str:
    """The file's contents in the one form."""
    return cast(str, nbformat.writes(normal(notebook), indent=1)).rstrip("\n") + "\n"


def normal(notebook: NotebookNode) -> NotebookNode:
    """A copy in the one form. Executed cells are numbered from 1 in their order."""
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.from_dict(copy.deepcopy(METADATA))
    notebook.nbformat_minor = 5
    number = 0
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({k: v for k, v in cell.metadata.items() if k == "tags" and v})
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                number += 1
                cell.execution_count = number
            cell.outputs = _outputs(cell.outputs, cell.execution_count)
    return notebook


def _outputs(outputs: list[NotebookNode], number: int | None) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
            continue
        if output.output_type == "error":
            output.traceback = [f"{output.ename}: {output.evalue}"]  # the rest names this machine's folders
        if "execution_count" in output:
            output.execution_count = number
        if "data" in output:
            output.data.pop(WIDGET, None)  # a widget shows where a kernel runs; elsewhere its text stands for it
            if "text/plain" in output.data:
                output.data["text/plain"] = _steady(output.data["text/plain"])
            if "image/png" in output.data:
                output.data["image/png"] = "".join(output.data["image/png"].split())
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = _steady(output.text)
    return kept


def _steady(text: str) -> str:
    return re.sub(r"\b0x[0-9a-f]{6,16}\b", "0x…", text)


# ----------------------------------------------------------------------------------------------------------- cells


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def markdown_cells(notebook: NotebookNode) -> dict[str, str]:
    """Cell id -> Markdown, in order."""
    return {cell.id: cell.source for cell in notebook.cells if cell.cell_type == "markdown" and cell.source.strip()}


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def name_cells(notebook: NotebookNode, chapter: str) -> list[str]:
    """Give every cell with a random id, as editors make them, a readable one from its first words; the new ids."""
    prefix = re.sub(r"^\d+-", "", chapter.replace("_", "-"))
    taken = {cell.id for cell in notebook.cells if READABLE_ID.fullmatch(cell.id)}
    named: list[str] = []
    for cell in notebook.cells:
        if READABLE_ID.fullmatch(cell.id):
            continue
        words = re.findall(r"[a-z0-9]+", cell.source.lower().replace("import", ""))[:3] or [cell.cell_type]
        stem = name = "-".join([prefix, *words])[:48].rstrip("-")
        for number in range(2, len(notebook.cells) + 2):
            if name not in taken:
                break
            name = f"{stem}-{number}"
        taken.add(name)
        named.append(name)
        cell.id = name
    return named


# ------------------------------------------------------------------------------------------------- translated pages


def translated(
    source: NotebookNode, words: Mapping[str, str], n_stale: int, language: str, file: str, before: NotebookNode | None
) -> NotebookNode:
    """The page in ``language``: Markdown from ``words`` (cell id -> text), English where there is none; the same code.

    Args:
        n_stale: cells that are missing or older than their source; a note on top says so.
        before: the page as it was built and executed before. Its outputs stay as far as all code up to there is the
            same; English outputs are never taken over, since figures and tables speak a language too.
    """
    page = copy.deepcopy(source)
    n_calls = 0
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = words.get(cell.id, cell.source)
        elif cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            if LANGUAGE_TAG in tags(cell):
                n_calls += cell.source.count(LANGUAGE_CALL.format("en"))
                cell.source = cell.source.replace(LANGUAGE_CALL.format("en"), LANGUAGE_CALL.format(language))
    if n_calls != 1:
        raise RequestError(
            f"{file} chooses its language {n_calls} times; one code cell must have the tag {LANGUAGE_TAG!r} and hold "
            f"{LANGUAGE_CALL.format('en')} once"
        )
    if before is not None:
        for cell, old in zip(code_cells(page), code_cells(before)):
            if cell.source != old.source or cell.id != old.id:
                break
            cell.outputs, cell.execution_count = copy.deepcopy(old.outputs), old.execution_count
    if n_stale:
        note = nbformat.v4.new_markdown_cell(NOTES[language].format(n=n_stale, file=file), id=NOTE_ID)
        page.cells.insert(0, note)
    return page


def execute(notebook: NotebookNode, folder: Path, name: str) -> NotebookNode:
    """A copy that a fresh kernel has run in ``folder``. Raises NotebookFailed with the cell and what it said."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = copy.deepcopy(notebook)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        extra_arguments=["--log-level=ERROR"],  # not a word about transports
        store_widget_state=False,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        said = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
        raise NotebookFailed(f"{name} does not run to its end:\n{said}") from None
    return notebook
