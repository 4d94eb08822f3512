"""The strip is HTML that says what it shows, whatever stands in the prompt."""

from html.parser import HTMLParser

import pytest

from dsv3.errors import RequestError
from dsv3.viz import expert_colours, token_strip, visible_token


class Reader(HTMLParser):
    """Text, titles and tags; fails on tags that do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.titles: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        self.titles += [value or "" for name, value in attrs if name == "title"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_each_token_stands_over_the_numbers_of_its_experts() -> None:
    read = Reader(token_strip(["Había", " una", ""], [[3, 0], [1, 2], [7, 5]], n_experts=8))
    assert read.words == ["Había", "3", "0", "␣una", "1", "2", "⋯", "7", "5"]
    assert read.titles == ["expert 3, expert 0", "expert 1, expert 2", "expert 7, expert 5"]


def test_the_heaviest_expert_comes_first() -> None:
    read = Reader(token_strip(["x"], [[3, 0, 5]], [[0.25, 0.5, 0.25]], n_experts=8))
    assert read.words == ["x", "0", "3", "5"]
    assert read.titles == ["expert 0 (0.50), expert 3 (0.25), expert 5 (0.25)"]


@pytest.mark.parametrize("token", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "a&b", "</span>"])
def test_a_prompt_cannot_become_markup(token: str) -> None:
    html = token_strip([token], [[0]], n_experts=2)
    read = Reader(html)
    assert read.tags == {"div", "span"}
    assert "".join(read.words) == visible_token(token) + "0"


def test_white_space_can_be_seen() -> None:
    assert visible_token(" a\n\t") == "␣a⏎⇥"
    assert visible_token("") == "⋯"


@pytest.mark.parametrize("n_experts", [1, 2, 8, 64, 256])
def test_numbers_are_readable_on_every_colour(n_experts: int) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    seen = set()
    for expert in range(n_experts):
        background, text = expert_colours(expert, n_experts)
        seen.add(background)
        low, high = sorted((luminance(background), luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA
    assert len(seen) > 0.9 * n_experts


def test_no_tokens_give_an_empty_strip() -> None:
    assert Reader(token_strip([], [], n_experts=4)).words == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a", "b"], [[0]]), "2 tokens, 1 lists"),
        ((["a"], [[0, 1]], [[1.0]]), "2 experts and 1 weights"),
        ((["a"], [[4]]), "expert 4 does not exist"),
        ((["a"], [[-1]]), "expert -1"),
    ],
)
def test_what_cannot_be_drawn_is_said(arguments: tuple, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        token_strip(*arguments, n_experts=4)
