"""The needle map: a fact in a text of another matter, a question at its end, and how often the model answers it.

Facts and questions are of the kinds that the model was trained on (dsv3/train/recall.py), the pairs of holder and
answer are kept out of the training, and the text around them is the validation text. Two or three other facts of the
same kind stand in it too. An answer is right when the model greedily writes it and ends the sentence: "Star" is wrong
where it becomes "Starlight".

Two figures to compare with: ``chance`` of a reader who knows which answers a kind of question may have, and
``any_stated`` of one who gives any of the answers that stand in the text, without heeding whose it is.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dsv3 import LLM, SamplingParams
from dsv3.train.corpus import Documents
from dsv3.train.facts import ANSWERS
from dsv3.train.recall import Fillers, Needle, needle

LENGTHS = (128, 256, 384, 512, 768, 1000)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_ANSWER = 16  # tokens, or to the end of the line


@dataclass(frozen=True)
class Grid:
    """lengths: of the prompts, in tokens. depths: of the fact, 0 first, 1 last. trials: needles in each cell."""

    lengths: Sequence[int]
    depths: Sequence[float]
    trials: int


@dataclass(frozen=True)
class Answer:
    """What a model said where a needle's answer was asked for."""

    needle: Needle
    text: str

    @property
    def is_right(self) -> bool:
        return self.text.startswith(self.needle.fact.completion)

    @property
    def is_another_holders(self) -> bool:
        """Whether it is the answer of one of the other facts."""
        return any(self.text.strip().startswith(other.answer_text) for other in self.needle.distractors)


Cells = list[list[list[Answer]]]  # by depth, length and trial


def ask(llm: LLM, language: str, documents: Documents, grid: Grid) -> Cells:
    """Makes the needles of a language and asks them; a function of the arguments alone."""
    assert llm.tokenizer is not None
    fillers = Fillers(documents, llm.tokenizer)
    cells: Cells = []
    n_cells = len(grid.depths) * len(grid.lengths)
    with tqdm(total=n_cells, desc=f"{language}, needles", unit="cell", file=sys.stderr) as bar:
        for d, depth in enumerate(grid.depths):
            cells.append([])
            for length in grid.lengths:
                rng = np.random.default_rng((*language.encode(), d, length))
                needles = [
                    needle(language, fillers, llm.tokenizer, length=length, depth=depth, rng=rng)
                    for _ in range(grid.trials)
                ]
                params = SamplingParams(max_tokens=MAX_ANSWER, stop="\n")
                outputs = llm.generate([one.prompt_ids for one in needles], params)
                cells[-1].append([Answer(one, out.text or "") for one, out in zip(needles, outputs)])
                bar.update()
    return cells


def accuracy(cells: Cells) -> list[list[float]]:
    """Share of right answers by depth and length."""
    return [[round(sum(answer.is_right for answer in cell) / len(cell), 4) for cell in row] for row in cells]


def summary(cells: Cells) -> dict[str, Any]:
    """Over all cells: the accuracy and its parts, what to compare it with, and an answer of each kind to look at."""
    answers = [answer for row in cells for cell in row for answer in cell]
    by_kind: dict[str, list[bool]] = defaultdict(list)
    examples: dict[str, dict[str, Any]] = {}
    for answer in answers:
        fact = answer.needle.fact
        by_kind[fact.kind].append(answer.is_right)
        verdict = "right" if answer.is_right else "another's" if answer.is_another_holders else "wrong"
        example = {"asked": fact.prompt, "expected": fact.answer_text, "given": answer.text.strip()}
        examples.setdefault(verdict, example | {"distance": answer.needle.distance})
    n = len(answers)
    return {
        "needles": n,
        "right": round(sum(answer.is_right for answer in answers) / n, 4),
        "another_holders": round(sum(answer.is_another_holders and not answer.is_right for answer in answers) / n, 4),
        "by_kind": {kind: round(sum(right) / len(right), 4) for kind, right in sorted(by_kind.items())},
        "chance": round(sum(1 / len(ANSWERS[answer.needle.fact.kind]) for answer in answers) / n, 4),
        "any_stated": round(sum(1 / (1 + len(answer.needle.distractors)) for answer in answers) / n, 4),
        "examples": examples,
    }
