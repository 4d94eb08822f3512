"""Chapter 04."""

import torch
from torch import Tensor

from dsv3.model.mtp import MTP
from dsv3.model.transformer import Transformer


def mtp_1(tokens_BS: Tensor, depth: int, n_mtp: int) -> Tensor:
    """What depth 0 (the main model) to n_mtp predicts at each position. tokens_BS is (B, S + 1 + n_mtp) -> (B, S)."""
    S = tokens_BS.shape[1] - 1 - n_mtp
    return tokens_BS[:, depth + 1 : depth + 1 + S]


def mtp_2(mtp: MTP, h_TD: Tensor, next_embedding_TD: Tensor) -> Tensor:
    """What the MTP block starts from -> (T, D). The module has enorm, hnorm and eh_proj (2D -> D)."""
    return mtp.eh_proj(torch.cat((mtp.enorm(next_embedding_TD), mtp.hnorm(h_TD)), dim=-1))


def mtp_3(sampled: list[int], drafts: list[int]) -> list[int]:
    """The tokens that one step of speculative decoding yields.

    sampled[j] is what the model itself chooses after the first j drafts: len(sampled) == len(drafts) + 1.
    """
    new: list[int] = []
    for j, token in enumerate(sampled):
        new.append(token)
        if j == len(drafts) or drafts[j] != token:
            break
    return new


def bug_mtp_shift(model: Transformer, tokens_BS: Tensor) -> Tensor:
    h_BSD = model.hidden(tokens_BS[:, :-1])
    return model.predict_next(0, h_BSD, tokens_BS[:, 1:])
