"""Markdown taken apart: what a translation keeps (formulas, code, links, headings, numbers), and the prose it changes.

Notebooks take formulas out of a cell before Markdown sees it, but after code, so this does the same: fenced code, code
spans, formulas, then the rest. Regular expressions are enough for the Markdown that the walkthrough is written in:
headings with #, inline links.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

_FENCE = re.compile(r"^ {0,3}(?P<mark>`{3,}|~{3,}).*?^ {0,3}(?P=mark)[`~]*[ \t]*$", re.M | re.S)
_CODE = re.compile(r"(?<!`)(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)", re.S)
_FORMULA = re.compile(
    r"(?<!\\)\$\$.+?(?<!\\)\$\$"  # $$ displayed $$
    r"|\\begin\{(?P<name>\w+\*?)\}.+?\\end\{(?P=name)\}"
    r"|(?<![\\$])\$(?=[^\s$]).*?(?<=[^\s\\])\$(?![\d$])",  # $inline$: no space inside, no digit behind, so no prices
    re.S,
)
_TARGET = re.compile(
    r"(?<=\]\()[^)\s]+|https?://[^\s)>\"']*[^\s)>\"'.,;:，。；：、）]|(?<=src=\")[^\"]+|(?<=href=\")[^\"]+"
)
_HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]", re.M)
_TAG = re.compile(r"</?[a-zA-Z][\w-]*")
_DOLLAR = re.compile(r"(?<!\\)\$")

_HOLE = "\ufffc"
"""Stands where something was taken out: an object, as Unicode says, that separates words."""


@dataclass(frozen=True)
class Parts:
    """One cell's parts. Order counts for blocks of code and headings; within a sentence languages order differently."""

    fences: list[str]
    code: Counter[str]
    formulas: Counter[str]
    targets: Counter[str]
    headings: list[int]
    tags: Counter[str]
    numbers: Counter[str]
    loose_dollars: int
    prose: str


def take_apart(markdown: str) -> Parts:
    fences: list[str] = []
    code: Counter[str] = Counter()
    formulas: Counter[str] = Counter()

    def keep(found: "list[str] | Counter[str]") -> Any:
        def replace(match: re.Match[str]) -> str:
            if isinstance(found, list):
                found.append(match[0])
            else:
                found[" ".join(match[0].split())] += 1
            return _HOLE

        return replace

    text = _FENCE.sub(keep(fences), markdown)
    text = _CODE.sub(keep(code), text)
    text = _FORMULA.sub(keep(formulas), text)
    prose = _TARGET.sub(_HOLE, text)
    return Parts(
        fences,
        code,
        formulas,
        targets=Counter(neutral(target) for target in _TARGET.findall(text)),
        headings=[len(marks) for marks in _HEADING.findall(text)],
        tags=Counter(_TAG.findall(text)),
        loose_dollars=len(_DOLLAR.findall(text)),
        numbers=Counter(re.findall(r"[0-9]+", prose)),  # groups of digits: 1.5 and 1,5 are the same two
        prose=prose,
    )


def neutral(target: str) -> str:
    """A link without its language: README_ES.md is README.md, ../es/ is ../en/, an anchor is that of the page."""
    target = re.sub(r"_(ES|ZH|en|es|zh)(?=\.(md|svg|png))", "", target)
    target = re.sub(r"(?<=/)(es|zh)(?=/)", "en", target)
    return re.sub(r"#.*", "#", target) if not re.match(r"https?:", target) else target


def differences(source: str, translation: str) -> Iterator[str]:
    """What ``translation`` fails to keep of ``source``, one sentence each."""
    ours, theirs = take_apart(source), take_apart(translation)
    for what, kept, found in (
        ("formulas", ours.formulas, theirs.formulas),
        ("code spans", ours.code, theirs.code),
        ("links", ours.targets, theirs.targets),
        ("HTML tags", ours.tags, theirs.tags),
        ("numbers", ours.numbers, theirs.numbers),
    ):
        if kept != found:
            lost, added = _listed(kept - found, "missing"), _listed(found - kept, "added")
            yield f"{what} differ: {lost}{added}write them as they are"
    if ours.fences != theirs.fences:
        yield f"blocks of code differ ({len(ours.fences)} in the source, {len(theirs.fences)} here): copy them as is"
    if ours.headings != theirs.headings:
        yield f"heading levels differ: {ours.headings} in the source, {theirs.headings} here; keep levels and order"
    if ours.loose_dollars != theirs.loose_dollars:
        yield (
            f"a $ stands outside every formula ({theirs.loose_dollars} here, {ours.loose_dollars} in the source): a "
            "formula that opens must close, and a space, or a digit behind it, keeps it from being one"
        )


def _listed(parts: Counter[str], how: str) -> str:
    return f"{how} {', '.join(sorted(parts.elements()))}; " if parts else ""


def verbatim(text: str) -> str:
    """Markdown that shows ``text`` as it is: a token such as <s> would strike through all that follows it."""
    return re.sub(r"([\\`*~$])", r"\\\1", escape(text, quote=False))
