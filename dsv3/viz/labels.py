"""Which language a figure speaks. Drawing functions word their labels with ``tr``; who draws may lend them a voice.

    with speaking(Voice("es", catalogue.__getitem__)):
        figure = draw_expert_load(loads)

Without a voice a label is the English text in the source. A drawing function stays a pure function of its data and of
the voice around it. ``speaking`` holds in its own thread or task alone (a context variable), so two languages in one
process do not disturb each other. ``speak`` says what holds where no ``speaking`` does: a notebook sets it once, and
the callbacks of its widgets, which run outside the cell's context, hear it too.

No ``$`` in a label that is translated into Chinese: mathtext knows no fallback font.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Voice:
    """A language and its way from an English label to one of its own; the fonts follow the language (``theme``)."""

    language: str = "en"
    translate: Callable[[str], str] = str


_around: ContextVar[Voice | None] = ContextVar("voice", default=None)
_otherwise = [Voice()]


def voice() -> Voice:
    """The voice that holds here."""
    return _around.get() or _otherwise[0]


def speak(lent: Voice) -> None:
    """Let ``lent`` hold in the whole process wherever no ``speaking`` block does."""
    _otherwise[0] = lent


@contextmanager
def speaking(lent: Voice) -> Iterator[None]:
    token = _around.set(lent)
    try:
        yield
    finally:
        _around.reset(token)


def tr(label: str, /, **values: object) -> str:
    """``label`` in the language that holds here, then with ``values`` in its ``{placeholders}``.

    The label is a literal at every call, so that the catalogues can be compared with the source; a translation may
    put the placeholders in another order, and their formats (``{share:.1%}``) are its own.
    """
    worded = voice().translate(label)
    return worded.format(**values) if values else worded
