"""Reading the project's pages as Markdown: what the tests of the documentation share."""

import re
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent.parent

TRANSLATED = {
    "readme": ("README.md", "README_ES.md", "README_ZH.md"),
    "weights": ("docs/weights.md", "docs/weights_ES.md", "docs/weights_ZH.md"),
    "embedded-model": ("docs/embedded-model.md", "docs/embedded-model_ES.md", "docs/embedded-model_ZH.md"),
    "teaching": ("docs/teaching.md", "docs/teaching_ES.md", "docs/teaching_ZH.md"),
}
PAGES = [*(page for pages in TRANSLATED.values() for page in pages), "docs/architecture.md", "resumen.md"]


@cache
def parse(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def inline(page: str) -> list[Token]:
    return [child for token in parse(page) for child in token.children or ()]


def code_spans(page: str) -> set[str]:
    return {token.content for token in inline(page) if token.type == "code_inline"}


def fences(page: str, language: str) -> list[str]:
    """The contents of the code blocks in one language."""
    return [token.content for token in parse(page) if token.type == "fence" and token.info == language]


def anchors(page: str) -> set[str]:
    """The ids that a code host gives to headings."""
    tokens = parse(page)
    headings = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_with(page: str, header: str) -> list[list[str]]:
    """The first table with this column, as rows of Markdown cells, its header row included."""
    tables: list[list[list[str]]] = []
    tokens = parse(page)
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("th_open", "td_open"):
            tables[-1][-1].append(tokens[i + 1].content)
    return next(rows for rows in tables if header in rows[0])


def plain(cell: str) -> str:
    """A cell that holds one code span, without its marks."""
    return cell.strip("`")
