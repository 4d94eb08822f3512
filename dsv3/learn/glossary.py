"""The glossary in three languages, and whether a translation uses it.

``glossary.tsv`` has a row for each term: key, the three languages, symbol, name in the code, place in the paper,
renderings that are forbidden, a note. How terms are matched, as the note of its first row says: an English term with a
bracketed qualifier names a sense and is not searched for; Spanish forms inflect; a forbidden Spanish rendering is a
whole word with its plural, a forbidden Chinese one any substring, spaces ignored; code and formulas do not count.
"""

import csv
import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from dsv3.errors import RequestError
from dsv3.learn.prose import take_apart


@dataclass(frozen=True)
class Term:
    key: str
    en: str
    es: str
    zh: str
    symbol: str
    code_name: str
    paper: str
    forbidden_es: str
    forbidden_zh: str
    note: str

    def rendering(self, language: str) -> str:
        return {"en": self.en, "es": self.es, "zh": self.zh}[language]

    def forbidden(self, language: str) -> list[str]:
        return [words for words in {"es": self.forbidden_es, "zh": self.forbidden_zh}[language].split("|") if words]


@functools.cache
def terms() -> tuple[Term, ...]:
    """The whole table, in its own order. Raises RequestError for a row that does not fit the columns."""
    text = (resources.files("dsv3.learn") / "glossary.tsv").read_text(encoding="utf-8")
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise RequestError(
                f"line {number} of glossary.tsv has {len(row)} columns; the first line has {len(rows[0])}"
            )
    return tuple(Term(**dict(zip(rows[0], row))) for row in rows[1:])


def look_up(words: str) -> Term:
    """The term with this key, or with this name in any of the languages. Raises RequestError where there is none."""
    wanted = words.strip().lower()
    for term in terms():
        if wanted in (term.key, term.en.lower(), term.es.lower(), term.zh.lower()):
            return term
    near = [term.key for term in terms() if any(word in term.key for word in wanted.replace("-", " ").split())]
    hint = f"near it: {', '.join(near)}" if near else "dsv3.learn.glossary.terms() has them all"
    raise RequestError(f"the glossary has no {words!r}; {hint}")


def problems(source: str, translation: str, language: str, exempt: frozenset[str] = frozenset()) -> Iterator[str]:
    """Terms of ``source`` (English Markdown) that ``translation`` renders otherwise, and renderings that are forbidden.

    exempt: keys of terms that this one text may render in other words.
    """
    theirs = take_apart(translation).prose
    for term in terms_in(source):
        if term.key not in exempt and not _renders(term, theirs, language):
            yield (
                f"the source says {term.en!r}, and the translation does not say {term.rendering(language)!r}: use the "
                f"glossary's word, or write 'glossary-exempt: {term.key}' into the entry's translator comment"
            )
    for term, words in forbidden_in(theirs, language):
        yield f"{words!r} is a forbidden rendering of {term.en!r}: the glossary has {term.rendering(language)!r}"


def terms_in(markdown: str) -> list[Term]:
    """Terms that English Markdown names. A longer term hides those inside it: 'multi-head attention' names no head."""
    text = take_apart(markdown).prose
    found: list[Term] = []
    for term, pattern in _searches():
        text, times = pattern.subn("\ufffc", text)
        if times:
            found.append(term)
    return found


def forbidden_in(prose: str, language: str) -> Iterator[tuple[Term, str]]:
    """Forbidden renderings in ``prose`` (Markdown without code, formulas and links), each with its term."""
    text = prose.lower()
    packed = re.sub(r"\s", "", text)
    for term in terms():
        for words in term.forbidden(language):
            if language == "zh":
                hit = words.lower().replace(" ", "") in packed
            else:
                spaced = r"\s+".join(map(re.escape, words.lower().split()))
                hit = re.search(rf"\b{spaced}(s|es)?\b", text) is not None
            if hit:
                yield term, words


@functools.cache
def _searches() -> list[tuple[Term, re.Pattern[str]]]:
    searched = sorted((term for term in terms() if "(" not in term.en), key=lambda term: -len(term.en))
    return [(term, re.compile(_english(term.en), re.I)) for term in searched]


def _english(term: str) -> str:
    """The term with either spelling, a hyphen or a space, and the plural of its last word."""
    pattern = r"[-\s]+".join(re.escape(word) for word in re.split(r"[-\s]+", term))
    pattern = re.sub(r"is(?=(?:ation|er)\b)", "i[sz]", pattern)
    plural = pattern[:-1] + "(?:y|ies)" if re.search(r"[^aeiou]y$", pattern) else pattern + "(?:s|es)?"
    return rf"(?<![\w-]){plural}(?![\w-])"


def _renders(term: Term, prose: str, language: str) -> bool:
    if language == "zh":
        return term.zh.replace(" ", "").lower() in re.sub(r"\s", "", prose).lower()
    return re.search(_spanish(term.es), _bare(prose)) is not None


@functools.cache
def _spanish(form: str) -> str:
    """A base form with its inflections: what is left of each word without its ending, and up to four letters more.

    Short words (de, por, la) stand as they are.
    """
    words = [
        re.escape(word) + "s?" if len(word) < 4 else re.escape(re.sub(r"(?:es|[aeo]s?)$", "", word)) + r"\w{0,4}"
        for word in _bare(form).split()
    ]
    return r"\b" + r"\s+".join(words) + r"\b"


def _bare(text: str) -> str:
    """Lower case without accents: the plural of 'codificación' has none."""
    return "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
