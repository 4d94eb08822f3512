"""What is counted in texts, against counts by hand and against the plain loop."""

import numpy as np
import pytest

from tests.checkpoints import ROOT


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/text_figures.py, imported as the scripts beside it do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import text_figures

    return text_figures


def test_repetition_counts_the_grams_seen_before(count) -> None:
    assert count.repeated_share([1, 2, 3, 4, 5, 6]) == 0
    assert count.repeated_share([7] * 13) == 0.9  # ten 4-grams, nine of them seen before
    assert count.repeated_share([1, 2, 1, 2, 1], n=2) == 0.5
    assert count.repeated_share([1, 2, 3]) == 0


def test_letters_of_another_script_are_found_and_marks_are_not(count) -> None:
    assert count.foreign_letters("He said: 你好, said he… — № 7", "en") == "你好"
    assert count.foreign_letters("¿Señor? El 1.º año", "es") == ""
    assert count.foreign_letters("他说：“OK，１２。”〇々", "zh") == "OK"
    assert count.foreign_letters("\ufffd 3", "zh") == ""


def test_function_words_tell_english_from_spanish(count) -> None:
    english, spanish = count.FUNCTION_WORDS.values()
    assert not english & spanish
    assert count.leading_language("The old man and the sea, and nothing else, señor") == "en"
    assert count.leading_language("Era un hombre que vivía en LA casa de su padre; the end.") == "es"
    assert count.leading_language("Ah! Oh!") is None
    assert count.leading_language("the casa de Romeo, of course y nada") is None  # two each


def longest(text: list[int], stream: list[int], breaks: tuple[int, ...]) -> int:
    best = 0
    for i in range(len(text)):
        for j in range(len(stream)):
            n = 0
            while (
                i + n < len(text) and j + n < len(stream) and text[i + n] == stream[j + n] and text[i + n] not in breaks
            ):
                n += 1
            best = max(best, n)
    return best


def test_the_longest_run_is_that_of_the_plain_loop(count) -> None:
    random = np.random.default_rng(1)
    for n_ids in (2, 3, 6, 30):
        for _ in range(20):
            stream = random.integers(n_ids, size=50).astype(np.uint16)
            texts = [random.integers(n_ids, size=random.integers(1, 15)).tolist() for _ in range(3)]
            for text, run in zip(texts, count.longest_runs(texts, stream, breaks=(0,))):
                assert run.length == longest(text, stream.tolist(), (0,))
                assert text[run.start : run.start + run.length] == stream[run.at : run.at + run.length].tolist()


def test_runs_end_at_breaks_and_at_the_ends_of_texts(count) -> None:
    stream = np.array([9, 1, 2, 3, 0, 4, 5, 9], np.uint16)
    assert count.longest_runs([[1, 2, 3, 0, 4, 5]], stream) == [count.Run(6, 0, 1)]
    assert count.longest_runs([[1, 2, 3, 0, 4, 5]], stream, breaks=(0,)) == [count.Run(3, 0, 1)]
    # The second text goes on where the first ends: no run goes from one to the other, nor past the stream's end.
    assert [run.length for run in count.longest_runs([[1, 2], [3], [5, 9, 9], [7], []], stream)] == [2, 1, 2, 0, 0]
