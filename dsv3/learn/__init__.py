"""The walkthrough's helpers: checked exercises, hints, sliders under a figure.

    from dsv3 import learn

    learn.check("gate-1", my_gate)      # compares with the engine on random inputs, names a likely mistake
    learn.hint("gate-1")                # one more hint at each call
    learn.explore(draw, k=IntSlider(4, min=1, max=8))

Each name is imported when it is first touched: ipywidgets and matplotlib are optional.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv3.learn.checking import check, hint, solution, stub, task
    from dsv3.learn.widgets import LiveLoad, PromptBox, explore

__all__ = ["LiveLoad", "PromptBox", "check", "explore", "hint", "solution", "stub", "task"]

_HOMES = dict.fromkeys(("check", "hint", "solution", "stub", "task"), "dsv3.learn.checking") | dict.fromkeys(
    ("LiveLoad", "PromptBox", "explore"), "dsv3.learn.widgets"
)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dsv3.learn' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
