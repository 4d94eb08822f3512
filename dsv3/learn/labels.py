"""The language of plots and widgets: ``tr`` words a label, ``set_language`` chooses, catalogues hold the words.

    set_language("es")                       # the one cell tagged `lang` of a notebook says this
    tr("expert {index}", index=3)            # experto 3
    with language("zh"):                     # here alone: another language at the same time in the same process
        figure = viz.draw_expert_load(loads)

``locales/{es,zh}/labels.po`` beside this file hold the labels of ``dsv3.viz``, of ``dsv3.learn`` and of the notebooks'
code cells, keyed by the English text; ``python -m dsv3.learn.book extract`` adds new ones. A label without translation
appears in English; the tests accept none.
"""

import ast
import functools
import re
import string
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import polib

from dsv3.errors import RequestError
from dsv3.viz.labels import Voice, speak, speaking, tr, voice

__all__ = ["LANGUAGES", "current_language", "language", "set_language", "tr"]

LANGUAGES = {"en": "English", "es": "español", "zh": "中文"}
"""The languages of the walkthrough, each with its own name for itself; English is the source."""

LOCALES = "locales"
CATALOGUE = "labels.po"


def set_language(code: str) -> None:
    """Let labels speak ``code`` ("en", "es" or "zh") in this process. Raises RequestError for another language."""
    speak(_voice(code))


@contextmanager
def language(code: str) -> Iterator[None]:
    """The same inside a ``with`` block, and in its own thread or task alone."""
    with speaking(_voice(code)):
        yield


def current_language() -> str:
    return voice().language


@functools.cache
def _voice(code: str) -> Voice:
    if code not in LANGUAGES:
        known = ", ".join(f"{known!r} ({name})" for known, name in LANGUAGES.items())
        raise RequestError(f"unknown language {code!r}: use one of {known}")
    words = catalogue(code)
    return Voice(code, lambda label: words.get(label) or label)


def catalogue(code: str) -> dict[str, str]:
    """English label -> label in ``code``; an entry that is fuzzy or empty counts as absent. Empty for English."""
    if code == "en":
        return {}
    file = resources.files("dsv3.learn") / LOCALES / code / CATALOGUE
    return {entry.msgid: entry.msgstr for entry in polib.pofile(file.read_text(encoding="utf-8")) if entry.translated()}


# ------------------------------------------------------------------------------------------ the catalogue's upkeep


def used_labels(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Label -> the places that use it, from (place, Python source) pairs: every literal first argument of ``tr(...)``.

    Raises RequestError where the argument is no literal: a label put together at run time is in no catalogue.
    """
    found: dict[str, list[str]] = {}
    for place, source in sources:
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and _name(node.func) == "tr" and node.args):
                continue
            match node.args[0]:
                case ast.Constant(value=str(label)):
                    if place not in found.setdefault(label, []):
                        found[label].append(place)
                case other:
                    raise RequestError(
                        f"{place} has tr({ast.unparse(other)}); a label must be a literal text, with values in "
                        "{placeholders}: only then do the catalogues hold it"
                    )
    return found


def package_sources() -> Iterator[tuple[str, str]]:
    """The modules that may use ``tr``, for ``used_labels``."""
    package = Path(str(resources.files("dsv3")))
    for part in ("viz", "learn"):
        for path in sorted((package / part).rglob("*.py")):
            yield path.relative_to(package.parent).as_posix(), path.read_text(encoding="utf-8")


def placeholders(label: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(label) if name}


def label_problems(label: str, translation: str, code: str) -> Iterator[str]:
    """What is wrong with one translation: placeholders that do not agree, mathtext in Chinese."""
    try:
        theirs = placeholders(translation)
    except ValueError as error:
        yield f"label {label!r}: {translation!r} has unbalanced braces ({error}); double a literal brace"
        return
    if placeholders(label) != theirs:
        yield (
            f"label {label!r} has the placeholders {sorted(placeholders(label))}, its translation {sorted(theirs)}: "
            "write the same names"
        )
    if code == "zh" and re.search(r"(?<!\\)\$", translation):
        yield f"label {label!r}: its Chinese translation has a $, and mathtext has no fallback font: write it without"


def _name(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case _:
            return ""
