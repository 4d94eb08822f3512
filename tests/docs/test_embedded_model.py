"""The embedded model's pages and card say what was measured, what the preset says, and quote samples unedited."""

import json
import re

import pytest

from dsv3 import cost
from dsv3.cli.configs import load_config
from tests.docs.markdown import ROOT, TRANSLATED, fences, parse

PAGES = TRANSLATED["embedded-model"]
CARD = "dsv3/assets/tiny/README.md"
LANGUAGES = ("en", "es", "zh")
BLOCKS = (*(f"layer {i}" for i in range(1, 6)), "MTP 0")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    """The measured rows by their case."""
    path = ROOT / "benchmarks/results/model_card.cpu1.json"
    return {row["case"]: row for row in json.loads(path.read_text(encoding="utf-8"))}


def table_rows(page: str) -> list[list[str]]:
    """The cells after the first of every row of every table, without spaces (Spanish puts one before %)."""
    found: list[list[str]] = []
    tokens = parse(page)
    for i, token in enumerate(tokens):
        if token.type == "tr_open":
            found.append([])
        elif token.type in ("th_open", "td_open"):
            found[-1].append(re.sub(r"\s", "", tokens[i + 1].content))
    return [cells[1:] for cells in found]


def measured(rows: dict[str, dict], figures: tuple[tuple[str, str], ...]) -> list[list[str]]:
    return [[format(rows[f"{case}, {language}"]["ours"], form) for language in LANGUAGES] for case, form in figures]


QUALITY = (
    ("bits per byte, validation", ".2f"),
    ("bits per byte, held-out verses", ".2f"),
    ("MTP agreement, validation", ".0%"),
)
WRITING = (
    ("MTP acceptance, greedy", ".0%"),
    ("repeated 4-grams, greedy", ".0%"),
    ("MTP acceptance, sampled", ".0%"),
    ("repeated 4-grams, sampled", ".0%"),
)


@pytest.mark.parametrize("page", PAGES)
def test_pages_give_the_measured_figures(page: str, rows: dict[str, dict]) -> None:
    expected = measured(rows, QUALITY + WRITING)
    for figure in ("MaxVio", "language distance"):
        expected.append([f"{rows[f'{figure}, {block}']['ours']:.2f}" for block in BLOCKS])
    table = table_rows(page)
    assert [row for row in expected if row not in table] == []


def test_the_card_gives_the_measured_figures(rows: dict[str, dict]) -> None:
    table = table_rows(CARD)
    assert [row for row in measured(rows, QUALITY) if row not in table] == []


@pytest.mark.parametrize("page", PAGES)
def test_samples_are_unedited(page: str, rows: dict[str, dict]) -> None:
    texts = [
        sample["prompt"] + sample["text"]
        for language in LANGUAGES
        for mode in ("greedy", "sampled")
        for sample in rows[f"repeated 4-grams, {mode}, {language}"]["notes"]["samples"]
    ]
    assert len(texts) == 9
    assert [text + "\n" for text in texts] == fences(page, "text")


@pytest.mark.parametrize("page", PAGES)
def test_pages_give_the_preset_and_the_counts(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    preset = json.loads((ROOT / "configs/train_tiny.json").read_text(encoding="utf-8"))
    tokens = preset["total_steps"] * preset["batch_tokens"]
    for number in (f"{preset['total_steps']:,}", f"{preset['batch_tokens']:,}", f"{tokens / 1e6:.1f}M"):
        assert number in text
    for key in ("lr", "mtp_weight", "balance_weight", "bias_update", "weight_decay", "warmup_steps"):
        assert str(preset[key]) in text

    config = load_config("config_tiny")
    counts = (cost.parameters(config), cost.activated_parameters(config), cost.mtp_parameters(config))
    table = table_rows(page)
    for count in counts:
        assert any(row[0] == f"{count / 1e6:.1f}M" for row in table)
