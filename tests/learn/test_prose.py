"""A translation that loses or changes a formula, code, a link, a heading or a number is noticed; prose is free."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv3.learn.prose import differences, take_apart

SOURCE = """## Gate

The gate takes $K$ of $E$ experts:

$$ g_i = s_i / \\sum_j s_j $$

See [Eq. 13](https://arxiv.org/abs/2412.19437) and `Gate.forward`, 2 calls.

```python
price = "$5"
```
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("$K$", "$k$", "formulas"),
        ("s_j $$", "s_i $$", "formulas"),
        ("$E$", "E", "formulas"),
        ("$E$", "$E", r"a \$ stands outside"),
        ("2412.19437", "2405.04434", "links"),
        ("`Gate.forward`", "`Gate.backward`", "code spans"),
        ("`Gate.forward`", "Gate.forward", "code spans"),
        ('"$5"', '"$6"', "blocks of code"),
        ("## Gate", "### Gate", "heading levels"),
        ("## Gate", "**Gate**", "heading levels"),
        ("2 calls", "3 calls", "numbers"),
        ("2 calls", "2 <b>calls</b>", "HTML tags"),
    ],
)
def test_losses_are_noticed(old: str, new: str, found: str) -> None:
    assert old in SOURCE
    problems = list(differences(SOURCE, SOURCE.replace(old, new, 1)))
    assert problems
    assert any(re.match(found, problem) for problem in problems), problems


def test_order_within_a_sentence_is_free() -> None:
    source = "Of $E$ experts, `Gate` takes $K$; see [here](a.md)."
    assert not list(differences(source, "Véase [aquí](a.md): `Gate` elige $K$ de $E$ expertos."))


def test_pages_of_another_language_are_the_same_link() -> None:
    assert not list(differences("[x](../../README.md#moe)", "[x](../../README_ES.md#mezcla)"))
    assert not list(differences("[x](../en/01_moe.ipynb)", "[x](../zh/01_moe.ipynb)"))
    assert list(differences("[x](../en/01_moe.ipynb)", "[x](../zh/02_mla.ipynb)"))


def test_a_decimal_comma_is_the_same_number() -> None:
    assert not list(differences("1.5 times", "1,5 veces"))


def test_prices_and_code_are_no_formulas() -> None:
    parts = take_apart("It costs $5 to $6, and `$x$` is code.")
    assert not parts.formulas
    assert parts.loose_dollars == 2
    assert list(parts.code) == ["`$x$`"]


FREE = ["text ", "**bold** "]
KEPT = ["$x_i$ ", "`code` ", "\n\n## Title\n\n", "[a](b.md) ", "\n\n$$\ny\n$$\n\n", "12 "]
PIECES = st.lists(st.sampled_from(FREE + KEPT), max_size=12)


@given(PIECES)
def test_a_text_agrees_with_itself_and_not_with_less(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert not list(differences(text, text))
    for i, piece in enumerate(pieces):
        if piece in KEPT:
            assert list(differences(text, "".join(pieces[:i] + pieces[i + 1 :])))
