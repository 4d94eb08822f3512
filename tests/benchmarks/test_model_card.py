"""The figures of the model card: those counted in the script against hand counts, and the script on a small model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsv3.tokenizer import Tokenizer
from dsv3.train.corpus import SEPARATOR, tokenize_files
from tests.checkpoints import ROOT, write_small_checkpoint

SCRIPT = ROOT / "benchmarks" / "model_card.py"
TEXTS = {
    "en": ["In the beginning was the word, and the word was written down. " * 12, "And there was evening. " * 20],
    "es": ["En el principio era la palabra, y la palabra se escribió. " * 12, "Y fue la tarde. " * 20],
    "zh": ["太初有字，字写下来了。" * 20, "有晚上，有早晨。" * 20],
}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/model_card.py, imported as the scripts beside it are."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import model_card

    return model_card


def test_repetition_counts_the_grams_seen_before(card) -> None:
    assert card.repeated_share([1, 2, 3, 4, 5, 6]) == 0
    assert card.repeated_share([7] * 13) == 0.9  # ten 4-grams, nine of them seen before
    assert card.repeated_share([1, 2, 1, 2, 1], n=2) == 0.5
    assert card.repeated_share([1, 2, 3]) == 0


def test_distance_is_zero_for_equal_routing_and_one_for_disjoint(card) -> None:
    def distance(*counts: list[int]) -> float:
        return card.language_distance({str(i): torch.tensor(c) for i, c in enumerate(counts)})

    assert distance([3, 1, 0], [30, 10, 0]) == 0  # languages of any length
    assert distance([3, 1, 0], [0, 0, 5]) == 1
    assert distance([2, 2], [4, 0]) == 0.5
    assert distance([1, 0], [1, 0], [0, 1]) == pytest.approx(2 / 3)  # three pairs: 0, 1 and 1


def test_shares_of_an_expert_do_not_depend_on_how_long_the_texts_are(card) -> None:
    counts = {"short": torch.tensor([1, 3, 0]), "long": torch.tensor([300, 100, 0])}
    assert card.language_shares(counts) == {"short": [0.25, 0.75, 0.0], "long": [0.75, 0.25, 0.0]}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, "--dry-run", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8", check=False)


def test_absent_text_says_how_to_prepare_it(tmp_path: Path) -> None:
    done = run("--data", tmp_path)
    assert done.returncode == 1
    assert f"python -m dsv3.train.corpus CORPUS {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_every_figure_of_a_small_model(tmp_path: Path) -> None:
    checkpoint = write_small_checkpoint(tmp_path / "model")
    for language, texts in TEXTS.items():
        (tmp_path / f"{language}.txt").write_text(f"\n{SEPARATOR}\n".join(texts), encoding="utf-8")
    files = {language: tmp_path / f"{language}.txt" for language in TEXTS}
    store = tokenize_files(files, Tokenizer.from_dir(checkpoint), progress=False)
    for name in ("val.npz", "heldout.npz"):
        store.save(tmp_path / name)
    done = run("--data", tmp_path, "--ckpt-path", checkpoint)
    assert done.returncode == 0, done.stderr
    for case in ("bits per byte, held-out verses", "MTP agreement, validation", "repeated 4-grams, sampled"):
        for language in TEXTS:
            assert f"| {case}, {language}" in done.stdout
    for block in ("layer 1", "MTP 0"):
        assert f"| language distance, {block}" in done.stdout
    assert "'seed': 2, 'prompt': '从前有一个'" in done.stdout
