"""What an exercise is: a specification to agree with, inputs to agree on, and the mistakes that we know.

The specification calls the engine; the engine is the only implementation. ``cases`` yields argument tuples, small ones
first. ``wrong`` are functions with one known mistake each: whoever answers as they do is told that mistake by name.
An exercise of the kind "find the bug" has ``given``, the buggy code that the reader starts from.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv3.config import ModelConfig
from dsv3.layers.gate import Gate

Function = Callable[..., Any]
Cases = Callable[[torch.Generator], Iterator[tuple[Any, ...]]]


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """Texts are in ``dsv3.learn.texts`` under the same id.

    canonical: (answer, arguments) -> what is compared, where answers that differ may be equally right (the order of a
    token's experts). layout: the message that says what that comparison looks at. tolerance: relative, and absolute
    for what is of the order of 1.
    """

    id: str
    chapter: str
    specification: Function
    cases: Cases
    wrong: Mapping[str, Function]
    solution: Function
    given: Function | None = None
    canonical: Callable[[Any, tuple[Any, ...]], Any] | None = None
    layout: str | None = None
    tolerance: float = 1e-4


# --- inputs that several chapters share -----------------------------------------------------------------------------

SMALL = ModelConfig.from_dict(
    {
        "vocab_size": 32,
        "dim": 16,
        "inter_dim": 24,
        "moe_inter_dim": 8,
        "n_layers": 2,
        "n_dense_layers": 1,
        "n_heads": 2,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_activated_experts": 2,
        "score_func": "sigmoid",
        "q_lora_rank": 0,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 8,
        "v_head_dim": 4,
        "rope_factor": 1,
        "n_mtp_layers": 1,
    }
)
"""A model that is built and run in a millisecond."""


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def integer(g: torch.Generator, low: int, high: int) -> int:
    """From low to high, both included."""
    return int(torch.randint(low, high + 1, (), generator=g))


def fill(module: torch.nn.Module, g: torch.Generator, std: float = 0.5) -> None:
    """Random weights from ``g``; norms near 1, so that leaving one out shows."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(normal(g, *parameter.shape) * std + (1.0 if "norm" in name else 0.0))


def engine_gate(n_experts: int, bias_E: Tensor | None = None, **changes: Any) -> Gate:
    """The engine's gate with the identity for its matrix: its input is the logits."""
    config = dataclasses.replace(
        SMALL,
        dim=n_experts,
        n_routed_experts=n_experts,
        gate_bias=bias_E is not None,
        **changes,
    )
    gate = Gate(config)
    with torch.no_grad():
        torch.nn.init.eye_(gate.weight)
        if gate.bias is not None and bias_E is not None:
            gate.bias.copy_(bias_E)
    return gate.requires_grad_(False)


def by_expert(answer: Any, arguments: tuple[Any, ...]) -> Tensor:
    """(weights_TK, indices_TK) -> weights_TE, 0 where an expert is not chosen: the order of a token's experts is free.

    An expert that is chosen twice counts twice, and shows.
    """
    weights_TK, indices_TK = answer
    weights_TE = torch.zeros(arguments[0].shape, dtype=torch.float64)
    return weights_TE.scatter_add_(1, indices_TK.long(), weights_TK.detach().double())
