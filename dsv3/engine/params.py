"""What a caller may ask of one request. Checked when it is built, so a bad value never reaches a running batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dsv3.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one request is continued. Every field has a neutral value that switches it off.

    The order of the filters: repetition penalty, temperature, top-k, top-p among what top-k left, min-p.

    max_tokens: tokens to generate at most.
    temperature: logits are divided by it; 0 always takes the likeliest token (greedy).
    top_k: only the k likeliest tokens; 0: all. Tokens as likely as the k-th stay in.
    top_p: only the smallest set of likeliest tokens that holds at least this much probability; 1: all.
    min_p: only tokens at least min_p times as likely as the likeliest; 0: all.
    repetition_penalty: positive logits of tokens already in prompt or output are divided by it, negative ones
        multiplied (arXiv 1909.05858 §4.1); 1: off.
    seed: with a seed the same request gives the same tokens, alone or in any batch; None: a fresh one each time.
    stop: strings that end the text; the text ends before the one that appears first.
    logprobs: with each output token its log-probability and this many likeliest alternatives; None: nothing. They are
        the model's own: before penalty, temperature and filters.
    prompt_logprobs: the same for every prompt token but the first.
    ignore_eos: go on past the end-of-sequence token.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check_int("max_tokens", self.max_tokens, 1)
        _check_float("temperature", self.temperature, "at least 0 (0 is greedy)", lambda x: x >= 0)
        _check_int("top_k", self.top_k, 0)
        _check_float("top_p", self.top_p, "above 0 and at most 1", lambda x: 0 < x <= 1)
        _check_float("min_p", self.min_p, "between 0 and 1", lambda x: 0 <= x <= 1)
        _check_float("repetition_penalty", self.repetition_penalty, "above 0 (1 is off)", lambda x: x > 0)
        if self.seed is not None:
            _check_int("seed", self.seed, None)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0)
        for name in ("prompt_logprobs", "ignore_eos"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}; expected True or False")
        object.__setattr__(self, "stop", _stop_strings(self.stop))

    @property
    def greedy(self) -> bool:
        """Whether the raw logits' argmax is the next token."""
        return self.temperature == 0 and self.repetition_penalty == 1


def _check_int(name: str, value: Any, minimum: int | None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}; expected an integer")
    if minimum is not None and value < minimum:
        raise RequestError(f"{name} is {value}; it must be at least {minimum}")


def _check_float(name: str, value: Any, valid: str, accept: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}; expected a number {valid}")
    if not (math.isfinite(value) and accept(value)):
        raise RequestError(f"{name} is {value}; it must be finite and {valid}")


def _stop_strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, (list, tuple)) or not all(isinstance(s, str) for s in strings):
        raise RequestError(f"stop is {stop!r}; expected a string or a list of strings")
    if "" in strings:
        raise RequestError("stop holds an empty string, which would end every text at once: remove it")
    return tuple(strings)
