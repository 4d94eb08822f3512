"""What can be counted in texts that a model wrote: repetition, verbatim runs of its training text, mixed languages.

Pure functions on token ids and strings; the model card applies them.
"""

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

SCRIPTS = frozenset("LATIN CJK GREEK CYRILLIC HEBREW ARABIC HIRAGANA KATAKANA HANGUL FULLWIDTH".split())
"""First words of the Unicode names of letters."""

SCRIPT_OF = {"en": "LATIN", "es": "LATIN", "zh": "CJK"}

FUNCTION_WORDS = {
    "en": frozenset(
        "the of and to in that was his it with as for had you her not be is on at by but from they".split()
    ),
    "es": frozenset("el la los las de del que y en se un una por con su para es al lo como más pero sus era".split()),
}
"""Frequent words of each language that are none of the other's."""


def repeated_share(token_ids: Sequence[int], n: int = 4) -> float:
    """Part of the n-grams that stand earlier in the same text already; 0 for a text shorter than n."""
    grams = [tuple(token_ids[i : i + n]) for i in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def foreign_letters(text: str, language: str) -> str:
    """The letters of ``text`` from another script than the language is written in, in their order."""
    letters = [(letter, unicodedata.name(letter, "").split(" ", 1)[0]) for letter in text if letter.isalpha()]
    return "".join(letter for letter, script in letters if script in SCRIPTS and script != SCRIPT_OF[language])


def leading_language(text: str) -> str | None:
    """The language whose function words stand most often in ``text``; None where two have as many, or there is none.

    Only languages that share a script need the vote: English and Spanish.
    """
    words = re.findall(r"\w+", text.lower())
    votes = {language: sum(word in known for word in words) for language, known in FUNCTION_WORDS.items()}
    best = max(votes, key=lambda language: votes[language])
    return best if list(votes.values()).count(votes[best]) == 1 else None


@dataclass(frozen=True)
class Run:
    """``length`` tokens from ``start`` on in a text that stand, in this order, from ``at`` on in another one."""

    length: int
    start: int
    at: int


def longest_runs(texts: Sequence[Sequence[int]], stream: np.ndarray, breaks: Collection[int] = ()) -> list[Run]:
    """For each text its longest run of tokens that stands verbatim in ``stream``; the first of several.

    No run holds a token of ``breaks``: the marks between documents. All texts are looked for at once. At step k each
    position of the texts and of the stream carries a hash of its k tokens, made from that of k - 1; whoever finds no
    equal on the other side is out, so the 13M positions of a stream are few after a handful of steps.
    """
    query = np.concatenate([np.asarray(text, np.int64) for text in texts])
    ends = np.cumsum([len(text) for text in texts])
    owner = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    stops = np.isin(query, list(breaks))
    random = np.random.default_rng(0)  # a hash of 64 random bits for each token id; equal runs are compared at the end
    bits = random.integers(1 << 63, size=int(max(query.max(initial=0), stream.max(initial=0))) + 1, dtype=np.uint64)
    factor = np.uint64(0x9E3779B97F4A7C15)

    places, hashes = np.arange(len(query)), np.zeros(len(query), np.uint64)
    at, its_hashes = np.arange(len(stream), dtype=np.int32), np.zeros(len(stream), np.uint64)
    found = [Run(0, 0, 0)] * len(texts)
    k = 0
    while len(places):
        goes_on = places + k < ends[owner[places]]
        places, hashes = places[goes_on], hashes[goes_on]
        goes_on = ~stops[places + k]
        places, hashes = places[goes_on], hashes[goes_on]
        at, its_hashes = (array[: np.searchsorted(at, len(stream) - k)] for array in (at, its_hashes))
        if k == 0:  # most of the stream leaves here already, by a table instead of a search
            wanted = np.zeros(len(bits), bool)
            wanted[query[places]] = True
            at = at[wanted[stream]]
            its_hashes = its_hashes[: len(at)]
        hashes = hashes * factor + bits[query[places + k]]
        its_hashes = its_hashes * factor + bits[stream[at + k]]
        k += 1
        stays = _among(its_hashes, np.unique(hashes))
        at, its_hashes = at[stays], its_hashes[stays]
        known, first = np.unique(its_hashes, return_index=True)
        stays = _among(hashes, known)
        places, hashes = places[stays], hashes[stays]
        first_at = at[first[np.searchsorted(known, hashes)]]
        for place, where in zip(places[::-1].tolist(), first_at[::-1].tolist()):
            text = int(owner[place])
            found[text] = Run(k, place - int(ends[text]) + len(texts[text]), where)
    for text, run in zip(texts, found):
        assert np.array_equal(text[run.start : run.start + run.length], stream[run.at : run.at + run.length])
    return found


def _among(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Which of the values are in the sorted array ``of``."""
    if not len(of):
        return np.zeros(len(values), bool)
    return of[np.searchsorted(of, values).clip(max=len(of) - 1)] == values
