"""From logits to tokens, for a whole batch at once, each request by its own rules.

A request draws the same tokens alone and in any batch: every operation here works row by row, and its randomness is one
uniform number per token from the request's own generator (``Sequence.noise``), turned into a token by inverting the
cumulative distribution in vocabulary order. Filters only move a probability floor, so two requests with different
filters still share every tensor operation.
"""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from dsv3.engine.outputs import TokenLogprob
from dsv3.engine.params import SamplingParams
from dsv3.engine.sequence import Sequence
from dsv3.errors import CheckpointError

CANDIDATES = 256
"""Likeliest tokens that top-p sorts at first. Nearly always enough, and far cheaper than sorting the vocabulary."""


def sample(logits_MV: Tensor, seqs: Seq[Sequence], counts: Seq[int], likeliest_M: Tensor | None = None) -> list[int]:
    """One token per row. Sequence b owns the next ``counts[b]`` rows; its row j stands after its first j drafts.

    likeliest_M: each row's largest logit, where it is known.
    """
    greedy = True
    for seq in seqs:
        if not seq.params.greedy:
            greedy = False
    if greedy:
        return (logits_MV.argmax(-1) if likeliest_M is None else likeliest_M).tolist()
    owners = [(seq, j) for seq, count in zip(seqs, counts) for j in range(count)]
    logits_MV = _penalise(logits_MV, owners)
    random_rows = [row for row, (seq, _) in enumerate(owners) if seq.params.temperature > 0]
    tokens: list[int] = logits_MV.argmax(-1).tolist() if len(random_rows) < len(owners) else [0] * len(owners)
    if random_rows:
        some_MV = logits_MV if len(random_rows) == len(owners) else logits_MV[random_rows]
        drawn = _draw(some_MV, [owners[row] for row in random_rows])
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
    penalty = torch.tensor(penalties, dtype=torch.float64, device=device)
    seen_logits = logits_MV[at].double()
    penalised = torch.where(seen_logits > 0, seen_logits / penalty, seen_logits * penalty)
    # An infinite logit would make the softmax NaN; 1e30 is decisive, and finite at every temperature.
    return logits_MV.index_put(at, penalised.clamp(-1e30, 1e30).to(logits_MV.dtype))


def _draw(logits_MV: Tensor, owners: list[tuple[Sequence, int]]) -> list[int]:
    """Temperature, top-k, top-p and min-p, then the token at each row's uniform number."""
    params = [seq.params for seq, _ in owners]
    noise_M1 = torch.tensor(
        [[seq.noise(len(seq.token_ids) + j)] for seq, j in owners], dtype=torch.float64, device=logits_MV.device
    )
    # Colder than 1e-6 is greedy in every digit, and would overflow.
    probs_MV = torch.softmax(logits_MV / _column(logits_MV, [max(p.temperature, 1e-6) for p in params]), -1)
    floor_M1 = _floor(probs_MV, params)
    if floor_M1 is not None:
        probs_MV = torch.where(probs_MV >= floor_M1, probs_MV, 0.0)
    # FP64: a sum over the vocabulary in FP32 rounds the tail away, and 1 - 2^-53 would round up to 1.
    cdf_MV = probs_MV.cumsum(-1, dtype=torch.float64)
    tokens_M1 = torch.searchsorted(cdf_MV, noise_M1 * cdf_MV[:, -1:], right=True)
    tokens: list[int] = tokens_M1.squeeze(1).tolist()
    if max(tokens) >= logits_MV.size(1):  # nothing compares with NaN
        raise CheckpointError(
            "the model's logits are not numbers (NaN or infinite): its weights are damaged; download them again"
        )
    return tokens


def _column(like: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _floor(probs_MV: Tensor, params: list[SamplingParams]) -> Tensor | None:
    """The lowest probability that each row's filters leave in; None where no row filters."""
    floor_M1 = None
    if any(p.top_k or p.top_p < 1 for p in params):
        floor_M1 = _top_k_top_p_floor(probs_MV, params)
    if any(p.min_p for p in params):
        min_M1 = probs_MV.amax(-1, keepdim=True) * _column(probs_MV, [p.min_p for p in params])
        floor_M1 = min_M1 if floor_M1 is None else torch.maximum(floor_M1, min_M1)
    return floor_M1


def _top_k_top_p_floor(probs_MV: Tensor, params: list[SamplingParams]) -> Tensor:
    vocab_size = probs_MV.size(-1)
    top_k_M1 = torch.tensor([[min(p.top_k, vocab_size)] for p in params], device=probs_MV.device)
    top_p_M1 = torch.tensor([[p.top_p] for p in params], dtype=torch.float64, device=probs_MV.device)
    width = max(p.top_k for p in params)
    if any(p.top_p < 1 and not p.top_k for p in params):
        width = max(width, CANDIDATES)
    while True:
        width = min(width, vocab_size)
        best_MW = probs_MV.topk(width, dim=-1).values
        sums_MW = best_MW.cumsum(-1, dtype=torch.float64)
        # The nucleus is taken of what top-k leaves; without top-k that is everything, and its sum is 1.
        mass_M1 = torch.where(top_k_M1 > 0, sums_MW.gather(1, (top_k_M1 - 1).clamp(min=0)), 1.0)
        last_M1 = (sums_MW < top_p_M1 * mass_M1).sum(-1, keepdim=True)  # the token that completes the nucleus
        if width == vocab_size or not ((last_M1 == width) & (top_p_M1 < 1)).any():
            break
        width *= 8
    floor_M1 = best_MW.gather(1, last_M1.clamp(max=width - 1))
    return floor_M1.masked_fill((top_k_M1 == 0) & (top_p_M1 == 1), 0.0)


def log_probabilities(logits_MV: Tensor, tokens: list[int], n_top: int) -> list[TokenLogprob]:
    """For each row the token's natural-log probability and the ``n_top`` likeliest tokens, from unchanged logits."""
    logprobs_MV = torch.log_softmax(logits_MV, -1)
    chosen = logprobs_MV.gather(1, torch.tensor(tokens, device=logits_MV.device).unsqueeze(1)).squeeze(1).tolist()
    if n_top == 0:
        return [TokenLogprob(token, value) for token, value in zip(tokens, chosen)]
    values, ids = logprobs_MV.topk(n_top, dim=-1)
    return [
        TokenLogprob(token, value, tuple(zip(top_ids, top_values)))
        for token, value, top_ids, top_values in zip(tokens, chosen, ids.tolist(), values.tolist())
    ]
