"""What exercises and checks say, in three languages: one TOML file each, with the same keys.

    [messages]        sentences of the check, with {fields}
    [gate-1]          title, task, three hints, what a right answer has shown, and ``wrong.<name>``: a diagnosis

The language is the one of the book's labels (``dsv3.learn.labels``); English where that module cannot say.
"""

import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "es", "zh")


def current_language() -> str:
    """The reader's language: one of ``LANGUAGES``."""
    language = _labels("current_language", lambda: "en")()
    return language if language in LANGUAGES else "en"


def _labels(name: str, otherwise: Any) -> Any:
    try:
        return getattr(import_module("dsv3.learn.labels"), name, otherwise)
    except ModuleNotFoundError:
        return otherwise


@cache
def catalogue(language: str) -> dict[str, dict[str, Any]]:
    return tomllib.loads((Path(__file__).parent / f"{language}.toml").read_text(encoding="utf-8"))


def text(section: str, key: str, **fields: object) -> str:
    """One text in the reader's language, with its {fields} filled in."""
    found: Any = catalogue(current_language())[section]
    for part in key.split("."):
        found = found[part]
    found = str(found).strip("\n")
    return found.format(**fields) if fields else found


def hints(exercise: str) -> list[str]:
    return [str(hint).strip() for hint in catalogue(current_language())[exercise]["hints"]]
