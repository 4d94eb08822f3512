"""From logits to tokens, for a whole batch at once, each request by its own rules.

A request draws the same tokens alone and in any batch: every operation here works row by row, and its randomness is one
uniform number per token from the request's own generator (``Sequence.noise``), turned into a token by inverting the
cumulative distribution in vocabulary order. Filters only move a probability floor, so two requests with different
filters still share every tensor operation.
"""

from collections.abc import Sequence as Seq
from typing import Any

import torch
from torch import Tensor

from dsv3.engine.outputs import TokenLogprob
from dsv3.engine.sequence import Sequence

CANDIDATES = 512
"""Likeliest tokens that top-p looks at before it sorts a whole vocabulary: nearly always enough, and much cheaper."""


def sample(logits_MV: Tensor, seqs: Seq[Sequence], counts: Seq[int]) -> list[int]:
    """One token per row. Sequence b owns the next ``counts[b]`` rows; its row j stands after its first j drafts."""
    greedy = True
    for seq in seqs:
        if not seq.params.greedy:
            greedy = False
    if greedy:
        return logits_MV.argmax(-1).tolist()
    owners = [(seq, j) for seq, count in zip(seqs, counts) for j in range(count)]
    logits_MV = _penalise(logits_MV, owners)
    random_rows = [row for row, (seq, _) in enumerate(owners) if seq.params.temperature > 0]
    tokens: list[int] = logits_MV.argmax(-1).tolist() if len(random_rows) < len(owners) else [0] * len(owners)
    if random_rows:
        drawn = _draw(logits_MV[random_rows], [owners[row] for row in random_rows])
        for row, token in zip(random_rows, drawn):
            tokens[row] = token
    return tokens


def _penalise(logits_MV: Tensor, owners: list[tuple[Sequence, int]]) -> Tensor:
    """Repetition penalty (arXiv 1909.05858 §4.1, with the usual sign rule) on rows that ask for it."""
    rows: list[int] = []
    tokens: list[int] = []
    penalties: list[float] = []
    for row, (seq, n_drafts) in enumerate(owners):
        if seq.params.repetition_penalty != 1:
            seen = {*seq.token_ids, *seq.drafts[:n_drafts]}
            rows += [row] * len(seen)
            tokens += seen
            penalties += [seq.params.repetition_penalty] * len(seen)
    if not rows:
        return logits_MV
    device = logits_MV.device
    at = (torch.tensor(rows, device=device), torch.tensor(tokens, device=device))
    penalty = torch.tensor(penalties, device=device)
    seen_logits = logits_MV[at]
    return logits_MV.index_put(at, torch.where(seen_logits > 0, seen_logits / penalty, seen_logits * penalty))


def _draw(logits_MV: Tensor, owners: list[tuple[Sequence, int]]) -> list[int]:
    """Temperature, top-k, top-p and min-p, then the token at each row's uniform number."""
    params = [seq.params for seq, _ in owners]
    noise_M1 = torch.tensor(
        [[seq.noise(len(seq.token_ids) + j)] for seq, j in owners], dtype=torch.float64, device=logits_MV.device
    )
    probs_MV = torch.softmax(logits_MV / _column(logits_MV, [p.temperature for p in params]), -1)
    floor_M1 = _floor(probs_MV, params)
    if floor_M1 is not None:
        probs_MV = torch.where(probs_MV >= floor_M1, probs_MV, 0.0)
    # FP64: a sum over the vocabulary in FP32 rounds the tail away, and 1 - 2^-53 would round up to 1.
    cdf_MV = probs_MV.cumsum(-1, dtype=torch.float64)
    tokens_M1 = torch.searchsorted(cdf_MV, noise_M1 * cdf_MV[:, -1:], right=True)
    return tokens_M1.squeeze(1).tolist()


def _column(like: Tensor, values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _floor(probs_MV: Tensor, params: list[Any]) -> Tensor | None:
    """The lowest probability that each row's filters leave in; None where no row filters."""
    floor_M1 = None
    if any(p.top_k or p.top_p < 1 for p in params):
        floor_M1 = _top_k_top_p_floor(probs_MV, params)
    if any(p.min_p for p in params):
        min_M1 = probs_MV.amax(-1, keepdim=True) * _column(probs_MV, [p.min_p for p in params])
        floor_M1 = min_M1 if floor_M1 is None else torch.maximum(floor_M1, min_M1)
    return floor_M1


def _top_k_top_p_floor(probs_MV: Tensor, params: list[Any]) -> Tensor:
    vocab_size = probs_MV.size(-1)
    top_k = [min(p.top_k or vocab_size, vocab_size) for p in params]
    top_p_M1 = _column(probs_MV, [p.top_p for p in params])
    nucleus = [p.top_p < 1 for p in params]
    # Rows with top-k need that many sorted candidates; rows with top-p alone usually need few.
    width = max([k for k, p in zip(top_k, params) if p.top_k] + [min(CANDIDATES, vocab_size)])
    while True:
        sorted_MW = probs_MV.topk(width, dim=-1).values
        sums_MW = sorted_MW.cumsum(-1, dtype=torch.float64)
        last_M1 = torch.tensor([[min(k, width) - 1] for k in top_k], device=probs_MV.device)
        # Top-p of what top-k left: everything where there is no top-k, and then the total is 1.
        limited_M1 = last_M1 < width - 1 if width < vocab_size else torch.ones_like(last_M1, dtype=torch.bool)
        mass_M1 = torch.where(limited_M1, sums_MW.gather(1, last_M1), 1.0)
        needed_M1 = (sums_MW < top_p_M1 * mass_M1).sum(-1, keepdim=True)  # index of the token that completes the nucleus
        if width == vocab_size or not (needed_M1 >= width)[torch.tensor(nucleus, device=probs_MV.device)].any():
            break
        width = vocab_size
    nucleus_M1 = torch.tensor(nucleus, device=probs_MV.device).unsqueeze(1)
    kept_M1 = torch.where(nucleus_M1, torch.minimum(needed_M1, last_M1), last_M1)
    floor_M1 = sorted_MW.gather(1, kept_M1)
    unlimited = torch.tensor([[not p.top_k and p.top_p == 1] for p in params], device=probs_MV.device)
    return torch.where(unlimited, 0.0, floor_M1)


def log_probabilities(logits_MV: Tensor, tokens: list[int], n_top: int) -> list[TokenLogprob]:
    """For each row the token's natural-log probability and the ``n_top`` likeliest tokens, of the model's own logits."""
    logprobs_MV = torch.log_softmax(logits_MV, -1)
    chosen = logprobs_MV.gather(1, torch.tensor(tokens, device=logits_MV.device).unsqueeze(1)).squeeze(1).tolist()
    if n_top == 0:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen)]
    values, ids = logprobs_MV.topk(n_top, dim=-1)
    return [
        TokenLogprob(token, value, tuple(zip(top_ids, top_values)))
        for token, value, top_ids, top_values in zip(tokens, chosen, ids.tolist(), values.tolist())
    ]
