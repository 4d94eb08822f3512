"""The packaged font: its characters, its name and licence, and how it is made."""

from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

from dsv3.errors import RequestError
from dsv3.learn import font, labels
from tests.conftest import ROOT

FILE = ROOT / "dsv3/assets/fonts/dsv3-sans-sc.otf"


def test_it_has_every_character_of_the_labels() -> None:
    wanted = {c for text in labels.catalogue("zh").values() for c in text if font._is_chinese(c)}
    missing = wanted - font.has_characters(FILE, wanted)
    assert not missing, f"no {''.join(sorted(missing))} in the font: run python -m dsv3.learn.font"


def test_it_has_its_own_name_its_licence_and_little_weight() -> None:
    assert FILE.stat().st_size < font.FONT_BYTES
    assert "SIL OPEN FONT LICENSE" in (FILE.parent / "LICENSE-OFL").read_text(encoding="utf-8")
    with TTFont(FILE) as opened:
        names = {record.nameID: str(record) for record in opened["name"].names}
        assert names[1] == opened["CFF "].cff.topDictIndex[0].FamilyName == font.FAMILY
        assert "Adobe" in names[0]
        assert "Open Font License" in names[13]
        assert not any("Noto" in text or "Source" in text for text in names.values())


def test_a_subset_holds_what_was_asked_for_and_is_the_same_each_time(tmp_path: Path) -> None:
    wanted = font.has_characters(FILE, "专家负载，")
    made = font.make(FILE, wanted)
    assert made == font.make(FILE, wanted)
    (tmp_path / "small.otf").write_bytes(made)
    assert font.has_characters(tmp_path / "small.otf", "专家负载，层") == wanted


def test_unfit_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no 龘"):
        font.make(FILE, {"龘"})
    (tmp_path / "x.otf").write_bytes(b"no font")
    with pytest.raises(RequestError, match=r"cannot read the font .*x\.otf"):
        font.make(tmp_path / "x.otf", set())


def test_the_characters_are_those_of_the_catalogues_and_the_glossary() -> None:
    characters = font.wanted_characters(ROOT)
    assert {"专", "，", "混"} <= characters
    assert not {"a", "é", " "} & characters
    assert len(font.common_characters()) == 3755
    assert characters >= set(font.common_characters())
