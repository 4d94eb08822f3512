"""How needles are asked and judged: a model that knows all answers, and hand-made answers."""

import types

import pytest

from dsv3.tokenizer import Tokenizer
from dsv3.train.corpus import tokenize
from dsv3.train.facts import ANSWERS
from tests.checkpoints import ROOT

TEXT = "\n".join(f"And on day {i} there was evening, and there was morning, and the sea was calm." for i in range(60))
GRID = ((128, 256), (0.0, 0.5, 1.0), 3)


@pytest.fixture
def needles(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/needle_map.py, imported as the scripts beside it do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import needle_map

    return needle_map


class Parrot:
    """In place of a model: gives back what ``answer`` makes of the prompt's text."""

    def __init__(self, answer) -> None:
        self.tokenizer = Tokenizer.from_dir(ROOT / "dsv3" / "assets" / "tiny")
        self.answer = answer
        self.prompts: list[list[int]] = []

    def generate(self, prompts, params):
        self.prompts += prompts
        assert params.stop == ("\n",)
        return [types.SimpleNamespace(text=self.answer(self.tokenizer.decode(prompt))) for prompt in prompts]


def recall(prompt: str) -> str:
    """The rest of the line in the prompt that begins as its end does."""
    beginning = prompt.rsplit("? ", 1)[1]
    return next(line for line in prompt.split("\n") if line.startswith(beginning)).removeprefix(beginning)


def test_a_reader_that_looks_the_fact_up_is_always_right(needles) -> None:
    parrot = Parrot(recall)
    cells = needles.ask(parrot, "en", tokenize([TEXT], parrot.tokenizer), needles.Grid(*GRID))
    assert needles.accuracy(cells) == [[1.0, 1.0]] * 3
    assert [len(prompt) for prompt in parrot.prompts] == [128, 128, 128, 256, 256, 256] * 3
    found = needles.summary(cells)
    assert (found["needles"], found["right"], found["another_holders"]) == (18, 1, 0)
    assert set(found["by_kind"].values()) == {1}
    assert 1 / max(map(len, ANSWERS.values())) < found["chance"] < 1 / min(map(len, ANSWERS.values()))
    assert 1 / 4 <= found["any_stated"] <= 1 / 3
    assert list(found["examples"]) == ["right"]


def test_another_holders_answer_is_wrong_and_counted(needles) -> None:
    def other(prompt: str) -> str:
        """The answer of the first line of the same kind that is about someone else."""
        beginning = prompt.rsplit("? ", 1)[1]
        kind, last = beginning.split(" of ")[0], beginning.rsplit(" ", 1)[1]
        lines = [line for line in prompt.split("\n") if line.startswith(f"{kind} of ")]
        return next(line for line in lines if not line.startswith(beginning)).rsplit(f" {last}", 1)[1]

    parrot = Parrot(other)
    found = needles.summary(
        needles.ask(parrot, "en", tokenize([TEXT], parrot.tokenizer), needles.Grid((128,), (0.5,), 8))
    )
    assert (found["right"], found["another_holders"]) == (0, 1)
    assert found["examples"]["another's"]["expected"] != found["examples"]["another's"]["given"].rstrip(".")


def test_an_answer_that_goes_on_is_wrong(needles) -> None:
    parrot = Parrot(lambda prompt: recall(prompt).rstrip(".") + "-tree.")
    documents = tokenize([TEXT], parrot.tokenizer)
    assert needles.accuracy(needles.ask(parrot, "en", documents, needles.Grid((128,), (0.5,), 4))) == [[0.0]]


def test_needles_are_the_same_in_every_run(needles) -> None:
    parrots = [Parrot(recall), Parrot(recall)]
    for parrot in parrots:
        needles.ask(parrot, "en", tokenize([TEXT], parrot.tokenizer), needles.Grid(*GRID))
    assert parrots[0].prompts == parrots[1].prompts
