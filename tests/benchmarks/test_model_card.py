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
TEXTS = {  # paragraphs of several lengths, so that needles find runs of them that fill a prompt
    "en": [f"In the beginning was the word {i}.\n{'And the word was written down. ' * (i % 4)}" for i in range(12)],
    "es": [f"En el principio era la palabra {i}.\n{'Y la palabra se escribió. ' * (i % 4)}" for i in range(12)],
    "zh": [f"太初有字{i}。\n{'字写下来了。' * (i % 4)}" for i in range(12)],
}
TEXTS = {language: ["\n".join(lines) for lines in (texts, texts[::-1])] for language, texts in TEXTS.items()}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/model_card.py, imported as the scripts beside it are."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import model_card

    return model_card


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
    for name in ("train.npz", "val.npz", "heldout.npz"):
        store.save(tmp_path / name)
    quick = ("--threads", "1", "--documents", "2", "--chapters", "2", "--trials", "1", "--lengths", "96", "110")
    done = run("--data", tmp_path, "--ckpt-path", checkpoint, *quick)
    assert done.returncode == 0, done.stderr
    writing = ("MTP acceptance", "repeated 4-grams", "longest verbatim run", "other script")
    cases = [f"{figure}, {mode}" for figure in writing for mode in ("greedy", "sampled")]
    cases += ["bits per byte, validation", "bits per byte, held-out verses", "MTP agreement, validation"]
    cases += ["longest verbatim run, true continuation", "needle accuracy"]
    for case in cases:
        for language in TEXTS:
            assert f"| {case}, {language}" in done.stdout
    for language in ("en", "es"):
        assert f"| other language leads, sampled, {language}" in done.stdout
    for block in ("layer 1", "MTP 0"):
        assert f"| language distance, {block}" in done.stdout
    same = [line for line in done.stdout.splitlines() if line.startswith("| speculative = plain")]
    assert [[cell.strip() for cell in line.split("|")[2:4]] for line in same] == [["of 2 texts", "2 ± 0%"]] * 3
    assert "'seed': 3, 'prompt': '老太太笑道：“'" in done.stdout
