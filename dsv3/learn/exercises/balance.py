"""Chapter 03: the bias, the balance loss, MaxVio."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dsv3.expert_load import max_violation
from dsv3.learn.exercises.base import Exercise, engine_gate, integer, normal
from dsv3.learn.solutions import balance as solutions
from dsv3.train.balance import sequence_balance_loss, update_bias

CHAPTER = "03_load_balancing"


# --- inputs ---------------------------------------------------------------------------------------------------------


def _loads(g: torch.Generator) -> Iterator[Tensor]:
    yield torch.tensor([4, 0, 2, 2])  # two experts exactly at the mean
    yield torch.randint(0, 20, (5,), generator=g)
    yield torch.full((3,), 7)
    yield torch.randint(0, 1000, (32,), generator=g)


def _updates(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for load_E in _loads(g):
        yield normal(g, len(load_E)) * 0.01, load_E, 0.001 * integer(g, 1, 10)


def _updates_by_mode(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for i, case in enumerate(_updates(g)):
        yield *case, i % 2 == 1


def _loads_only(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for load_E in _loads(g):
        yield (load_E,)
    yield (torch.zeros(4, dtype=torch.int64),)  # nothing routed yet


def _ranks(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for R, E in ((2, 3), (4, 8), (3, 16), (1, 4)):
        bias_E = normal(g, E) * 0.01
        yield bias_E.expand(R, E).clone(), torch.randint(0, 50, (R, E), generator=g), 0.001


def _scores(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield normal(g, 4, 3).sigmoid(), 2, 1
    yield (normal(g, 24, 8) + normal(g, 8)).sigmoid(), 3, 2
    yield (normal(g, 24, 8) + normal(g, 8)).sigmoid(), 1, 4
    yield (normal(g, 64, 16) + normal(g, 16)).sigmoid(), 4, 4


def _logits(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for scores_TE, n_sequences, k in _scores(g):
        yield scores_TE.logit() * 2, n_sequences, max(k, 2)


def _shapes(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield 4, 3
    yield integer(g, 5, 16), integer(g, 5, 16)


# --- specifications -------------------------------------------------------------------------------------------------


def _updated(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    bias_E = bias_E.clone()
    update_bias(bias_E, load_E, speed)
    return bias_E


def _updated_in_training(bias_E: Tensor, load_E: Tensor, speed: float, training: bool) -> Tensor:
    return _updated(bias_E, load_E, speed) if training else bias_E


def _updated_on_all(bias_RE: Tensor, load_RE: Tensor, speed: float) -> Tensor:
    return torch.stack([_updated(bias_E, load_RE.sum(0), speed) for bias_E in bias_RE])


def _softmax_loss(logits_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return sequence_balance_loss(logits_TE.softmax(-1), n_sequences, k)


def _gate_state(n_experts: int, dim: int) -> nn.Module:
    return engine_gate(n_experts, torch.zeros(n_experts)).requires_grad_(True)


def _roles(answer: Any, arguments: tuple[Any, ...]) -> list[str]:
    """What an optimiser would move, and what a checkpoint would hold beside it."""
    moved = sorted(name for name, _ in answer.named_parameters())
    kept = sorted(set(answer.state_dict()) - set(moved))
    return [f"parameters: {', '.join(moved)}", f"buffers in the checkpoint: {', '.join(kept)}"]


# --- known mistakes -------------------------------------------------------------------------------------------------


def _reversed(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    return bias_E - speed * torch.sign(load_E.double().mean() - load_E)


def _proportional(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    return bias_E + speed * (load_E.double().mean() - load_E)


def _relative(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    mean = load_E.double().mean()
    return bias_E + speed * (mean - load_E) / mean


def _never_still(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    return bias_E + torch.where(load_E > load_E.double().mean(), -speed, speed)


def _loss(scores_TE: Tensor, n_sequences: int, k: int, *, divide_by_k: bool = True, normalise: bool = True) -> Tensor:
    E = scores_TE.shape[1]
    chosen_TE = torch.zeros_like(scores_TE).scatter_(1, scores_TE.topk(k, dim=-1).indices, 1.0)
    f_BE = chosen_TE.view(n_sequences, -1, E).mean(1) * (E / k if divide_by_k else E)
    share_TE = scores_TE / scores_TE.sum(-1, keepdim=True) if normalise else scores_TE
    return (f_BE * share_TE.view(n_sequences, -1, E).mean(1)).sum(-1).mean()


def _batch_wise(scores_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return _loss(scores_TE, 1, k)


def _factor_k(scores_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return _loss(scores_TE, n_sequences, k, divide_by_k=False)


def _raw_scores(scores_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return _loss(scores_TE, n_sequences, k, normalise=False)


def _summed(scores_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return _loss(scores_TE, n_sequences, k) * n_sequences


def _over_maximum(load_E: Tensor) -> float:
    return float((load_E.max() - load_E.double().mean()) / load_E.max().clamp(min=1))


def _ratio_only(load_E: Tensor) -> float:
    return max_violation(load_E) + 1.0


def _spread(load_E: Tensor) -> float:
    return float((load_E.max() - load_E.min()) / load_E.double().mean().clamp(min=1))


def given_eval_update(bias_E: Tensor, load_E: Tensor, speed: float, training: bool) -> Tensor:
    load_E = load_E.double()
    return bias_E + speed * torch.sign(load_E.mean() - load_E)


def _only_in_evaluation(bias_E: Tensor, load_E: Tensor, speed: float, training: bool) -> Tensor:
    return bias_E if training else given_eval_update(bias_E, load_E, speed, training)


def given_bias_parameter(n_experts: int, dim: int) -> nn.Module:
    gate = nn.Module()
    gate.weight = nn.Parameter(torch.zeros(n_experts, dim))
    gate.bias = nn.Parameter(torch.zeros(n_experts))
    return gate


def _not_saved(n_experts: int, dim: int) -> nn.Module:
    gate = nn.Module()
    gate.weight = nn.Parameter(torch.zeros(n_experts, dim))
    gate.register_buffer("bias", torch.zeros(n_experts), persistent=False)
    return gate


def given_local_counts(bias_RE: Tensor, load_RE: Tensor, speed: float) -> Tensor:
    load_RE = load_RE.double()
    return bias_RE + speed * torch.sign(load_RE.mean(-1, keepdim=True) - load_RE)


def _mean_of_signs(bias_RE: Tensor, load_RE: Tensor, speed: float) -> Tensor:
    return given_local_counts(bias_RE, load_RE, speed).mean(0).expand_as(bias_RE)


def _added_signs(bias_RE: Tensor, load_RE: Tensor, speed: float) -> Tensor:
    return bias_RE + (given_local_counts(bias_RE, load_RE, speed) - bias_RE).sum(0)


def given_aux_loss(logits_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    T, E = logits_TE.shape
    scores_TE = logits_TE.softmax(-1)
    top_TK = scores_TE.topk(k, dim=-1).indices
    chosen_BSE = torch.zeros_like(scores_TE).scatter_(1, top_TK, 1.0).view(n_sequences, -1, E)
    f_BE = chosen_BSE.mean(1) * E
    p_BE = scores_TE.softmax(-1).view(n_sequences, T // n_sequences, E).mean(1)
    return (f_BE * p_BE).sum(-1).mean()


def _double_softmax(logits_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return given_aux_loss(logits_TE, n_sequences, k) / k


def _softmax_factor_k(logits_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    return _softmax_loss(logits_TE, n_sequences, k) * k


EXERCISES = (
    Exercise(
        id="balance-1",
        chapter=CHAPTER,
        specification=_updated,
        cases=_updates,
        wrong={
            "reversed": _reversed,
            "proportional": _proportional,
            "relative": _relative,
            "never_still": _never_still,
        },
        solution=solutions.balance_1,
    ),
    Exercise(
        id="balance-2",
        chapter=CHAPTER,
        specification=sequence_balance_loss,
        cases=_scores,
        wrong={"batch_wise": _batch_wise, "factor_k": _factor_k, "raw_scores": _raw_scores, "summed": _summed},
        solution=solutions.balance_2,
    ),
    Exercise(
        id="balance-3",
        chapter=CHAPTER,
        specification=max_violation,
        cases=_loads_only,
        wrong={"over_maximum": _over_maximum, "ratio_only": _ratio_only, "spread": _spread},
        solution=solutions.balance_3,
    ),
    Exercise(
        id="bug-eval-update",
        chapter=CHAPTER,
        specification=_updated_in_training,
        cases=_updates_by_mode,
        wrong={"as_given": given_eval_update, "inverted": _only_in_evaluation},
        solution=solutions.bug_eval_update,
        given=given_eval_update,
    ),
    Exercise(
        id="bug-bias-parameter",
        chapter=CHAPTER,
        specification=_gate_state,
        cases=_shapes,
        wrong={"as_given": given_bias_parameter, "not_saved": _not_saved},
        solution=solutions.bug_bias_parameter,
        given=given_bias_parameter,
        canonical=_roles,
        layout="roles",
    ),
    Exercise(
        id="bug-local-counts",
        chapter=CHAPTER,
        specification=_updated_on_all,
        cases=_ranks,
        wrong={"as_given": given_local_counts, "mean_of_signs": _mean_of_signs, "added_signs": _added_signs},
        solution=solutions.bug_local_counts,
        given=given_local_counts,
    ),
    Exercise(
        id="bug-aux-loss",
        chapter=CHAPTER,
        specification=_softmax_loss,
        cases=_logits,
        wrong={"as_given": given_aux_loss, "double_softmax": _double_softmax, "factor_k": _softmax_factor_k},
        solution=solutions.bug_aux_loss,
        given=given_aux_loss,
    ),
)
