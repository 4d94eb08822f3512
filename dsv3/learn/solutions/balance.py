"""Chapter 03."""

import torch
from torch import Tensor, nn


def balance_1(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    """The bias after one step without an auxiliary loss -> (E,), a new tensor. load_E: tokens per expert, int64."""
    load_E = load_E.double()
    return bias_E + speed * torch.sign(load_E.mean() - load_E)


def balance_2(scores_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    """Sequence-wise balance loss (V3 Eq. 17-20) without alpha -> a scalar. T = n_sequences equal runs of tokens."""
    E = scores_TE.shape[1]
    top_TK = scores_TE.topk(k, dim=-1).indices
    chosen_BSE = torch.zeros_like(scores_TE).scatter_(1, top_TK, 1.0).view(n_sequences, -1, E)
    f_BE = chosen_BSE.mean(1) * (E / k)
    p_BE = (scores_TE / scores_TE.sum(-1, keepdim=True)).view(n_sequences, -1, E).mean(1)
    return (f_BE * p_BE).sum(-1).mean()


def balance_3(load_E: Tensor) -> float:
    """MaxVio of one layer: by how much of the mean load the busiest expert exceeds it. load_E: int64."""
    mean = float(load_E.double().mean())
    return float(load_E.max()) / mean - 1.0 if mean else 0.0


def bug_eval_update(bias_E: Tensor, load_E: Tensor, speed: float, training: bool) -> Tensor:
    if not training:
        return bias_E
    load_E = load_E.double()
    return bias_E + speed * torch.sign(load_E.mean() - load_E)


def bug_bias_parameter(n_experts: int, dim: int) -> nn.Module:
    gate = nn.Module()
    gate.weight = nn.Parameter(torch.zeros(n_experts, dim))
    gate.register_buffer("bias", torch.zeros(n_experts))
    return gate


def bug_local_counts(bias_RE: Tensor, load_RE: Tensor, speed: float) -> Tensor:
    load_E = load_RE.sum(0).double()
    return bias_RE + speed * torch.sign(load_E.mean() - load_E)


def bug_aux_loss(logits_TE: Tensor, n_sequences: int, k: int) -> Tensor:
    T, E = logits_TE.shape
    scores_TE = logits_TE.softmax(-1)
    top_TK = scores_TE.topk(k, dim=-1).indices
    chosen_BSE = torch.zeros_like(scores_TE).scatter_(1, top_TK, 1.0).view(n_sequences, -1, E)
    f_BE = chosen_BSE.mean(1) * (E / k)
    p_BE = scores_TE.view(n_sequences, T // n_sequences, E).mean(1)
    return (f_BE * p_BE).sum(-1).mean()
