"""Tokens and the experts they visit, as HTML: what a picture cannot do is be selected, searched and read aloud.

Every expert has one colour, and its number stands in it: neither has to be told from the colour alone. Whatever comes
from a prompt is escaped; the pieces carry their own colours, so a dark page does not swallow them.
"""

from collections.abc import Sequence
from html import escape

import matplotlib

from dsv3.errors import RequestError
from dsv3.viz.labels import tr

EXPERT_MAP = "viridis"
"""Neighbouring experts, which share a group, have similar colours."""

_STRIP = (
    "font: 14px/1.3 monospace; display: flex; flex-wrap: wrap; gap: 4px; color: #000; background: #fff; padding: 6px"
)
_TOKEN = "display: inline-flex; flex-direction: column; border: 1px solid #999; border-radius: 3px; background: #fff"
_WORD = "padding: 1px 4px; white-space: pre; text-align: center; color: #000"
_CHIPS = "display: flex"
_CHIP = "flex: 1; padding: 0 3px; font-size: 12px; text-align: center"


def token_strip(
    tokens: Sequence[str],
    experts_TK: Sequence[Sequence[int]],
    weights_TK: Sequence[Sequence[float]] | None = None,
    *,
    n_experts: int,
) -> str:
    """One box for each token with the numbers of its experts below it, each on the expert's colour.

    With weights the experts stand in their order, heaviest first, and the tooltip says them. Raises RequestError where
    the lengths do not agree or an expert does not exist.
    """
    if len(tokens) != len(experts_TK) or (weights_TK is not None and len(weights_TK) != len(tokens)):
        counts = f"{len(tokens)} tokens, {len(experts_TK)} lists of experts"
        raise RequestError(f"a strip needs the experts of each token, but there are {counts}")
    boxes: list[str] = []
    for t, (token, experts_K) in enumerate(zip(tokens, experts_TK, strict=True)):
        weights_K = [None] * len(experts_K) if weights_TK is None else list(weights_TK[t])
        if len(weights_K) != len(experts_K):
            raise RequestError(f"token {t} has {len(experts_K)} experts and {len(weights_K)} weights")
        visits = sorted(zip(experts_K, weights_K, strict=True), key=lambda visit: -(visit[1] or 0.0))
        boxes.append(_box(token, visits, n_experts))
    label = escape(tr("Tokens and the experts that each visits"), quote=True)
    return f'<div role="group" aria-label="{label}" style="{_STRIP}">{"".join(boxes)}</div>'


def _box(token: str, visits: Sequence[tuple[int, float | None]], n_experts: int) -> str:
    says = ", ".join(
        tr("expert {index}", index=expert) + ("" if weight is None else f" ({weight:.2f})") for expert, weight in visits
    )
    chips = "".join(_chip(expert, n_experts) for expert, _ in visits)
    word = f'<span style="{_WORD}">{escape(visible_token(token))}</span>'
    return (
        f'<span style="{_TOKEN}" title="{escape(says, quote=True)}">{word}<span style="{_CHIPS}">{chips}</span></span>'
    )


def _chip(expert: int, n_experts: int) -> str:
    background, text = expert_colours(expert, n_experts)
    return f'<span style="{_CHIP}; background: {background}; color: {text}">{expert}</span>'


def expert_colours(expert: int, n_experts: int) -> tuple[str, str]:
    """The expert's colour, and black or white, whichever is easier to read on it."""
    if not 0 <= expert < n_experts:
        raise RequestError(f"expert {expert} does not exist: there are {n_experts}, numbered from 0")
    rgb = matplotlib.colormaps[EXPERT_MAP](expert / max(n_experts - 1, 1))[:3]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]  # sRGB
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # Contrast (WCAG 2): (lighter + 0.05) / (darker + 0.05). Black and white are equally good at a luminance of 0.179.
    return "#" + "".join(f"{round(255 * c):02x}" for c in rgb), "#000000" if luminance > 0.179 else "#ffffff"


def visible_token(token: str) -> str:
    """White space as signs, so that a token of nothing else can be seen; an empty token is part of a character."""
    if not token:
        return "⋯"
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
