"""The text of chapter 06: one book in three languages, verse by verse, that the embedded model was not trained on."""

import csv
import lzma
from importlib import resources

import pytest

from tests.conftest import ROOT

CORPUS = ROOT.parent / "shared" / "corpus" / "parallel.tsv.xz"


def rows() -> list[dict[str, str]]:
    lines = (resources.files("dsv3") / "assets/mark.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert "public domain" in lines[0]
    return list(csv.DictReader(lines[1:], delimiter="\t", quoting=csv.QUOTE_NONE))


def test_every_verse_stands_in_three_languages() -> None:
    verses = [tuple(map(int, row["verse"].split(":"))) for row in rows()]
    assert verses == sorted(set(verses))
    assert {chapter for chapter, _ in verses} == set(range(1, 17))
    assert len(verses) == 678
    for row in rows():
        assert set(row) == {"verse", "en", "es", "zh"}
        assert all(text and text == text.strip() for text in row.values())


def test_it_is_held_out() -> None:
    if not CORPUS.exists():
        pytest.skip("the corpus is not here")
    with lzma.open(CORPUS, "rt", encoding="utf-8", newline="") as file:
        corpus = [
            row
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            if row["ref"].startswith("Mark ")
        ]
    assert {row["split"] for row in corpus} == {"heldout"}
    assert [{"verse": row["ref"][5:], "en": row["en"], "es": row["es"], "zh": row["zh"]} for row in corpus] == rows()
