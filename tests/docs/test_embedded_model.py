"""The embedded model's pages and card say what was measured, what the preset says, and quote samples unedited."""

import json
import re
import statistics
import subprocess
import sys

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
    return {row["case"]: row for row in read("benchmarks/results/model_card.cpu2.json")}


@pytest.fixture(scope="module")
def runs() -> dict[str, dict]:
    """The embedded and the dense model's last evaluations."""
    return read("docs/data/embedded-runs.json")


@pytest.fixture(scope="module")
def choices() -> dict[str, dict]:
    """The short runs by name."""
    return {choice["name"]: choice for choice in read("docs/data/embedded-choices.json")}


def read(name: str):
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def test_pages_and_card_are_what_the_files_say() -> None:
    command = [sys.executable, "benchmarks/embedded_pages.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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
    ("bits per byte, validation", ".3f"),
    ("bits per byte, held-out verses", ".3f"),
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
    for mode in ("greedy", "sampled", "true continuation"):
        of = [rows[f"longest verbatim run, {mode}, {language}"] for language in LANGUAGES]
        expected.append([f"{row['ours']:.0f}({row['notes']['median']:g})" for row in of])
    needles = [rows[f"needle accuracy, {language}"] for language in LANGUAGES]
    expected.append([f"{row['ours']:.0%}" for row in needles])
    for figure, form in (("another_holders", ".0%"), ("any_stated", ".0%"), ("chance", ".1%")):
        expected.append([format(row["notes"][figure], form) for row in needles])
    expected.append([f"{min(min(of) for of in row['notes']['accuracy']):.0%}" for row in needles])
    table = table_rows(page)
    assert [row for row in expected if row not in table] == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_compare_with_the_dense_model(page: str, runs: dict[str, dict]) -> None:
    table = table_rows(page)
    for text in ("validation", "heldout"):
        for language in LANGUAGES:
            ours, dense = (runs[model][text]["bits_per_byte"][language] for model in ("final", "dense"))
            row = [f"{ours:.3f}", f"{dense:.3f}", f"{ours - dense:+.3f}", f"{ours / dense - 1:+.1%}"]
            assert [cell.replace("-", "−") for cell in row] in table


@pytest.mark.parametrize("page", PAGES)
def test_pages_give_every_short_run(page: str, choices: dict[str, dict]) -> None:
    table = [row[:4] for row in table_rows(page)]
    for choice in choices.values():
        bits = [choice["bits_per_byte"][language] for language in LANGUAGES]
        assert [f"{value:.3f}" for value in (*bits, statistics.fmean(bits))] in table, choice["name"]


@pytest.mark.parametrize("page", PAGES)
def test_thresholds_are_called_met_or_missed_as_measured(
    page: str, rows: dict[str, dict], runs: dict[str, dict]
) -> None:
    """Verdicts are compared across the table: all that are met carry one word, and no other threshold carries it."""
    worst_balance = max(rows[f"MaxVio, {block}"]["ours"] for block in BLOCKS)
    expected = [(f"{worst_balance - 0.3:+.2f}", worst_balance < 0.3)]
    for limit in (0.5, 0.65):
        for mode in ("greedy", "sampled"):
            low = min(rows[f"MTP acceptance, {mode}, {language}"]["ours"] for language in LANGUAGES)
            expected.append((f"{100 * (low - limit):+.1f}", low >= limit))
    final, dense = (runs[model]["validation"]["bits_per_byte"] for model in ("final", "dense"))
    worst = max(final[language] / dense[language] - 1 for language in LANGUAGES)
    expected.append((f"{worst:+.1%}", worst < 0))
    same = sum(rows[f"speculative = plain, greedy, {language}"]["ours"] for language in LANGUAGES)
    texts = sum(rows[f"speculative = plain, greedy, {language}"]["notes"]["texts"] for language in LANGUAGES)
    expected.append((f"{same - texts:+.0f}".replace("+0", "0"), same == texts))

    found = [row[1:] for row in table_rows(page) if len(row) == 3][-len(expected) :]
    margins = [re.sub(r"[^\d.%+−]", "", margin) for margin, _ in found]
    assert margins == [margin.replace("-", "−") for margin, _ in expected]
    met = {verdict for (_, verdict), (_, is_met) in zip(found, expected) if is_met}
    missed = {verdict for (_, verdict), (_, is_met) in zip(found, expected) if not is_met}
    assert len(met) == 1
    assert not met & missed


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
    assert len(texts) == 12
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
    assert f"{preset['decay_fraction']:.0%}" in text.replace(" %", "%")
    assert f"{preset['min_lr_ratio']:.0%}" in text.replace(" %", "%")

    config = load_config("config_tiny")
    counts = (cost.parameters(config), cost.activated_parameters(config), cost.mtp_parameters(config))
    table = table_rows(page)
    for count in counts:
        assert any(row[0] == f"{count / 1e6:.1f}M" for row in table)
