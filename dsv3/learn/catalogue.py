"""One chapter's translation: a gettext catalogue with an entry for each Markdown cell.

    msgctxt   the cell's id: what ties an entry to its cell
    msgid     the English cell
    msgstr    the translated cell
    fuzzy     the English has changed since; ``previous_msgid`` is the text that msgstr translates

Any gettext editor can work on these files. Entries stand in the order of the cells; those whose cell has vanished are
kept at the end as obsolete (``#~``), so that a cell that moves or comes back finds its translation.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polib

from dsv3.errors import RequestError

HEADER = {
    "Project-Id-Version": "dsv3",
    "MIME-Version": "1.0",
    "Content-Type": "text/plain; charset=UTF-8",
    "Content-Transfer-Encoding": "8bit",
}


@dataclass(frozen=True)
class Changes:
    """What a merge did, by cell id."""

    added: list[str]
    changed: list[str]
    vanished: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.vanished)


def read(path: Path, language: str) -> polib.POFile:
    """The catalogue in ``path``, or an empty one where there is no file. Raises RequestError for a damaged file."""
    if path.is_file():
        try:
            po = polib.pofile(str(path), encoding="utf-8", wrapwidth=0)
        except (OSError, ValueError) as error:
            raise RequestError(f"cannot read {path}: {error}; it must be a gettext catalogue in UTF-8") from None
    else:
        po = polib.POFile(wrapwidth=0)
    for key, value in {**HEADER, "Language": language}.items():
        po.metadata.setdefault(key, value)
    return po


def entries(po: polib.POFile) -> dict[str, polib.POEntry]:
    """The living entries by cell id. Raises RequestError where two have the same."""
    found: dict[str, polib.POEntry] = {}
    for entry in po:
        if entry.obsolete:
            continue
        if not entry.msgctxt or entry.msgctxt in found:
            raise RequestError(f"entry {entry.msgctxt!r} stands twice, or has no msgctxt: each cell has one entry")
        found[entry.msgctxt] = entry
    return found


def merge(po: polib.POFile, cells: Mapping[str, str]) -> Changes:
    """Bring ``po`` in step with the English ``cells`` (id -> Markdown, in order), losing no translation."""
    alive = entries(po)
    asleep = {entry.msgctxt: entry for entry in po if entry.obsolete}
    changes = Changes([], [], [])
    ordered: list[polib.POEntry] = []
    for cell, english in cells.items():
        entry = alive.pop(cell, None)
        if entry is None:
            entry = asleep.pop(cell, None) or polib.POEntry(msgctxt=cell, msgid=english)
            entry.obsolete = False
            changes.added.append(cell)
        if entry.msgid != english:
            _update(entry, english)
            if cell not in changes.added:
                changes.changed.append(cell)
        ordered.append(entry)
    for cell, entry in alive.items():
        changes.vanished.append(cell)
        if entry.msgstr:
            entry.obsolete = True
            asleep[cell] = entry
    po[:] = [*ordered, *asleep.values()]
    return changes


def _update(entry: polib.POEntry, english: str) -> None:
    """The English of ``entry`` is now ``english``: its translation, if it has one, is of the text before."""
    translated_from = entry.previous_msgid or entry.msgid
    entry.msgid = english
    if not entry.msgstr or translated_from == english:  # nothing to lose, or the change was taken back
        entry.previous_msgid = None
        entry.flags = [flag for flag in entry.flags if flag != "fuzzy"]
    else:
        entry.previous_msgid = translated_from
        if not entry.fuzzy:
            entry.flags.append("fuzzy")


def text(po: polib.POFile) -> str:
    """The file's contents: a line of the file for each line of a cell, whatever its length, so that diffs are small."""
    return str(po).rstrip("\n") + "\n"


def exempt(entry: polib.POEntry) -> frozenset[str]:
    """Glossary terms that a translator has excused, in a comment ``glossary-exempt: key, key``."""
    found = re.findall(r"glossary-exempt:\s*([\w-]+(?:\s*,\s*[\w-]+)*)", entry.tcomment)
    return frozenset(key.strip() for keys in found for key in keys.split(","))
