"""Chapter 07: the load of the experts and the figures drawn from it."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dsv3.expert_load import count_experts, relative_entropy, relative_load, shares
from dsv3.learn.exercises.base import Exercise, normal
from dsv3.learn.solutions import atlas as solutions

CHAPTER = "07_expert_atlas"


# --- inputs ---------------------------------------------------------------------------------------------------------


def _routes(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for T, E, K in ((3, 5, 2), (1, 4, 3), (40, 16, 4), (0, 3, 2)):
        scores_TE = normal(g, T, E) + 2 * normal(g, E)
        scores_TE[:, -1] = -9.0  # the last expert is chosen by nobody
        yield scores_TE.topk(K, dim=-1).indices, E


def _counts(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield (torch.tensor([3, 1, 0, 4]),)
    yield (torch.full((5,), 6),)
    yield (torch.tensor([0, 9, 0]),)
    yield (torch.randint(0, 500, (32,), generator=g),)


def _counts_or_none(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    yield from _counts(g)
    yield (torch.zeros(4, dtype=torch.int64),)


def _scores(g: torch.Generator) -> Iterator[tuple[Any, ...]]:
    for T, E, k in ((2, 4, 2), (30, 8, 2), (50, 32, 4)):
        yield (normal(g, T, E) + normal(g, E)).sigmoid(), k


# --- specifications -------------------------------------------------------------------------------------------------


def _count(indices_TK: Tensor, n_experts: int) -> Tensor:
    return count_experts([indices_TK], n_experts)


def _chosen_load(scores_TE: Tensor, k: int) -> Tensor:
    return relative_load(_count(scores_TE.topk(k, dim=-1).indices, scores_TE.shape[1]))


# --- known mistakes -------------------------------------------------------------------------------------------------


def _first_only(indices_TK: Tensor, n_experts: int) -> Tensor:
    return _count(indices_TK[:, :1], n_experts)


def _no_idle(indices_TK: Tensor, n_experts: int) -> Tensor:
    return torch.bincount(indices_TK.flatten())


def _in_nats(counts_E: Tensor) -> float:
    return relative_entropy(counts_E) * math.log(len(counts_E))


def _in_bits(counts_E: Tensor) -> float:
    return _in_nats(counts_E) / math.log(2)


def _zero_times_log(counts_E: Tensor) -> float:
    share_E = shares(counts_E)
    return float(-(share_E * share_E.log()).sum()) / math.log(len(counts_E))


def _busy_only(counts_E: Tensor) -> float:
    """Over the logarithm of the experts that have work, not of all."""
    return _in_nats(counts_E) / math.log(max(int((counts_E > 0).sum()), 2))


def _over_busiest(counts_E: Tensor) -> Tensor:
    return counts_E / counts_E.max().clamp(min=1)


def _deviation(counts_E: Tensor) -> Tensor:
    return relative_load(counts_E) - 1


def given_mean_score(scores_TE: Tensor, k: int) -> Tensor:
    load_E = scores_TE.mean(0)
    return load_E / load_E.mean()


def _chosen_scores(scores_TE: Tensor, k: int) -> Tensor:
    weights_TK, indices_TK = scores_TE.topk(k, dim=-1)
    load_E = torch.zeros(scores_TE.shape[1]).scatter_add_(0, indices_TK.flatten(), weights_TK.flatten())
    return load_E / load_E.mean()


EXERCISES = (
    Exercise(
        id="atlas-1",
        chapter=CHAPTER,
        specification=_count,
        cases=_routes,
        wrong={"first_only": _first_only, "no_idle": _no_idle},
        solution=solutions.atlas_1,
    ),
    Exercise(
        id="atlas-2",
        chapter=CHAPTER,
        specification=relative_entropy,
        cases=_counts,
        wrong={"nats": _in_nats, "bits": _in_bits, "zero_times_log": _zero_times_log, "busy_only": _busy_only},
        solution=solutions.atlas_2,
    ),
    Exercise(
        id="atlas-3",
        chapter=CHAPTER,
        specification=relative_load,
        cases=_counts_or_none,
        wrong={"share": shares, "over_busiest": _over_busiest, "deviation": _deviation},
        solution=solutions.atlas_3,
    ),
    Exercise(
        id="bug-mean-score",
        chapter=CHAPTER,
        specification=_chosen_load,
        cases=_scores,
        wrong={"as_given": given_mean_score, "chosen_scores": _chosen_scores},
        solution=solutions.bug_mean_score,
        given=given_mean_score,
    ),
)
