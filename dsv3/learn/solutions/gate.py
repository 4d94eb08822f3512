"""Chapter 01."""

import torch
from torch import Tensor

from dsv3.layers.moe import MoE


def gate_1(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """V3's gate without groups -> weights_TK, indices_TK (int64)."""
    scores_TE = logits_TE.sigmoid()
    indices_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, indices_TK)
    return weights_TK / weights_TK.sum(-1, keepdim=True), indices_TK


def gate_2(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    """Which experts are in an open group -> bool (T, E). choice_TE: the biased scores; groups are neighbours."""
    choice_TGe = choice_TE.unflatten(-1, (n_groups, -1))
    worth_TG = choice_TGe.topk(2, dim=-1).values.sum(-1)
    open_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    open_TG.scatter_(1, worth_TG.topk(n_limited, dim=-1).indices, True)
    return open_TG.unsqueeze(-1).expand_as(choice_TGe).flatten(1)


def gate_3(logits_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The gate of V2-Lite and of the 16B configuration -> weights_TK, indices_TK (int64)."""
    weights_TK, indices_TK = logits_TE.softmax(-1).topk(k, dim=-1)
    return weights_TK, indices_TK


def bug_bias_in_weight(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_TE = logits_TE.sigmoid()
    indices_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, indices_TK)
    return weights_TK / weights_TK.sum(-1, keepdim=True), indices_TK


def bug_softmax_biased(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_TE = logits_TE.softmax(-1)
    indices_TK = (scores_TE + bias_E).topk(k, dim=-1).indices
    return scores_TE.gather(1, indices_TK), indices_TK


def bug_group_max(choice_TE: Tensor, n_groups: int, n_limited: int) -> Tensor:
    choice_TGe = choice_TE.unflatten(-1, (n_groups, -1))
    worth_TG = choice_TGe.topk(2, dim=-1).values.sum(-1)
    open_TG = torch.zeros_like(worth_TG, dtype=torch.bool)
    open_TG.scatter_(1, worth_TG.topk(n_limited, dim=-1).indices, True)
    return open_TG.unsqueeze(-1).expand_as(choice_TGe).flatten(1)


def bug_group_zero(logits_TE: Tensor, bias_E: Tensor, open_TE: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores_TE = logits_TE.sigmoid()
    choice_TE = (scores_TE + bias_E).masked_fill(~open_TE, float("-inf"))
    indices_TK = choice_TE.topk(k, dim=-1).indices
    weights_TK = scores_TE.gather(1, indices_TK)
    return weights_TK / weights_TK.sum(-1, keepdim=True), indices_TK


def bug_no_shared(moe: MoE, x_TD: Tensor) -> Tensor:
    weights_TK, indices_TK = moe.gate(x_TD)
    y_TD = moe.routed(x_TD, weights_TK, indices_TK)
    if moe.shared_experts is not None:
        y_TD = y_TD + moe.shared_experts(x_TD)
    return y_TD
