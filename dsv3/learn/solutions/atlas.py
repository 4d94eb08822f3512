"""Chapter 07."""

import math

import torch
from torch import Tensor


def atlas_1(indices_TK: Tensor, n_experts: int) -> Tensor:
    """Routed copies per expert -> (E,) int64, with a 0 for an expert that nobody chose."""
    return torch.bincount(indices_TK.flatten(), minlength=n_experts)


def atlas_2(counts_E: Tensor) -> float:
    """Entropy of the load as a part of its maximum: 1 where all experts are equally busy, 0 where one does all."""
    share_E = counts_E.double() / counts_E.sum()
    busy = share_E[share_E > 0]
    return float(-(busy * busy.log()).sum()) / math.log(len(counts_E))


def atlas_3(counts_E: Tensor) -> Tensor:
    """Load in multiples of the uniform load -> (E,): 1 is a fair share. A layer that routed nothing counts as even."""
    if counts_E.sum() == 0:
        return torch.ones(len(counts_E))
    return counts_E / counts_E.double().mean()


def bug_mean_score(scores_TE: Tensor, k: int) -> Tensor:
    indices_TK = scores_TE.topk(k, dim=-1).indices
    counts_E = torch.bincount(indices_TK.flatten(), minlength=scores_TE.shape[1])
    return counts_E / counts_E.double().mean()
