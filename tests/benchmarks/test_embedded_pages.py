"""The embedded model's pages are made of the measured files: the markers, the words of three languages, --check."""

import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from types import ModuleType

import pytest
from PIL import Image

from dsv3 import viz
from tests.checkpoints import ROOT

BENCHMARKS = ROOT / "benchmarks"
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/embedded_pages.py, imported as the scripts beside it are."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import embedded_pages

    return embedded_pages


@pytest.fixture
def page(pages):
    return pages.Page(pages.Files(), "es")


def test_the_pages_are_what_the_files_say() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "embedded_pages.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_only_what_is_marked_is_filled(pages, page) -> None:
    text = "Antes <!-- figures: seconds -->1<!-- end --> s\n\n<!-- figures: quality -->\nviejo\n<!-- end -->\ndespués\n"
    new = pages.render(text, page)
    assert re.match(r"Antes <!-- figures: seconds -->\d+<!-- end --> s\n\n<!-- figures: quality -->\n\|", new)
    assert new.endswith("|\n<!-- end -->\ndespués\n")
    assert "viejo" not in new
    assert pages.render(new, page) == new


def test_markers_without_figures_and_figures_without_markers_are_errors(pages, page) -> None:
    with pytest.raises(ValueError, match="nothing is known of qualty"):
        pages.render("<!-- figures: qualty -->\n<!-- end -->\n", page)
    with pytest.raises(ValueError, match="no marker for quality"):
        pages.render("no markers", page, required=["quality"])


def test_words_hold_the_same_numbers_and_fields_in_every_language(pages) -> None:
    for key, words in pages.WORDS.items():
        assert len(words) == len(pages.LANGUAGES), key
        found = [sorted(re.findall(r"\{\w+\}|\d+", text)) for text in words]
        assert found[0] == found[1] == found[2], key


def test_every_short_run_is_shown(pages) -> None:
    compared = ("balance-", "mtp-")
    runs = [name for name in pages.Files().choices if not name.startswith(compared)]
    assert sorted(runs) == sorted(pages.CHOICES + pages.SCHEDULES)


def test_a_threshold_that_is_missed_is_called_so(pages, page, monkeypatch: pytest.MonkeyPatch) -> None:
    files = page.files
    rows = {case: dict(row) for case, row in files.rows.items()}
    runs = json.loads(json.dumps(files.runs))
    monkeypatch.setattr(files, "__dict__", {"rows": rows, "runs": runs})
    rows["MaxVio, layer 3"]["ours"] = 0.345
    for language, share in (("en", 0.7), ("es", 0.6), ("zh", 0.41)):
        rows[f"MTP acceptance, sampled, {language}"]["ours"] = share
    rows["speculative = plain, greedy, zh"]["ours"] -= 1
    runs["final"]["validation"]["bits_per_byte"] = {"en": 9.0, "es": 9.0, "zh": 9.0}
    lines = pages.Page(files, "en").thresholds().splitlines()[2:]
    maxvio, _, least, _, aim, dense, same = ([cell.strip() for cell in line.split("|")[2:-1]] for line in lines)
    assert maxvio == ["0.34, layer 3", "+0.04", "missed"] or maxvio == ["0.35, layer 3", "+0.04", "missed"]
    assert least == ["English 70.0%, Spanish 60.0%, Chinese 41.0%", "−9.0 points", "missed in Chinese"]
    assert aim[1:] == ["−24.0 points", "missed in Spanish, Chinese"]
    assert dense[2] == "missed"
    assert same[1:] == ["−1", "missed in Chinese"]


def script(name: str) -> ModuleType:
    """A script of docs/figures as a module."""
    spec = importlib.util.spec_from_file_location(name, FIGURES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described(name: str) -> str:
    with Image.open(FIGURES / name) as image:
        return image.info["Description"]


def test_the_figures_are_drawn_from_these_files() -> None:
    card, train, balance = script("embedded_model"), script("train_tiny"), script("balance_tiny")
    rows = card.read_rows(card.RESULTS)
    assert described("needle_tiny.png") == card.needle_map(rows)[1]
    assert described("experts_by_language_tiny.png") == card.experts_by_language(rows)[1]
    assert described("train_tiny.png") == viz.describe_training(train.read(train.LOG), train.read(train.EVALUATIONS))
    assert described("balance_tiny.png") == viz.describe_comparison(balance.read())


def test_every_run_of_a_method_is_drawn() -> None:
    methods = script("balance_tiny").read()
    compared = json.loads((ROOT / "docs/data/embedded-choices.json").read_text(encoding="utf-8"))
    runs = [choice["name"] for choice in compared if choice["name"].startswith("balance-")]
    assert sum(map(len, methods.values())) == len(runs)


def test_numbers_of_a_language(pages, page) -> None:
    assert page.percent(0.646) == "65 %"
    assert dataclasses.replace(page, language="zh").percent(0.646) == "65%"
    assert pages.signed(-0.052, ".1%") == "−5.2%"
    assert [pages.short(n) for n in (22573824, 11.6e9, 671e9)] == ["22.6M", "11.6B", "671B"]
