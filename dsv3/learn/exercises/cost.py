"""Chapter 09: parameters, bytes, FLOPs."""

import dataclasses
from collections.abc import Iterator
from math import ceil
from typing import Any

import torch

from dsv3 import cost
from dsv3.config import ModelConfig
from dsv3.learn.exercises.base import SMALL, Exercise, integer
from dsv3.learn.solutions import cost as solutions

CHAPTER = "09_scale_and_cost"


# --- inputs ---------------------------------------------------------------------------------------------------------


def _configs(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield (SMALL,)
    yield (ModelConfig(),)  # the shape of 16B
    layers = integer(g, 4, 12)
    yield (
        dataclasses.replace(
            SMALL,
            n_layers=layers,
            n_dense_layers=integer(g, 1, 3),
            n_routed_experts=4 * integer(g, 3, 9),
            n_activated_experts=integer(g, 3, 6),
            n_shared_experts=integer(g, 1, 3),
            moe_inter_dim=integer(g, 5, 20),
            n_heads=integer(g, 3, 9),
        ),
    )


def _shapes(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield 128, 256
    yield 576, 2048  # wkv_a of 16B ends in half a block
    yield integer(g, 1, 1000), integer(g, 1, 1000)


def _contexts(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for (config,) in _configs(g):
        yield config, integer(g, 1, 10000)


# --- specifications -------------------------------------------------------------------------------------------------


def _routed(config: ModelConfig) -> int:
    return cost.parameters_by_part(config)["routed experts"]


def _fp8_bytes(rows: int, cols: int) -> int:
    return cost._fp8_bytes(cost.Matrix("a linear layer", rows, cols, 1, 1))


def _attention(config: ModelConfig, context: int) -> float:
    """What the context adds to the cost of decoding: the rest does not depend on it."""
    one = cost.decode_flops_per_token(config, 1)
    return (cost.decode_flops_per_token(config, 2) - one) * context


def _visited(config: ModelConfig) -> int:
    return sum(m.activated for m in cost.matrices(config) if m.part in ("routed experts", "shared experts"))


# --- known mistakes -------------------------------------------------------------------------------------------------


def _every_layer(config: ModelConfig) -> int:
    return config.n_layers * config.n_routed_experts * 3 * config.dim * config.moe_inter_dim


def _dense_width(config: ModelConfig) -> int:
    return _routed(config) // config.moe_inter_dim * config.inter_dim


def _active_only(config: ModelConfig) -> int:
    return _routed(config) // config.n_routed_experts * config.n_activated_experts


def _per_pair(config: ModelConfig, width: int, context: int) -> float:
    return 2.0 * config.n_layers * config.n_heads * width * context


def _as_expanded(config: ModelConfig, context: int) -> float:
    return _per_pair(config, config.qk_head_dim + config.v_head_dim, context)


def _scores_only(config: ModelConfig, context: int) -> float:
    return _per_pair(config, config.latent_dim, context)


def _rope_in_value(config: ModelConfig, context: int) -> float:
    return _per_pair(config, 2 * config.latent_dim, context)


def given_all_active(config: ModelConfig) -> int:
    n_moe_layers = config.n_layers - config.n_dense_layers
    one_expert = 3 * config.dim * config.moe_inter_dim
    return n_moe_layers * (config.n_routed_experts + config.n_shared_experts) * one_expert


EXERCISES = (
    Exercise(
        id="cost-1",
        chapter=CHAPTER,
        specification=_routed,
        cases=_configs,
        wrong={
            "two_matrices": lambda config: _routed(config) // 3 * 2,
            "every_layer": _every_layer,
            "dense_width": _dense_width,
            "active_only": _active_only,
        },
        solution=solutions.cost_1,
    ),
    Exercise(
        id="cost-2",
        chapter=CHAPTER,
        specification=_fp8_bytes,
        cases=_shapes,
        wrong={
            "no_scales": lambda rows, cols: rows * cols,
            "whole_blocks": lambda rows, cols: rows * cols + 4 * (rows // 128) * (cols // 128),
            "tiles": lambda rows, cols: rows * cols + 4 * rows * ceil(cols / 128),
            "byte_scales": lambda rows, cols: rows * cols + ceil(rows / 128) * ceil(cols / 128),
        },
        solution=solutions.cost_2,
    ),
    Exercise(
        id="cost-3",
        chapter=CHAPTER,
        specification=_attention,
        cases=_contexts,
        wrong={
            "expanded": _as_expanded,
            "scores_only": _scores_only,
            "rope_in_value": _rope_in_value,
            "multiply_adds": lambda config, context: _attention(config, context) / 2,
        },
        solution=solutions.cost_3,
        tolerance=1e-6,
    ),
    Exercise(
        id="bug-all-active",
        chapter=CHAPTER,
        specification=_visited,
        cases=_configs,
        wrong={"as_given": given_all_active, "no_shared": _active_only},
        solution=solutions.bug_all_active,
        given=given_all_active,
    ),
)
