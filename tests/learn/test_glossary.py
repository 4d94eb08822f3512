"""The glossary's table, and what it finds in translations."""

import pytest

from dsv3.errors import RequestError
from dsv3.learn import glossary


def problems(source: str, translation: str, language: str, exempt: frozenset[str] = frozenset()) -> list[str]:
    return list(glossary.problems(source, translation, language, exempt))


def test_the_table_is_whole() -> None:
    table = glossary.terms()
    assert len(table) > 150
    assert len({term.key for term in table}) == len(table)
    assert all(term.en and term.es and term.zh for term in table)


def test_no_term_is_forbidden_by_another() -> None:
    for language in ("es", "zh"):
        for term in glossary.terms():
            assert not list(glossary.forbidden_in(term.rendering(language), language)), (term.key, language)


def test_every_term_that_is_searched_for_finds_itself() -> None:
    for term in glossary.terms():
        if "(" not in term.en:
            assert term in glossary.terms_in(f"About the {term.en} here.")
            assert not problems(f"The {term.en}.", f"{term.es}.", "es"), term.key
            assert not problems(f"The {term.en}.", f"{term.zh}。", "zh"), term.key


@pytest.mark.parametrize(
    ("english", "keys"),
    [
        ("Routed experts", {"routed-expert"}),
        ("multi-head attention", {"multi-head-attention"}),
        ("the KV caches", {"kv-cache"}),
        ("quantization", {"quantisation"}),
        ("`gate` and $token$", set()),
        ("a gatekeeper", set()),
        ("memory bound", {"memory-bound"}),
    ],
)
def test_terms_of_a_text(english: str, keys: set[str]) -> None:
    assert {term.key for term in glossary.terms_in(english)} == keys


@pytest.mark.parametrize(
    ("source", "translation", "language"),
    [
        ("The routed experts work.", "Los expertos enrutados trabajan.", "es"),
        ("Two quantisations.", "Dos cuantizaciones.", "es"),
        ("Expert load", "La carga por experto", "es"),
        ("The gate", "La compuerta", "es"),
        ("The Transformer reads a token.", "Transformer 读取一个token。", "zh"),
    ],
)
def test_inflected_terms_are_found(source: str, translation: str, language: str) -> None:
    assert problems(source, translation, language) == []


@pytest.mark.parametrize(
    ("source", "translation", "language", "said"),
    [
        ("The Transformer", "变压器 Transformer", "zh", "'变压器' is a forbidden rendering"),
        ("The Transformer", "Los transformadores y el Transformer", "es", "'transformador' is a forbidden rendering"),
        ("Here", "Una ficha", "es", "'ficha' is a forbidden rendering of 'token'"),
        ("The gate", "La entrada", "es", "does not say 'compuerta'"),
        ("A shared expert", "一个专家", "zh", "does not say '共享专家'"),
    ],
)
def test_other_words_are_noticed(source: str, translation: str, language: str, said: str) -> None:
    assert any(said in problem for problem in problems(source, translation, language))


def test_a_forbidden_word_in_code_is_allowed() -> None:
    assert problems("`x`", "`ficha` $ficha$", "es") == []


def test_a_translator_may_be_excused_from_a_term() -> None:
    assert problems("Each expert", "Cada uno", "es", frozenset({"expert"})) == []


def test_look_up() -> None:
    term = glossary.look_up("gate")
    assert glossary.look_up("门控") == glossary.look_up("Compuerta") == term
    with pytest.raises(RequestError, match=r"near it: .*routed-expert"):
        glossary.look_up("expert of sorts")
