"""Chapter 02: the latent, the absorbed form, the decoupled rope, the cache."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsv3 import cost
from dsv3.config import ModelConfig
from dsv3.layers.mla import MLA
from dsv3.layers.rope import inverse_frequencies, rotate, rotations
from dsv3.learn.exercises.base import SMALL, Exercise, fill, integer, normal
from dsv3.learn.solutions import mla as solutions
from dsv3.parallel.group import Parallel

CHAPTER = "02_mla_compression"


# --- inputs ---------------------------------------------------------------------------------------------------------


def configs(g: torch.Generator) -> Iterator[tuple[ModelConfig]]:
    yield (SMALL,)
    yield (ModelConfig(),)  # the shape of 16B
    yield (
        dataclasses.replace(
            SMALL,
            n_layers=integer(g, 3, 9),
            n_heads=integer(g, 3, 9),
            kv_lora_rank=2 * integer(g, 5, 20),
            qk_nope_head_dim=2 * integer(g, 5, 9),
            v_head_dim=integer(g, 5, 9),
        ),
    )


def _layer(g: torch.Generator, **changes: Any) -> MLA:
    mla = MLA(dataclasses.replace(SMALL, **changes), 0, dtype=torch.float32, parallel=Parallel())
    fill(mla.requires_grad_(False), g)
    return mla


def _latents(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for S, L, H in ((1, 2, 2), (1, 1, 2), (3, 7, 3)):
        mla = _layer(g, n_heads=H)
        yield mla, normal(g, S, H, mla.N), normal(g, L, mla.C)


def _attention(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for S, L, H in ((1, 2, 2), (2, 5, 3), (3, 9, 2)):
        mla = _layer(g, n_heads=H, rope_factor=4.0)  # with YaRN: the softmax scale is more than a width
        yield mla, normal(g, S, H, mla.N), normal(g, S, H, mla.R), normal(g, L, mla.C), normal(g, L, mla.R)


def _tokens(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for S in (2, 5, 1):
        mla = _layer(g)
        start = integer(g, 1, 40)
        yield mla, normal(g, S, SMALL.dim), rotations(torch.arange(start, start + S), inverse_frequencies(SMALL))


def _budgets(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for (config,) in configs(g):
        yield config, integer(g, 10, 60) << 20


# --- specifications -------------------------------------------------------------------------------------------------


def _ratio(config: ModelConfig) -> float:
    return cost.uncompressed_cache_bytes_per_token(config) / cost.cache_bytes_per_token(config)


def _content_scores(mla: MLA, q_nope_SHN: Tensor, c_kv_LC: Tensor) -> Tensor:
    k_nope_LHN = mla.wkv_b(c_kv_LC).unflatten(-1, (mla.H, -1))[..., : mla.N]
    return torch.einsum("shn,lhn->shl", q_nope_SHN, k_nope_LHN)


def _expanded(mla: MLA, q_nope_SHN: Tensor, q_pe_SHR: Tensor, c_kv_LC: Tensor, k_pe_LR: Tensor) -> Tensor:
    return mla._expanded(q_nope_SHN[None], q_pe_SHR[None], c_kv_LC[None], k_pe_LR[None])[0]


def _cached(mla: MLA, x_SD: Tensor, turns: Tensor) -> Tensor:
    """What the layer itself hands to its cache, overheard."""
    heard: dict[str, Tensor] = {}
    mla.tap.listeners = (heard.__setitem__,)
    try:
        mla(x_SD[None], turns)
    finally:
        mla.tap.listeners = ()
    return torch.cat((heard["c_kv"][0], heard["k_pe"][0]), dim=-1)


def _fits(config: ModelConfig, budget_bytes: int) -> int:
    return budget_bytes // cost.cache_bytes_per_token(config)


# --- known mistakes -------------------------------------------------------------------------------------------------


def _full(config: ModelConfig) -> int:
    return config.n_heads * (config.qk_head_dim + config.v_head_dim)


def _attend(
    mla: MLA,
    q_nope_SHN: Tensor,
    q_pe_SHR: Tensor,
    c_kv_LC: Tensor,
    k_pe_LR: Tensor,
    *,
    scale: float | None = None,
    position: bool = True,
) -> Tensor:
    w_uk_HNC, w_uv_HCP = mla.prepare()
    scores_SHL = torch.einsum("shn,hnc,lc->shl", q_nope_SHN, w_uk_HNC, c_kv_LC)
    if position:
        scores_SHL = scores_SHL + torch.einsum("shr,lr->shl", q_pe_SHR, k_pe_LR)
    probs_SHL = (scores_SHL * (mla.softmax_scale if scale is None else scale)).softmax(-1)
    return torch.einsum("shl,lc,hcp->shp", probs_SHL, c_kv_LC, w_uv_HCP)


def _no_position(mla: MLA, *tensors: Tensor) -> Tensor:
    return _attend(mla, *tensors, position=False)


def _unscaled(mla: MLA, *tensors: Tensor) -> Tensor:
    return _attend(mla, *tensors, scale=1.0)


def _content_width(mla: MLA, *tensors: Tensor) -> Tensor:
    return _attend(mla, *tensors, scale=mla.N**-0.5)


def _without_mscale(mla: MLA, *tensors: Tensor) -> Tensor:
    return _attend(mla, *tensors, scale=(mla.N + mla.R) ** -0.5)


def _value_as_key(mla: MLA, q_nope_SHN: Tensor, c_kv_LC: Tensor) -> Tensor:
    """wkv_b cut by rows, all keys before all values, instead of head by head."""
    w_uk_HNC = mla.wkv_b.weight[: mla.H * mla.N].view(mla.H, mla.N, mla.C)
    return torch.einsum("shn,hnc,lc->shl", q_nope_SHN, w_uk_HNC, c_kv_LC)


def _scaled_scores(mla: MLA, q_nope_SHN: Tensor, c_kv_LC: Tensor) -> Tensor:
    return _content_scores(mla, q_nope_SHN, c_kv_LC) * mla.softmax_scale


def given_rope_on_latent(mla: MLA, x_SD: Tensor, turns: Tensor) -> Tensor:
    c_kv, k_pe = mla.wkv_a(x_SD).split((mla.C, mla.R), dim=-1)
    return torch.cat((rotate(mla.kv_norm(c_kv), turns), k_pe), dim=-1)


def _no_rope(mla: MLA, x_SD: Tensor, turns: Tensor) -> Tensor:
    c_kv, k_pe = mla.wkv_a(x_SD).split((mla.C, mla.R), dim=-1)
    return torch.cat((mla.kv_norm(c_kv), k_pe), dim=-1)


def _both_rotated(mla: MLA, x_SD: Tensor, turns: Tensor) -> Tensor:
    c_kv, k_pe = mla.wkv_a(x_SD).split((mla.C, mla.R), dim=-1)
    return torch.cat((rotate(mla.kv_norm(c_kv), turns), rotate(k_pe, turns)), dim=-1)


def _unnormalised(mla: MLA, x_SD: Tensor, turns: Tensor) -> Tensor:
    c_kv, k_pe = mla.wkv_a(x_SD).split((mla.C, mla.R), dim=-1)
    return torch.cat((c_kv, rotate(k_pe, turns)), dim=-1)


def given_full_cache(config: ModelConfig, budget_bytes: int) -> int:
    head_width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    values_per_token = config.n_layers * config.n_heads * head_width
    return budget_bytes // (2 * values_per_token)


EXERCISES = (
    Exercise(
        id="mla-1",
        chapter=CHAPTER,
        specification=_ratio,
        cases=configs,
        wrong={
            "no_rope_key": lambda config: _full(config) / config.kv_lora_rank,
            "rope_per_head": lambda config: (
                _full(config) / (config.kv_lora_rank + config.n_heads * config.qk_rope_head_dim)
            ),
            "keys_only": lambda config: config.n_heads * config.qk_head_dim / config.latent_dim,
            "inverted": lambda config: config.latent_dim / _full(config),
        },
        solution=solutions.mla_1,
    ),
    Exercise(
        id="mla-2",
        chapter=CHAPTER,
        specification=_content_scores,
        cases=_latents,
        wrong={"cut_by_rows": _value_as_key, "scaled": _scaled_scores},
        solution=solutions.mla_2,
        tolerance=1e-3,
    ),
    Exercise(
        id="mla-3",
        chapter=CHAPTER,
        specification=_expanded,
        cases=_attention,
        wrong={
            "no_position": _no_position,
            "unscaled": _unscaled,
            "content_width": _content_width,
            "no_mscale": _without_mscale,
        },
        solution=solutions.mla_3,
        tolerance=1e-3,
    ),
    Exercise(
        id="bug-rope-on-latent",
        chapter=CHAPTER,
        specification=_cached,
        cases=_tokens,
        wrong={
            "as_given": given_rope_on_latent,
            "no_rope": _no_rope,
            "both_rotated": _both_rotated,
            "unnormalised": _unnormalised,
        },
        solution=solutions.bug_rope_on_latent,
        given=given_rope_on_latent,
    ),
    Exercise(
        id="bug-full-cache",
        chapter=CHAPTER,
        specification=_fits,
        cases=_budgets,
        wrong={
            "as_given": given_full_cache,
            "no_rope_key": lambda config, budget: budget // (2 * config.n_layers * config.kv_lora_rank),
            "per_head": lambda config, budget: budget // (2 * config.n_layers * config.n_heads * config.latent_dim),
        },
        solution=solutions.bug_full_cache,
        given=given_full_cache,
    ),
)
