"""Recall documents and needles: exact lengths, answers stated before asked, nothing of the test in training."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dsv3.tokenizer
from dsv3.errors import ConfigError
from dsv3.tokenizer import Tokenizer
from dsv3.train.corpus import Documents, TokenStore, Workers, tokenize
from dsv3.train.data import PackedDataset
from dsv3.train.facts import ANSWERS, HOLDERS, KINDS, LANGUAGES, Fact
from dsv3.train.recall import (
    MIN_LENGTH,
    Fillers,
    _split,
    add_recall,
    needle,
    training_documents,
)

TINY = Path(dsv3.tokenizer.__file__).parent / "assets" / "tiny"
SENTENCES = {
    "en": ["The rain fell on the old road.", '"Who goes there?" he cried.', "She walked on, and said nothing more."],
    "es": ["Llovía sobre el viejo camino.", "—¿Quién va? —gritó él.", "Ella siguió andando y no dijo nada más."],
    "zh": ["雨落在旧路上。", "“谁在那里？”他喊道。", "她只管往前走，一句话也不说了。"],
}
TINY_TOKENIZER = Tokenizer.from_dir(TINY)


def novel(language: str, n_paragraphs: int, seed: int) -> str:
    """Paragraphs of one to six sentences, the first line a title."""
    rng = np.random.default_rng(seed)
    space = "" if language == "zh" else " "
    lines = [space.join(rng.choice(SENTENCES[language], rng.integers(1, 7))) for _ in range(n_paragraphs)]
    return "\n".join(["I", *lines])


FILLERS = {
    language: Fillers(tokenize([novel(language, 120, seed) for seed in range(4)], TINY_TOKENIZER), TINY_TOKENIZER)
    for language in LANGUAGES
}
a_language = st.sampled_from(LANGUAGES)


def a_fact() -> st.SearchStrategy[Fact]:
    return st.tuples(a_language, st.sampled_from(KINDS), st.integers(0, len(HOLDERS) - 1), st.integers(0)).map(
        lambda t: Fact(t[0], t[1], t[2], t[3] % len(ANSWERS[t[1]]))
    )


def facts_stated(text: str, language: str) -> dict[str, Fact]:
    """Every fact that a text states, by its statement."""
    found = {}
    for kind in KINDS:
        for holder in range(len(HOLDERS)):
            before, after = Fact(language, kind, holder, 0).statement.split(Fact(language, kind, holder, 0).answer_text)
            for answer in re.findall(f"^{re.escape(before)}(.+?){re.escape(after)}$", text, re.MULTILINE):
                index = [entry[LANGUAGES.index(language)] for entry in ANSWERS[kind]].index(answer)
                fact = Fact(language, kind, holder, index)
                found[fact.statement] = fact
    return found


# ----------------------------------------------------------------------------------------------------------- material


def test_enough_material_and_nothing_twice() -> None:
    assert len(HOLDERS) >= 48
    assert len(ANSWERS["word"]) >= 96
    for table in (HOLDERS, *ANSWERS.values()):
        assert len(table) >= 48
        for spellings in zip(*table, strict=True):
            assert len(set(spellings)) == len(table)
            assert all(spelling == spelling.strip() != "" for spelling in spellings)
    for entry in (*HOLDERS, *ANSWERS["treasure"]):
        assert re.match(r"(el|la|las) ", entry[1])
        assert re.fullmatch("[\u4e00-\u9fff]+", entry[2])


def test_facts_read_as_a_native_would_write() -> None:
    baker, queen = 0, 1
    assert (HOLDERS[baker][0], HOLDERS[queen][0], ANSWERS["word"][0][0]) == ("baker", "queen", "amber")
    assert Fact("en", "word", baker, 0).statement == "The secret word of the baker is amber."
    assert Fact("es", "word", baker, 0).statement == "La palabra secreta del panadero es ámbar."
    assert Fact("es", "word", queen, 0).statement == "La palabra secreta de la reina es ámbar."
    assert Fact("zh", "word", baker, 0).statement == "面包师的暗号是琥珀。"
    assert Fact("es", "treasure", queen, 0).prompt == (
        "¿Dónde está escondido el tesoro de la reina? El tesoro de la reina está escondido bajo"
    )
    assert Fact("zh", "horse", queen, 0).prompt + Fact("zh", "horse", queen, 0).completion == (
        "王后的马叫什么名字？王后的马名叫“流星”。"
    )
    assert Fact("en", "number", queen, 371).statement == "The lucky number of the queen is 471."


@given(fact=a_fact())
def test_the_question_repeats_the_statement(fact: Fact) -> None:
    text = fact.prompt + fact.completion
    assert text.endswith(fact.statement)
    question = text.removesuffix(fact.statement)
    before = fact.statement[: fact.statement.rindex(fact.answer_text)]
    assert before.rstrip().lower() not in question.lower()  # else the question, too, would show a continuation
    assert text.count(fact.answer_text) == 1 + fact.prompt.count(fact.answer_text)
    if fact.language == "es":
        assert " de el " not in text


def test_a_tenth_of_the_pairs_is_reserved_in_all_languages() -> None:
    for kind in KINDS:
        pairs = [(holder, answer) for holder in range(len(HOLDERS)) for answer in range(len(ANSWERS[kind]))]
        reserved = [[Fact(language, kind, *pair).is_reserved for pair in pairs] for language in LANGUAGES]
        assert reserved[0] == reserved[1] == reserved[2]
        assert np.mean(reserved[0]) == pytest.approx(0.1, abs=0.015)
    # Stored models were trained without these pairs: another choice would put the test into their training data.
    words = [
        f"{HOLDERS[h][0]}/{ANSWERS['word'][a][0]}"
        for h in range(3)
        for a in range(20)
        if Fact("en", "word", h, a).is_reserved
    ]
    assert words == [
        "baker/river",
        "baker/feather",
        "baker/honey",
        "baker/ribbon",
        "baker/marble",
        "queen/lantern",
        "queen/lemon",
    ]


def test_the_embedded_tokeniser_keeps_answers_apart() -> None:
    """Only a few Chinese answers melt into an id with what stands before them; needles leave those out."""
    for language in LANGUAGES:
        split = [
            _split(Fact(language, kind, holder, answer), TINY_TOKENIZER) is not None
            for kind in KINDS
            for holder in range(0, len(HOLDERS), 17)
            for answer in range(0, len(ANSWERS[kind]), 1 if kind != "number" else 50)
        ]
        assert np.mean(split) > (0.98 if language == "zh" else 0.9999)


# --------------------------------------------------------------------------------------------------- training documents


@settings(deadline=None, max_examples=40)
@given(language=a_language, length=st.integers(MIN_LENGTH, 1100), seed=st.integers(0, 2**32))
def test_documents_have_the_length_and_ask_what_they_stated(language: str, length: int, seed: int) -> None:
    rows = training_documents(language, FILLERS[language], 2, TINY_TOKENIZER, length, seed)
    assert rows.shape == (2, length)
    assert rows.dtype == np.uint16
    for row in rows.tolist():
        assert row[0] == TINY_TOKENIZER.bos_id
        assert not any(TINY_TOKENIZER.is_special(i) for i in row[1:])
        text = TINY_TOKENIZER.decode(row)
        facts = facts_stated(text, language)
        assert 1 <= len(facts) <= 8
        if length >= 1000:
            assert len(facts) >= 3
        answers = Counter((fact.kind, fact.answer) for fact in facts.values())
        assert max(answers.values()) == 1
        for statement, fact in facts.items():
            assert not fact.is_reserved
            lines = text.split("\n")
            asked = [i for i, line in enumerate(lines) if line == fact.prompt + fact.completion]
            assert 1 <= len(asked) <= 2
            assert lines.index(statement) < min(asked)
            assert lines.count(statement) == 1
        # No question without its statement: what is left after taking out the facts is the novel.
        rest = [line for line in text.split("\n")[:-1] if line not in facts]
        rest = [line for line in rest if line not in {f.prompt + f.completion for f in facts.values()}]
        assert all(line == "I" or line[:6] in {s[:6] for s in SENTENCES[language]} for line in rest)


@pytest.mark.parametrize("language", LANGUAGES)
def test_ids_are_those_of_the_joint_text(language: str) -> None:
    rows = training_documents(language, FILLERS[language], 60, TINY_TOKENIZER, 512).tolist()
    same = [TINY_TOKENIZER.encode(TINY_TOKENIZER.decode(row), parse_special=False) == row for row in rows]
    assert np.mean(same) > 0.85  # the cut at the end of a row may fall within a word or a character


@pytest.mark.parametrize("language", LANGUAGES)
def test_distances_reach_from_a_line_to_the_whole_row(language: str) -> None:
    distances = []
    for row in training_documents(language, FILLERS[language], 150, TINY_TOKENIZER, 1024).tolist():
        text = TINY_TOKENIZER.decode(row)
        for statement, fact in facts_stated(text, language).items():
            stated = text.index(statement)
            distances.append((text.index(fact.prompt, stated) - stated) / len(text))
    shares = np.histogram(distances, bins=[0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0])[0] / len(distances)
    assert (shares > (0.05, 0.03, 0.05, 0.08, 0.06, 0.04, 0.02)).all(), shares


def test_documents_depend_on_seed_language_and_number_alone() -> None:
    make = training_documents
    whole = make("es", FILLERS["es"], 6, TINY_TOKENIZER, 300, seed=5)
    parts = [make("es", FILLERS["es"], 3, TINY_TOKENIZER, 300, seed=5, first=first) for first in (0, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len({tuple(row) for row in whole.tolist()}) == 6
    assert (make("es", FILLERS["es"], 6, TINY_TOKENIZER, 300, seed=6) != whole).any(axis=1).all()


@pytest.mark.parametrize(
    ("language", "length", "message"),
    [
        ("fr", 512, "language 'fr': there are en, es, zh"),
        ("en", MIN_LENGTH - 1, f"of {MIN_LENGTH - 1} tokens: expected {MIN_LENGTH} or more"),
        ("en", 60_000, "no filler document has .* tokens"),
    ],
)
def test_bad_training_arguments(language: str, length: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training_documents(language, FILLERS["en"], 1, TINY_TOKENIZER, length)


def test_runs_stay_within_a_document_and_begin_with_a_paragraph() -> None:
    texts = [novel("en", n, seed) for seed, n in enumerate((3, 40, 9, 25))]
    documents = tokenize(texts, TINY_TOKENIZER)
    fillers, rng = Fillers(documents, TINY_TOKENIZER), np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 500))
        start = fillers.run(n, rng)
        assert any(TINY_TOKENIZER.decode(documents.tokens[start : start + n].tolist()) in f"\n{text}" for text in texts)
        assert TINY_TOKENIZER.decode([int(documents.tokens[start - 1])]) in ("\n", "")
        breaks = fillers.breaks_within(start, n)
        assert breaks[0] == 0
        assert breaks[-1] <= n
    for start in fillers.whole_runs(100):
        text = TINY_TOKENIZER.decode(documents.tokens[start : start + 100].tolist())
        assert text.endswith("\n")
        assert any(f"\n{text}" in f"\n{whole}" for whole in texts)


# ------------------------------------------------------------------------------------------------------------- needles


@settings(deadline=None, max_examples=60)
@given(
    language=a_language,
    length=st.integers(200, 1024),
    depth=st.floats(0, 1),
    kind=st.sampled_from((None, *KINDS)),
    seed=st.integers(0, 2**32),
)
def test_a_needle_is_asked_for_and_stands_where_it_says(
    language: str, length: int, depth: float, kind: str | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    made = needle(language, FILLERS[language], TINY_TOKENIZER, length=length, depth=depth, rng=rng, kind=kind)
    fact, prompt = made.fact, TINY_TOKENIZER.decode(made.prompt_ids)
    assert len(made.prompt_ids) == length
    assert made.prompt_ids[0] == TINY_TOKENIZER.bos_id
    joint = TINY_TOKENIZER.encode(prompt + fact.answer_with_space, bos=True, parse_special=False)
    assert joint == made.prompt_ids + made.answer_ids
    at = length - made.distance
    assert made.prompt_ids[at : at + len(made.answer_ids)] == made.answer_ids
    assert TINY_TOKENIZER.decode(made.answer_ids).strip() == made.answer_text
    assert prompt.endswith(f"\n{fact.prompt}")
    stated = facts_stated(prompt, language)
    assert set(stated) == {one.statement for one in (fact, *made.distractors)}
    assert fact.is_reserved
    assert {one.kind for one in stated.values()} == {fact.kind} if kind is None else {kind}
    assert len({one.holder for one in stated.values()}) == len({one.answer for one in stated.values()}) == len(stated)
    assert 3 <= len(stated) <= 4
    # Breaks are some ten tokens apart here, but 200 tokens leave only a few of them.
    assert abs(made.depth - depth) < 0.05 + 20 / length


@pytest.mark.parametrize("language", LANGUAGES)
def test_depths_0_and_1_are_the_ends_of_the_prompt(language: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        first, last = (
            needle(language, FILLERS[language], TINY_TOKENIZER, length=400, depth=depth, rng=rng) for depth in (0, 1)
        )
        assert TINY_TOKENIZER.decode(first.prompt_ids).startswith(first.fact.statement)
        assert TINY_TOKENIZER.decode(last.prompt_ids).endswith(f"\n{last.fact.statement}\n{last.fact.prompt}")
        assert (first.depth, last.depth) == (0, 1)


def test_needles_depend_on_the_generator_alone() -> None:
    a, b, c = (
        needle("en", FILLERS["en"], TINY_TOKENIZER, length=300, depth=0.5, rng=np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert a == b != c


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "fr"}, "language 'fr': there are en, es, zh"),
        ({"length": 0}, "of 0 tokens: expected 1 or more"),
        ({"length": 30}, "length 30 is too short for a needle: facts and question alone take"),
        ({"length": 100_000}, "no run of whole paragraphs"),
        ({"depth": 1.01}, "depth 1.01"),
        ({"depth": float("nan")}, "depth nan"),
        ({"kind": "dog"}, "kind 'dog': expected .* word, treasure, horse, city, number"),
    ],
)
def test_bad_needle_arguments(options: dict, message: str) -> None:
    rng = np.random.default_rng(0)
    arguments = {"language": "en", "length": 300, "depth": 0.5, "kind": None} | options
    with pytest.raises(ConfigError, match=message):
        needle(arguments.pop("language"), FILLERS["en"], TINY_TOKENIZER, rng=rng, **arguments)


def test_a_tokeniser_without_bos(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    tokenizer = Tokenizer.from_dir(tmp_path)
    with pytest.raises(ConfigError, match="names no bos_token"):
        training_documents("en", FILLERS["en"], 1, tokenizer, 300)


# --------------------------------------------------------------------------------------------------------------- store


@pytest.fixture(scope="module")
def store() -> TokenStore:
    languages = {
        name: tokenize([novel(name, 150, seed) for seed in range(30)], TINY_TOKENIZER) for name in ("en", "zh")
    }
    languages["fr"] = languages["en"]
    return TokenStore(languages, TINY_TOKENIZER.fingerprint, TINY_TOKENIZER.vocab_size, 0, 1)


def test_streams_take_their_share_of_an_epoch(store: TokenStore) -> None:
    length, share, epochs = 128, 0.1, 3
    mixed = add_recall(store, TINY_TOKENIZER, share=share, epochs=epochs, length=length, progress=False)
    assert list(mixed.languages) == ["en", "zh", "fr", "recall-en", "recall-zh"]
    assert mixed["en"] is store["en"]
    data = PackedDataset(mixed, length, 1)
    epoch = [[data.batch(e, step) for step in range(data.steps_per_epoch)] for e in range(epochs)]
    seen: set[tuple[int, ...]] = set()
    for batches in epoch:
        counts = Counter(data.languages[int(batch.languages_B[0])] for batch in batches)
        for language in ("en", "zh"):
            n = counts[f"recall-{language}"]
            assert n / (n + counts[language]) == pytest.approx(share, abs=0.01)
        rows = [
            tuple(batch.tokens_BS[0, :length].tolist())
            for batch in batches
            if data.languages[int(batch.languages_B[0])].startswith("recall")
        ]
        assert not seen & set(rows)  # fresh documents each epoch
        seen |= set(rows)
    n_documents = len(mixed["recall-en"]) + len(mixed["recall-zh"])
    assert len(seen) == n_documents - 2  # over the epochs all but the last one of each pass
    documents = {tuple(mixed[name][d].tolist()) for name in ("recall-en", "recall-zh") for d in range(len(mixed[name]))}
    assert seen < documents  # a row is one document, whole


def test_processes_make_the_same_streams(store: TokenStore, tmp_path: Path) -> None:
    alone = add_recall(store, TINY_TOKENIZER, length=128, epochs=2, progress=False)
    with Workers(TINY_TOKENIZER, 4) as workers:
        shared = add_recall(store, TINY_TOKENIZER, length=128, epochs=2, progress=False, workers=workers)
    assert alone.per_epoch == shared.per_epoch == {"en": 1, "zh": 1, "fr": 1, "recall-en": 0.5, "recall-zh": 0.5}
    for name in alone.languages:
        for array in ("tokens", "starts", "n_bytes"):
            np.testing.assert_array_equal(getattr(alone[name], array), getattr(shared[name], array))
    document = alone["recall-zh"]
    text = TINY_TOKENIZER.decode(document[1].tolist())
    assert document.n_bytes[1] == len(text.encode())
    shared.save(tmp_path / "t.npz")
    assert TokenStore.load(tmp_path / "t.npz").per_epoch == alone.per_epoch


def test_no_streams_where_no_row_falls_to_them(store: TokenStore) -> None:
    assert add_recall(store, TINY_TOKENIZER, share=0, progress=False) == store
    short = TokenStore({"en": tokenize(["A short text."], TINY_TOKENIZER)}, "", 8192, 0, 1)
    assert list(add_recall(short, TINY_TOKENIZER, progress=False).languages) == ["en"]


def test_bad_stream_arguments(store: TokenStore) -> None:
    for options in ({"share": 1.0}, {"share": -0.1}, {"share": float("nan")}, {"epochs": 0}):
        with pytest.raises(ConfigError, match="expected 0 <= share < 1 and 1 epoch or more"):
            add_recall(store, TINY_TOKENIZER, progress=False, **options)
    lines = Documents(np.tile([0, 500, 1], 4000).astype(np.uint16), np.arange(4001) * 3, np.ones(4000, np.int64))
    with pytest.raises(ConfigError, match="no filler document has"):
        add_recall(TokenStore({"en": lines}, "", 8192, 0, 1), TINY_TOKENIZER, share=0.2, progress=False)


def test_the_bar_goes_to_stderr(store: TokenStore, capfd: pytest.CaptureFixture) -> None:
    add_recall(store, TINY_TOKENIZER, length=128, epochs=1)
    out, err = capfd.readouterr()
    assert out == ""
    assert "recall documents: 100%" in err
