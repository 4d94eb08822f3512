"""Catalogues keep step with their source, and no translation is lost on the way."""

from pathlib import Path

import polib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3.errors import RequestError
from dsv3.learn import catalogue

# What stands in Markdown cells: no control characters but line breaks and tabs.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), include_characters="\n\t"), min_size=1)
TEXTS = TEXT.filter(lambda text: text.strip() != "")
IDS = st.sampled_from(["a-1", "a-2", "a-3", "a-4", "a-5"])
CELLS = st.dictionaries(IDS, TEXTS, max_size=5)


def merged(cells: dict[str, str]) -> polib.POFile:
    po = polib.POFile(wrapwidth=0)
    catalogue.merge(po, cells)
    return po


def translated(po: polib.POFile) -> polib.POFile:
    for entry in catalogue.entries(po).values():
        entry.msgstr = "» " + entry.msgid
        entry.previous_msgid = None
        entry.flags = []
    return po


@given(CELLS)
def test_a_file_reads_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, cells: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("po") / "x.po"
    po = translated(merged(cells))
    catalogue.merge(po, {name: text + "!" for name, text in cells.items()})
    path.write_text(catalogue.text(po), encoding="utf-8", newline="\n")
    again = catalogue.entries(catalogue.read(path, "es"))
    assert list(again) == list(cells)
    for name, entry in again.items():
        assert (entry.msgid, entry.msgstr) == (cells[name] + "!", "» " + cells[name])
        assert entry.fuzzy
        assert entry.previous_msgid == cells[name]


@given(CELLS, CELLS, CELLS)
def test_entries_follow_the_source_and_translations_survive(
    first: dict[str, str], second: dict[str, str], third: dict[str, str]
) -> None:
    po = translated(merged(first))
    for cells in (second, third):
        changes = catalogue.merge(po, cells)
        assert {name: entry.msgid for name, entry in catalogue.entries(po).items()} == cells
        assert list(catalogue.entries(po)) == list(cells)
        assert not catalogue.merge(po, cells), "a second merge has nothing to do"
        assert not set(changes.added) & set(changes.changed)
    kept = {entry.msgctxt: entry for entry in po}
    for name, english in first.items():
        assert kept[name].msgstr == "» " + english
        if name in third:
            assert kept[name].fuzzy == (third[name] != english)
            assert kept[name].previous_msgid == (None if third[name] == english else english)
        else:
            assert kept[name].obsolete


def test_a_changed_cell_turns_fuzzy_and_back() -> None:
    po = translated(merged({"a-1": "one", "a-2": "two"}))
    assert catalogue.merge(po, {"a-1": "uno?", "a-2": "two"}).changed == ["a-1"]
    catalogue.merge(po, {"a-1": "uno??", "a-2": "two"})
    entry = catalogue.entries(po)["a-1"]
    assert (entry.fuzzy, entry.previous_msgid, entry.msgstr) == (True, "one", "» one")
    catalogue.merge(po, {"a-1": "one", "a-2": "two"})
    assert (entry.fuzzy, entry.previous_msgid) == (False, None)


def test_a_cell_that_was_never_translated_vanishes_without_trace() -> None:
    po = merged({"a-1": "one"})
    assert catalogue.merge(po, {}).vanished == ["a-1"]
    assert len(po) == 0


def test_exemptions() -> None:
    entry = polib.POEntry(tcomment="a remark\nglossary-exempt: expert, gate\nmore")
    assert catalogue.exempt(entry) == {"expert", "gate"}


def test_damage_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.po"
    path.write_text("no catalogue\n", encoding="utf-8")
    with pytest.raises(RequestError, match=r"x\.po"):
        catalogue.read(path, "es")
    po = polib.POFile()
    po += [polib.POEntry(msgctxt="a-1", msgid="1"), polib.POEntry(msgctxt="a-1", msgid="2")]
    with pytest.raises(RequestError, match="stands twice"):
        catalogue.entries(po)
