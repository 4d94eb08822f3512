"""Chapter 01: the gate, groups, shared experts."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsv3.layers.moe import MoE
from dsv3.learn.exercises.base import SMALL, Exercise, by_expert, engine_gate, fill, integer, normal
from dsv3.learn.solutions import gate as solutions
from dsv3.parallel.group import Parallel

CHAPTER = "01_moe_gating"

Chosen = tuple[Tensor, Tensor]


# --- inputs ---------------------------------------------------------------------------------------------------------


def _biased(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield normal(g, 2, 4), normal(g, 4) * 0.3, 2
    yield normal(g, 1, 3), normal(g, 3) * 0.3, 3  # every expert is chosen
    yield normal(g, 5, 6), normal(g, 6) * 0.3, 1
    yield normal(g, 0, 4), normal(g, 4), 2  # no token
    yield normal(g, 64, 32) * 2, normal(g, 32) * 0.2, 4


def _softmax_biased(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for logits_TE, bias_E, k in _biased(g):
        yield logits_TE, bias_E * 0.5, k


def _unbiased(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for logits_TE, _, k in _biased(g):
        yield logits_TE, k


def _groups(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield normal(g, 3, 6).sigmoid() + normal(g, 6) * 0.2, 2, 1
    yield normal(g, 2, 4).sigmoid(), 1, 1  # one group: all open
    yield normal(g, 32, 32).sigmoid() + normal(g, 32) * 0.2, 4, 2
    yield normal(g, 16, 32).sigmoid(), 8, integer(g, 1, 7)


def _closed(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for T, E, groups, k in ((2, 4, 2, 2), (8, 16, 4, 3), (32, 32, 8, 4)):
        open_TG = torch.zeros(T, groups, dtype=torch.bool)
        open_TG[:, int(torch.randint(groups, (), generator=g))] = True
        # Overloaded experts have been pushed far down: their biased scores are below zero.
        yield normal(g, T, E), normal(g, E).abs() * -0.5 - 0.5, open_TG.repeat_interleave(E // groups, 1), k


def _layers(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for T in (1, 3, 17):
        moe = MoE(SMALL, dtype=torch.float32, parallel=Parallel()).requires_grad_(False)
        fill(moe, g)
        yield moe, normal(g, T, SMALL.dim)


# --- specifications -------------------------------------------------------------------------------------------------


def _gate(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    return engine_gate(logits_TE.shape[1], bias_E, n_activated_experts=k)(logits_TE)


def _softmax_gate(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    return engine_gate(logits_TE.shape[1], bias_E, n_activated_experts=k, score_func="softmax")(logits_TE)


def _v2_gate(logits_TE: Tensor, k: int) -> Chosen:
    return engine_gate(logits_TE.shape[1], None, n_activated_experts=k, score_func="softmax")(logits_TE)


def _open(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    n_experts = choice_TE.shape[1]
    groups = {"n_expert_groups": n_groups, "n_limited_groups": n_limited, "n_activated_experts": 1}
    gate = engine_gate(n_experts, torch.zeros(n_experts), **groups)
    return gate._close_groups(choice_TE) > float("-inf")


def _gate_in_open(logits_TE: Tensor, bias_E: Tensor, open_TE: Tensor, k: int) -> Chosen:
    """The engine's gate, token by token, with a bias that closes what is closed: minus infinity is what it does."""
    rows = [
        engine_gate(logits_TE.shape[1], bias_E.masked_fill(~open_E, float("-inf")), n_activated_experts=k)(logits_1E)
        for logits_1E, open_E in zip(logits_TE.split(1), open_TE)
    ]
    return torch.cat([w for w, _ in rows]), torch.cat([i for _, i in rows])


def _moe(moe: MoE, x_TD: Tensor) -> Tensor:
    return moe(x_TD)


# --- known mistakes -------------------------------------------------------------------------------------------------


def given_bias_in_weight(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_TE = logits_TE.sigmoid() + bias_E
    weights_TK, indices_TK = scores_TE.topk(k, dim=-1)
    return weights_TK / weights_TK.sum(-1, keepdim=True), indices_TK


def _choose(scores_TE: Tensor, choice_TE: Tensor, k: int, *, normalise: bool) -> Chosen:
    indices_TK = choice_TE.topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, indices_TK)
    return weights_TK / weights_TK.sum(-1, keepdim=True) if normalise else weights_TK, indices_TK


def _no_bias(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    scores_TE = logits_TE.sigmoid()
    return _choose(scores_TE, scores_TE, k, normalise=True)


def _not_normalised(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    scores_TE = logits_TE.sigmoid()
    return _choose(scores_TE, scores_TE + bias_E, k, normalise=False)


def _bias_on_logits(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    return _choose(logits_TE.sigmoid(), logits_TE + bias_E, k, normalise=True)


def _softmax_scores(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    scores_TE = logits_TE.softmax(-1)
    return _choose(scores_TE, scores_TE + bias_E, k, normalise=True)


def given_softmax_biased(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_TE = (logits_TE + bias_E).softmax(-1)
    weights_TK, indices_TK = scores_TE.topk(k, dim=-1)
    return weights_TK, indices_TK


def _logits_choose(logits_TE: Tensor, bias_E: Tensor, k: int) -> Chosen:
    return _choose(logits_TE.softmax(-1), logits_TE + bias_E, k, normalise=False)


def _v2_normalised(logits_TE: Tensor, k: int) -> Chosen:
    scores_TE = logits_TE.softmax(-1)
    return _choose(scores_TE, scores_TE, k, normalise=True)


def _v2_sigmoid(logits_TE: Tensor, k: int) -> Chosen:
    scores_TE = logits_TE.sigmoid()
    return _choose(scores_TE, scores_TE, k, normalise=False)


def _open_by(worth_TG: Tensor, choice_TE: Tensor, n_limited: int) -> Tensor:
    open_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    open_TG.scatter_(1, worth_TG.topk(n_limited, dim=-1).indices, True)
    return open_TG.repeat_interleave(choice_TE.shape[1] // worth_TG.shape[1], 1)


def given_group_max(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    choice_TGe = choice_TE.unflatten(-1, (n_groups, -1))
    worth_TG = choice_TGe.amax(-1)
    open_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    open_TG.scatter_(1, worth_TG.topk(n_limited, dim=-1).indices, True)
    return open_TG.unsqueeze(-1).expand_as(choice_TGe).flatten(1)


def _group_sum(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    return _open_by(choice_TE.unflatten(-1, (n_groups, -1)).sum(-1), choice_TE, n_limited)


def _interleaved_groups(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    choice_TeG = choice_TE.unflatten(-1, (-1, n_groups))
    open_TE = _open_by(choice_TeG.topk(2, dim=1).values.sum(1), choice_TE, n_limited)
    return open_TE.unflatten(-1, (n_groups, -1)).transpose(1, 2).flatten(1)


def _groups_closed(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    return ~_open(choice_TE, n_groups, n_limited)


def given_group_zero(logits_TE: Tensor, bias_E: Tensor, open_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_TE = logits_TE.sigmoid()
    choice_TE = (scores_TE + bias_E).masked_fill(~open_TE, 0.0)
    indices_TK = choice_TE.topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, indices_TK)
    return weights_TK / weights_TK.sum(-1, keepdim=True), indices_TK


def _mask_before_bias(logits_TE: Tensor, bias_E: Tensor, open_TE: Tensor, k: int) -> Chosen:
    scores_TE = logits_TE.sigmoid()
    return _choose(scores_TE, scores_TE.masked_fill(~open_TE, 0.0) + bias_E, k, normalise=True)


def given_no_shared(moe: MoE, x_TD: Tensor) -> Tensor:
    weights_TK, indices_TK = moe.gate(x_TD)
    return moe.routed(x_TD, weights_TK, indices_TK)


def _residual_inside(moe: MoE, x_TD: Tensor) -> Tensor:
    return moe(x_TD) + x_TD


def _shared_of_routed(moe: MoE, x_TD: Tensor) -> Tensor:
    assert moe.shared_experts is not None
    y_TD = given_no_shared(moe, x_TD)
    return y_TD + moe.shared_experts(y_TD)


EXERCISES = (
    Exercise(
        id="gate-1",
        chapter=CHAPTER,
        specification=_gate,
        cases=_biased,
        wrong={
            "bias_in_weight": given_bias_in_weight,
            "no_bias": _no_bias,
            "not_normalised": _not_normalised,
            "bias_on_logits": _bias_on_logits,
            "softmax": _softmax_scores,
        },
        solution=solutions.gate_1,
        canonical=by_expert,
        layout="by_expert",
    ),
    Exercise(
        id="gate-2",
        chapter=CHAPTER,
        specification=_open,
        cases=_groups,
        wrong={
            "maximum": given_group_max,
            "sum_of_all": _group_sum,
            "interleaved": _interleaved_groups,
            "inverted": _groups_closed,
        },
        solution=solutions.gate_2,
    ),
    Exercise(
        id="gate-3",
        chapter=CHAPTER,
        specification=_v2_gate,
        cases=_unbiased,
        wrong={"normalised": _v2_normalised, "sigmoid": _v2_sigmoid},
        solution=solutions.gate_3,
        canonical=by_expert,
        layout="by_expert",
    ),
    Exercise(
        id="bug-bias-in-weight",
        chapter=CHAPTER,
        specification=_gate,
        cases=_biased,
        wrong={"as_given": given_bias_in_weight, "no_bias": _no_bias, "not_normalised": _not_normalised},
        solution=solutions.bug_bias_in_weight,
        given=given_bias_in_weight,
        canonical=by_expert,
        layout="by_expert",
    ),
    Exercise(
        id="bug-softmax-biased",
        chapter=CHAPTER,
        specification=_softmax_gate,
        cases=_softmax_biased,
        wrong={"as_given": given_softmax_biased, "logits_choose": _logits_choose, "normalised": _softmax_scores},
        solution=solutions.bug_softmax_biased,
        given=given_softmax_biased,
        canonical=by_expert,
        layout="by_expert",
    ),
    Exercise(
        id="bug-group-max",
        chapter=CHAPTER,
        specification=_open,
        cases=_groups,
        wrong={"as_given": given_group_max, "sum_of_all": _group_sum},
        solution=solutions.bug_group_max,
        given=given_group_max,
    ),
    Exercise(
        id="bug-group-zero",
        chapter=CHAPTER,
        specification=_gate_in_open,
        cases=_closed,
        wrong={"as_given": given_group_zero, "before_bias": _mask_before_bias},
        solution=solutions.bug_group_zero,
        given=given_group_zero,
        canonical=by_expert,
        layout="by_expert",
    ),
    Exercise(
        id="bug-no-shared",
        chapter=CHAPTER,
        specification=_moe,
        cases=_layers,
        wrong={"as_given": given_no_shared, "residual": _residual_inside, "shared_of_routed": _shared_of_routed},
        solution=solutions.bug_no_shared,
        given=given_no_shared,
    ),
)
