"""Recall documents: a fact is stated, other text follows, the fact is asked. For training, and as a test of memory.

To tell whether a model uses its whole context, hide a *needle* in a *haystack*: one sentence that nothing else in the
text hints at ("The secret word of the baker is amber.") in a long text of another matter, then ask for it. Right
answers over lengths and depths make the usual map. A small model that has read only novels fails everywhere, since
novels hardly ever reward looking up one word a thousand tokens back; two or three rows in a hundred that do are enough
for it to learn.

What makes such a text a fair lesson and a fair test:

- *Only recall helps.* Answers are drawn uniformly, and all answers of one kind of fact fit all holders.
- *Induction is enough.* The question repeats the statement's words up to the answer, so "find what came after these
  words before" solves it. Facts of the same kind about other holders stand in the same text; the word last seen after
  "is" would be the wrong one.
- *The test is not in the training data.* A tenth of the pairs (holder, answer) of each kind, the same ones in every
  language, occurs in no training document (`Fact.is_reserved`); a needle takes only these.
- *Every distance.* From a question that follows at once to one at the other end of the row.

    row | BOS novel | statement A | novel ... | statement B | question B, answer | ... | question A, answer | novel ...

The text around the facts is a run of paragraphs of one real document, already tokenised. Facts are paragraphs of
their own, so pieces of ids meet only after a line end, where a tokeniser that keeps line ends apart from the next word
(the embedded one, DeepSeek's, Llama 3's) would cut anyway: the ids are those of the joint text.
"""

from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from dsv3.errors import ConfigError
from dsv3.tokenizer import Tokenizer
from dsv3.train.corpus import Documents, TokenStore, Workers, join
from dsv3.train.facts import ANSWERS, HOLDERS, KINDS, LANGUAGES, Fact

MIN_LENGTH = 128  # tokens of a training document; two facts with their questions take about half of it
_MIN_DISTANCE = 20  # tokens from a statement to a question that follows at once, roughly
_ASKED_TWICE = 0.3  # share of the facts that are asked a second time
_TRIES = 100
_CLOSE_ENOUGH = 0.02  # of a needle's depth to the one asked for, unless many tries find none so close


class Fillers:
    """Runs of paragraphs to hide facts in, of tokenised documents (`tokenize(texts, tokenizer)`, or a language of a
    token file).

    Positions count ids of `documents.tokens`. A *break* is where a paragraph begins.
    """

    def __init__(self, documents: Documents, tokenizer: Tokenizer) -> None:
        self.tokens = documents.tokens
        ends_line = np.array([tokenizer.decode([i]).endswith("\n") for i in range(tokenizer.vocab_size)])
        # The first place of a document is BOS, its last EOS; neither belongs to a run.
        self._is_break = np.zeros(len(self.tokens) + 1, dtype=bool)
        self._is_break[1:] = ends_line[self.tokens]
        self._is_break[documents.starts[:-1] + 1] = True
        self.breaks = np.flatnonzero(self._is_break)
        ends = documents.starts[np.searchsorted(documents.starts, self.breaks, side="right")] - 1
        room = ends - self.breaks
        # Breaks with the most text before the end of their document come first, so those that leave room for a run
        # stand together; each weighs as much as its paragraph is long, so that lines of verse do not prevail.
        order = np.argsort(-room, kind="stable")
        self._starts, self._room = self.breaks[order], room[order]
        self._weights = np.cumsum(np.diff(self.breaks, append=ends[-1:])[order])

    def run(self, n_tokens: int, rng: np.random.Generator) -> int:
        """Where a run of `n_tokens` within one document begins, at a paragraph; its end falls anywhere. Runs without
        a paragraph longer than a third of them are preferred.

        Raises ConfigError when no document is that long.
        """
        fitting = self._fitting(n_tokens)
        if not fitting:
            raise ConfigError(
                f"no filler document has {n_tokens} tokens after the start of a paragraph (the most are"
                f" {self._room.max(initial=0)}). Choose a smaller length or give longer documents."
            )
        start = 0
        for _ in range(_TRIES // 10):
            drawn = rng.integers(self._weights[fitting - 1])
            start = int(self._starts[np.searchsorted(self._weights, drawn, side="right")])
            # One paragraph of nearly the whole run would herd all facts to one place: rather draw again.
            if np.diff(self.breaks_within(start, n_tokens), append=n_tokens).max() <= n_tokens / 3:
                break
        return start

    def whole_runs(self, n_tokens: int) -> np.ndarray:
        """Every place where a run of exactly `n_tokens` begins and ends with whole paragraphs."""
        starts = self._starts[: self._fitting(n_tokens)]
        return starts[self._is_break[starts + n_tokens]]

    def breaks_within(self, start: int, n_tokens: int) -> np.ndarray:
        """Breaks of a run, counted from its start: 0 first, `n_tokens` last where the run ends with a paragraph."""
        first, last = np.searchsorted(self.breaks, (start, start + n_tokens + 1))
        return self.breaks[first:last] - start

    def _fitting(self, n_tokens: int) -> int:
        return int(np.searchsorted(-self._room, -n_tokens, side="right"))


@dataclass(frozen=True)
class Needle:
    """A question whose answer stands once, somewhere in the prompt. The model should go on with `answer_ids`."""

    prompt_ids: list[int]  # BOS first; ends right before the answer
    answer_ids: list[int]  # prompt_ids + answer_ids are the ids of the joint text
    answer_text: str
    distance: int  # tokens from the first one of the answer where it is stated to where it is asked for
    depth: float  # of the statement, 0 at the start of the prompt, 1 right before the question; as near as breaks allow
    fact: Fact
    distractors: tuple[Fact, ...]  # of the same kind, about other holders, with other answers, in the same prompt


def needle(
    language: str,
    fillers: Fillers,
    tokenizer: Tokenizer,
    *,
    length: int,
    depth: float,
    rng: np.random.Generator,
    kind: str | None = None,
) -> Needle:
    """A prompt of exactly `length` tokens that states one reserved fact at relative depth `depth` and asks for it.

    kind: one of KINDS; None draws it. Two or three distractors stand at random depths.

    Raises ConfigError for an unknown language or kind, a depth outside 0..1, a length too short for the facts, or
    fillers in which no run of whole paragraphs has the length that is left.
    """
    _check(language, tokenizer, length, least=1)
    if not 0 <= depth <= 1 or (kind is not None and kind not in KINDS):
        raise ConfigError(f"depth {depth}, kind {kind!r}: expected 0 to 1 and one of {', '.join(KINDS)}.")
    shortest = None
    for attempt in range(_TRIES):
        fact, *others = _facts_of_kind(language, kind or KINDS[rng.integers(len(KINDS))], int(rng.integers(3, 5)), rng)
        split = _split(fact, tokenizer)
        if split is None:
            continue
        tail, answer_ids, at_answer = split
        pieces = [_line(one.statement, tokenizer) for one in (fact, *others)]
        left = length - 1 - len(tail) - sum(map(len, pieces))
        shortest = min(length - left, shortest or length - left)
        if left <= 0 or not len(runs := fillers.whole_runs(left)):
            continue
        # Of a few runs, the one that has a break nearest to the depth asked for.
        choices = [(int(start), fillers.breaks_within(int(start), left)) for start in rng.choice(runs, 16)]
        start, breaks = min(choices, key=lambda choice: np.abs(choice[1] - depth * left).min())
        at = int(breaks[np.abs(breaks - depth * left).argmin()])
        if abs(at / left - depth) > _CLOSE_ENOUGH and attempt < _TRIES // 2:
            continue
        # Where a distractor shares the needle's break, the needle is the outer one at either end of the prompt.
        places = [(at, -1 if depth < 0.5 else 1, 0)] + [(int(rng.choice(breaks)), 0, i + 1) for i in range(len(others))]
        stated = sorted(places)
        body = _merge(fillers.tokens[start : start + left], [(place, pieces[i]) for place, _, i in stated])
        before = sum(len(pieces[i]) for _, _, i in stated[: stated.index(places[0])])
        assert tokenizer.bos_id is not None  # _check has seen to it
        prompt = [tokenizer.bos_id, *body.tolist(), *tail]
        distance = len(prompt) - (1 + at + before + at_answer)
        return Needle(prompt, answer_ids, fact.answer_text, distance, at / left, fact, tuple(others))
    if shortest is not None and shortest >= length:
        raise ConfigError(
            f"length {length} is too short for a needle: facts and question alone take {shortest} tokens. Take more."
        )
    raise ConfigError(
        f"the filler text has no run of whole paragraphs that makes a prompt of {length} tokens. Give more or longer"
        " documents, or choose another length."
    )


def training_documents(
    language: str, fillers: Fillers, n: int, tokenizer: Tokenizer, length: int = 1024, seed: int = 0, *, first: int = 0
) -> np.ndarray:
    """`n` documents of exactly `length` tokens, uint16 (n, length): BOS and text, cut without EOS.

    Each states 3 to 8 facts (fewer where `length` leaves no room) and asks each once or twice later on; no question is
    cut off. Document i depends on (seed, language, i) alone, and `first` is the first i: parts can be made apart.

    Raises ConfigError for an unknown language, a length below MIN_LENGTH or too short for this tokeniser, or fillers
    without a document that is long enough.
    """
    _check(language, tokenizer, length, least=MIN_LENGTH)
    rows = np.empty((n, length), dtype=np.uint16)
    for i in range(n):
        rng = np.random.default_rng((seed, LANGUAGES.index(language), first + i))
        rows[i] = _training_document(language, fillers, tokenizer, length, rng)
    return rows


def add_recall(
    store: TokenStore,
    tokenizer: Tokenizer,
    *,
    share: float = 0.03,
    epochs: int = 12,
    length: int = 1024,
    seed: int = 0,
    workers: Workers | None = None,
    progress: bool = True,
) -> TokenStore:
    """The store with a stream "recall-LANGUAGE" beside each language, made from its text.

    In an epoch of rows of `length` tokens, `share` of the rows of a language and its stream together are recall
    documents, and no document occurs twice in `epochs` epochs. Languages without material, or with so little text
    that no row falls to recall, get no stream.

    Raises ConfigError for a share outside 0..1 (1 excluded), epochs below 1, and as `training_documents` does.
    """
    from tqdm import tqdm

    if not 0 <= share < 1 or epochs < 1:
        raise ConfigError(f"recall share {share}, {epochs} epochs: expected 0 <= share < 1 and 1 epoch or more.")
    workers = workers or Workers(tokenizer, 1)
    parts: dict[str, list[Future[Documents]]] = {}
    per_epoch: dict[str, float] = {}
    for language in (name for name in store.languages if name in LANGUAGES):
        rows = round(len(store[language].tokens) // length * store.per_epoch[language] * share / (1 - share))
        if rows:
            # One more than the epochs take, since the last document of a pass has no row of its own (see data.py).
            n = rows * epochs + 1
            per_epoch[f"recall-{language}"] = 1 / epochs
            bounds = np.linspace(0, n, min(n, -(-workers.count // len(LANGUAGES))) + 1).astype(int).tolist()
            parts[f"recall-{language}"] = [
                workers.submit(_part, language, store[language], end - first, length, seed, first)
                for first, end in pairwise(bounds)
            ]
    futures = [part for of_language in parts.values() for part in of_language]
    for part in tqdm(futures, "recall documents", disable=not progress or not futures):
        part.result()
    streams = {name: join([part.result() for part in of_language]) for name, of_language in parts.items()}
    return replace(store, languages=store.languages | streams, per_epoch=store.per_epoch | per_epoch)


def _part(
    tokenizer: Tokenizer, language: str, documents: Documents, n: int, length: int, seed: int, first: int
) -> Documents:
    rows = training_documents(language, Fillers(documents, tokenizer), n, tokenizer, length, seed, first=first)
    n_bytes = [len(tokenizer.decode(row).encode()) for row in rows.tolist()]
    return Documents(rows.reshape(-1), np.arange(n + 1, dtype=np.int64) * length, np.array(n_bytes, dtype=np.int64))


def _training_document(
    language: str, fillers: Fillers, tokenizer: Tokenizer, length: int, rng: np.random.Generator
) -> np.ndarray:
    n_facts, n_kinds = int(rng.integers(3, 9)), int(rng.integers(1, 4))
    kinds = rng.permutation(len(KINDS))[:n_kinds]
    events: list[list[list[int]]] = []  # of each fact the statement and its questions
    for k, kind in enumerate(kinds):
        facts = _facts_of_kind(language, KINDS[kind], len(range(k, n_facts, n_kinds)), rng, reserved=False)
        for fact in facts:
            asked = _line(fact.prompt + fact.completion, tokenizer)
            events.append([_line(fact.statement, tokenizer)] + [asked] * (1 + int(rng.random() < _ASKED_TWICE)))
    while len(events) > 1 and _n_tokens(events) > length // 2:
        events.pop(int(rng.integers(len(events))))
    left = length - 1 - _n_tokens(events)
    if left <= 0:
        raise ConfigError(f"length {length} is too short for one fact and its question, {length - left} tokens.")
    start = fillers.run(left, rng)
    breaks = fillers.breaks_within(start, left)
    places: list[tuple[int, bool, float, list[int]]] = []  # sorted by break, statements before questions
    for statement, *questions in events:
        first, later = _places(breaks, len(questions), rng)
        places.append((first, False, rng.random(), statement))
        places += [(place, True, rng.random(), ids) for place, ids in zip(later, questions, strict=True)]
    places.sort(key=lambda place: place[:3])
    body = _merge(fillers.tokens[start : start + left], [(place, ids) for place, _, _, ids in places])
    assert tokenizer.bos_id is not None  # _check has seen to it
    return np.concatenate([[tokenizer.bos_id], body])


def _places(breaks: np.ndarray, n_questions: int, rng: np.random.Generator) -> tuple[int, list[int]]:
    """Breaks for a statement and its questions: distances half log-uniform (near ones count), half uniform (and far
    ones occur).
    """
    span = int(breaks[-1])
    distances = [
        _MIN_DISTANCE * (span / _MIN_DISTANCE) ** rng.random()
        if span > _MIN_DISTANCE and rng.random() < 0.5
        else span * rng.random()
        for _ in range(n_questions)
    ]
    stated = rng.random() * (span - max(distances))
    first = int(np.abs(breaks - stated).argmin())
    later = [int(breaks[max(first, int(np.abs(breaks - stated - d).argmin()))]) for d in distances]
    return int(breaks[first]), later


def _facts_of_kind(language: str, kind: str, n: int, rng: np.random.Generator, *, reserved: bool = True) -> list[Fact]:
    """`n` facts about different holders with different answers. reserved: the first one is; otherwise none is."""
    while True:
        holders = rng.permutation(len(HOLDERS))[:n].tolist()
        answers = rng.permutation(len(ANSWERS[kind]))[:n].tolist()
        facts = [Fact(language, kind, holder, answer) for holder, answer in zip(holders, answers, strict=True)]
        if facts[0].is_reserved if reserved else not any(fact.is_reserved for fact in facts):
            return facts


def _split(fact: Fact, tokenizer: Tokenizer) -> tuple[list[int], list[int], int] | None:
    """Ids of the prompt and of the answer, and the answer's place in the statement. None where the tokeniser would
    melt the answer with its neighbours, so that a right answer could be spelled in other ids.
    """
    prompt, answer = (_encode(text, tokenizer) for text in (fact.prompt, fact.answer_with_space))
    whole = _encode(fact.prompt + fact.completion, tokenizer)
    stated = _line(fact.statement, tokenizer)
    end = len(stated) - len(_line(fact.completion.removeprefix(fact.answer_with_space), tokenizer))
    fits = whole[: len(prompt) + len(answer)] == prompt + answer and stated[end - len(answer) : end] == answer
    return (prompt, answer, end - len(answer)) if fits else None


def _merge(text: np.ndarray, pieces: list[tuple[int, list[int]]]) -> np.ndarray:
    """`text` with each piece put in before its place; places ascend."""
    parts: list[np.ndarray] = []
    done = 0
    for place, ids in pieces:
        parts += [text[done:place], np.array(ids, dtype=text.dtype)]
        done = place
    return np.concatenate([*parts, text[done:]])


def _line(text: str, tokenizer: Tokenizer) -> list[int]:
    return _encode(text + "\n", tokenizer)


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(text, bos=False, parse_special=False)


def _n_tokens(events: list[list[list[int]]]) -> int:
    return sum(len(ids) for pieces in events for ids in pieces)


def _check(language: str, tokenizer: Tokenizer, length: int, *, least: int) -> None:
    if language not in LANGUAGES:
        raise ConfigError(f"no recall documents in language {language!r}: there are {', '.join(LANGUAGES)}.")
    if length < least:
        raise ConfigError(f"recall documents of {length} tokens: expected {least} or more.")
    if tokenizer.bos_id is None:
        raise ConfigError("the tokeniser names no bos_token, with which recall documents begin.")
