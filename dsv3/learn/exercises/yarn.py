"""Chapter 06: wavelengths, the ramp, the rotation, the attention temperature."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsv3.config import ModelConfig
from dsv3.layers.rope import inverse_frequencies, rotate
from dsv3.learn.exercises.base import SMALL, Exercise, integer, normal
from dsv3.learn.solutions import yarn as solutions

CHAPTER = "06_yarn_long_context"


# --- inputs ---------------------------------------------------------------------------------------------------------


def _configs(g: torch.Generator) -> Iterator[ModelConfig]:
    yield dataclasses.replace(SMALL, rope_factor=4.0, original_seq_len=256)
    yield ModelConfig(mscale=0.707)  # the shape of 16B: factor 40 from 4,096 tokens
    width = 2 * integer(g, 8, 40)
    yield ModelConfig(qk_rope_head_dim=width, rope_theta=float(integer(g, 5, 50)) * 1e3, rope_factor=8.0, mscale=0.5)


def _alone(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for config in _configs(g):
        yield (config,)


def _pairs(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for S, R in ((1, 4), (3, 8), (5, 64)):
        yield normal(g, S, R), normal(g, S, R // 2) * 2


# --- specifications -------------------------------------------------------------------------------------------------


def _wavelengths(config: ModelConfig) -> Tensor:
    return 2 * math.pi / inverse_frequencies(dataclasses.replace(config, rope_factor=1.0))


def _turned(x_SR: Tensor, angles: Tensor) -> Tensor:
    return rotate(x_SR, torch.polar(torch.ones_like(angles), angles))


def _softmax_scale(config: ModelConfig) -> float:
    return config.softmax_scale


# --- known mistakes -------------------------------------------------------------------------------------------------


def _inverse_only(config: ModelConfig) -> Tensor:
    return _wavelengths(config) / (2 * math.pi)


def _pair_number(config: ModelConfig) -> Tensor:
    """theta ** (-i / R): the exponent's 2 is missing."""
    R = config.qk_rope_head_dim
    return 2 * math.pi * config.rope_theta ** (torch.arange(R // 2) / R)


def _stretched_all(config: ModelConfig) -> Tensor:
    return 2 * math.pi / inverse_frequencies(config)


def _plain(config: ModelConfig) -> Tensor:
    return inverse_frequencies(dataclasses.replace(config, rope_factor=1.0))


def _interpolated(config: ModelConfig) -> Tensor:
    return _plain(config) / config.rope_factor


def _ramp(config: ModelConfig) -> Tensor:
    """Unclamped: 0 at the last pair that stays, 1 at the first that is wholly slowed."""
    R, base = config.qk_rope_head_dim, config.rope_theta

    def pair(turns: float) -> float:
        return R * math.log(config.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair(config.beta_fast)), 0)
    high = min(math.ceil(pair(config.beta_slow)), R - 1)
    return (torch.arange(R // 2) - low) / (high - low)


def _slowed(config: ModelConfig, share: Tensor) -> Tensor:
    return _plain(config) * (1 - share) + _interpolated(config) * share


def _reversed_ramp(config: ModelConfig) -> Tensor:
    return _slowed(config, 1 - _ramp(config).clamp(0, 1))


def _unclamped(config: ModelConfig) -> Tensor:
    return _slowed(config, _ramp(config))


def _step(config: ModelConfig) -> Tensor:
    return _slowed(config, (_ramp(config) > 0).float())


def _on_wavelengths(config: ModelConfig) -> Tensor:
    """The ramp mixes wavelengths: right at both ends, wrong between them."""
    share = _ramp(config).clamp(0, 1)
    return 1 / ((1 - share) / _plain(config) + share / _interpolated(config))


def _halves(x_SR: Tensor, angles: Tensor) -> Tensor:
    a, b = x_SR.chunk(2, dim=-1)
    return torch.cat((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), dim=-1)


def _backwards(x_SR: Tensor, angles: Tensor) -> Tensor:
    return _turned(x_SR, -angles)


def _no_cross_terms(x_SR: Tensor, angles: Tensor) -> Tensor:
    return x_SR * angles.cos().repeat_interleave(2, -1)


def given_mscale(config: ModelConfig) -> float:
    return (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5


def _mscale(config: ModelConfig) -> float:
    return 0.1 * config.mscale * math.log(config.rope_factor) + 1.0


def _once(config: ModelConfig) -> float:
    return given_mscale(config) * _mscale(config)


def _decadic(config: ModelConfig) -> float:
    return given_mscale(config) * (0.1 * config.mscale * math.log10(config.rope_factor) + 1.0) ** 2


def _key_ignored(config: ModelConfig) -> float:
    return given_mscale(config) * (0.1 * math.log(config.rope_factor) + 1.0) ** 2


EXERCISES = (
    Exercise(
        id="yarn-1",
        chapter=CHAPTER,
        specification=_wavelengths,
        cases=_alone,
        wrong={"no_2pi": _inverse_only, "exponent": _pair_number, "stretched": _stretched_all},
        solution=solutions.yarn_1,
        tolerance=1e-3,
    ),
    Exercise(
        id="yarn-2",
        chapter=CHAPTER,
        specification=inverse_frequencies,
        cases=_alone,
        wrong={
            "interpolated": _interpolated,
            "reversed": _reversed_ramp,
            "unclamped": _unclamped,
            "step": _step,
            "on_wavelengths": _on_wavelengths,
        },
        solution=solutions.yarn_2,
        tolerance=1e-3,
    ),
    Exercise(
        id="yarn-3",
        chapter=CHAPTER,
        specification=_turned,
        cases=_pairs,
        wrong={"halves": _halves, "backwards": _backwards, "no_cross_terms": _no_cross_terms},
        solution=solutions.yarn_3,
    ),
    Exercise(
        id="bug-mscale",
        chapter=CHAPTER,
        specification=_softmax_scale,
        cases=_alone,
        wrong={"as_given": given_mscale, "once": _once, "decadic": _decadic, "key_ignored": _key_ignored},
        solution=solutions.bug_mscale,
        given=given_mscale,
    ),
)
