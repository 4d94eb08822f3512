"""The pages in three languages say the same, link to what exists, and use the glossary's words."""

import csv
import re
from collections import Counter

import pytest

from tests.docs.markdown import PAGES, ROOT, TRANSLATED, anchors, inline, parse

NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


def neutral(target: object) -> str:
    """A link or image without its language: README_ES.md and README_ZH.md are README.md there, and a page may link to
    the notebook of its own language."""
    target = re.sub(r"_(ES|ZH|en|es|zh)(?=\.(md|svg|png))", "", str(target))
    target = re.sub(r"^\.\./notebooks/(en|es|zh)/", "../notebooks/", target)
    return re.sub(r"^notebooks/(en|es|zh)/(?!00_tour)", "notebooks/", target)  # the tour is linked once for each


def skeleton(page: str) -> list[tuple[object, ...]]:
    """What a translation may not change: blocks and headings in order, code, the shapes of tables; and, within a block
    in any order, since languages order words differently, its links, images, code spans and numbers."""
    bones: list[tuple[object, ...]] = []
    for token in parse(page):
        if token.type == "fence":
            bones.append(("code", token.info, token.content))
        elif token.type == "html_block":
            bones.append(("html", *re.findall(r"</?\w+", token.content)))
        elif token.type == "inline":
            children = token.children or []
            bones.append(
                (
                    "text",
                    Counter(neutral(c.attrs["href"]) for c in children if c.type == "link_open"),
                    Counter(neutral(c.attrs["src"]) for c in children if c.type == "image"),
                    Counter(c.content for c in children if c.type == "code_inline"),
                    Counter(n for c in children if c.type == "text" for n in NUMBER.findall(c.content)),
                )
            )
        else:
            bones.append((token.type, token.tag))
    return bones


@pytest.mark.parametrize("translation", [1, 2], ids=["es", "zh"])
@pytest.mark.parametrize("pages", TRANSLATED.values(), ids=TRANSLATED)
def test_translations_are_in_step(pages: tuple[str, ...], translation: int) -> None:
    source, theirs = skeleton(pages[0]), skeleton(pages[translation])
    for i, (ours, other) in enumerate(zip(source, theirs, strict=False)):
        assert ours == other, f"block {i} of {pages[translation]} differs from {pages[0]}"
    assert len(source) == len(theirs)


@pytest.mark.parametrize("page", PAGES)
def test_local_links_and_images_exist(page: str) -> None:
    targets = [str(t.attrs.get("href") or t.attrs.get("src")) for t in inline(page) if t.type in ("link_open", "image")]
    assert targets
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.relative_to(ROOT).as_posix()), f"{page} links to {target}"


@pytest.fixture(scope="session")
def glossary() -> list[dict[str, str]]:
    path = ROOT / "dsv3/learn/glossary.tsv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def prose(page: str) -> str:
    """The text of a page without code, in lower case."""
    return "\n".join(token.content for token in inline(page) if token.type in ("text", "image")).lower()


@pytest.mark.parametrize("page", [*(pages[1] for pages in TRANSLATED.values()), "resumen.md"])
def test_spanish_uses_no_forbidden_rendering(page: str, glossary: list[dict[str, str]]) -> None:
    text = prose(page)
    for row in glossary:
        for words in filter(None, row["forbidden_es"].split("|")):
            pattern = rf"\b{re.escape(words.lower())}(s|es)?\b"
            assert not re.search(pattern, text), f"{words!r}: the glossary has {row['es']!r} for {row['en']!r}"


@pytest.mark.parametrize("page", [pages[2] for pages in TRANSLATED.values()])
def test_chinese_uses_no_forbidden_rendering(page: str, glossary: list[dict[str, str]]) -> None:
    text = prose(page).replace(" ", "")
    for row in glossary:
        for words in filter(None, row["forbidden_zh"].split("|")):
            pattern = words.lower().replace(" ", "")
            assert pattern not in text, f"{words!r}: the glossary has {row['zh']!r} for {row['en']!r}"
