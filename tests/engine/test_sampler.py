from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3.engine import sampler
from dsv3.engine.params import SamplingParams
from dsv3.engine.sampler import log_probabilities, sample
from dsv3.engine.sequence import Sequence
from dsv3.errors import CheckpointError


class FreeSequence(Sequence):
    """Without slots, so that a test may put its own numbers in place of the random ones."""


def make(prompt: list[int] | None = None, **params: Any) -> FreeSequence:
    return FreeSequence(prompt or [0], SamplingParams(**params), max_seq_len=10_000)


def filtered(logits_V: Tensor, params: SamplingParams, seen: list[int]) -> Tensor:
    """The distribution that params ask for, one token after the other, in FP64 and plain Python."""
    logits = logits_V.double().tolist()
    for token in set(seen):
        penalty = params.repetition_penalty
        logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    probs = torch.tensor(logits, dtype=torch.float64).div(params.temperature).softmax(-1).tolist()
    order = sorted(range(len(probs)), key=lambda token: -probs[token])
    if params.top_k:
        order = order[: params.top_k]
    mass, total = 0.0, sum(probs[token] for token in order)
    kept = []
    for token in order:
        kept.append(token)
        mass += probs[token]
        if mass >= params.top_p * total:
            break
    kept = [token for token in kept if probs[token] >= params.min_p * probs[order[0]]]
    result = torch.zeros(len(probs), dtype=torch.float64)
    result[kept] = torch.tensor([probs[token] for token in kept], dtype=torch.float64)
    return result / result.sum()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.1, 1.0, 4.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 1000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.7]),
    candidates=st.sampled_from([1, 4, 256]),
)
def test_draws_follow_the_filtered_distribution(
    seed: int,
    scale: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    penalty: float,
    candidates: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(50, generator=generator) * scale
    params: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    params |= {"repetition_penalty": penalty, "prompt": [3, 7, 7, 11]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "CANDIDATES", candidates)
        n = 4000
        seq = make(max_tokens=n, **params)
        seq.noise = lambda position: (position - 4 + 0.5) / n  # type: ignore[method-assign]
        tokens = torch.tensor(sample(logits_V.expand(n, -1), [seq], [n]))
    found = torch.bincount(tokens, minlength=50).double() / n
    prompt = params.pop("prompt")
    expected = filtered(logits_V, SamplingParams(**params), prompt)
    # Evenly spread numbers hit each token's interval up to one number at either end.
    assert (found - expected).abs().max() <= 2 / n


def test_all_greedy_is_the_argmax_of_the_raw_logits() -> None:
    logits_MV = torch.randn(3, 20)
    seqs = [make(), make(seed=1, top_k=3)]
    assert sample(logits_MV, seqs, [1, 2]) == logits_MV.argmax(-1).tolist()


def test_a_request_draws_the_same_alone_and_among_others() -> None:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 0.7, "top_p": 0.8, "seed": 4},
        {"temperature": 1.5, "top_k": 5, "seed": 5, "repetition_penalty": 1.2, "prompt": [1, 2, 3]},
        {"temperature": 1.0, "min_p": 0.1, "seed": 6},
        {"temperature": 0.0, "repetition_penalty": 1.5, "prompt": [4, 5]},
        {"temperature": 2.0, "top_p": 0.999, "seed": 7},
    ]
    for _ in range(20):
        logits_MV = torch.randn(len(kinds), 1000)
        together = sample(logits_MV, [make(**kind) for kind in kinds], [1] * len(kinds))
        alone = [sample(logits_MV[i : i + 1], [make(**kind)], [1])[0] for i, kind in enumerate(kinds)]
        assert together == alone


def test_the_penalty_of_a_row_counts_the_drafts_before_it() -> None:
    seq = make([0], repetition_penalty=100.0)
    seq.drafts = [1, 2]
    logits_MV = torch.tensor([[9.0, 8.0, 7.0, 6.0]]).expand(3, -1)
    assert sample(logits_MV, [seq], [3]) == [1, 2, 3]


def test_one_seed_gives_one_text_and_no_seed_many() -> None:
    logits_V = torch.zeros(1000)
    draw = lambda seed: sample(logits_V.expand(5, -1), [make(temperature=1.0, seed=seed)], [5])  # noqa: E731
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_stay_inside_the_filter(number: float) -> None:
    logits_MV = torch.tensor([[-5.0, 3.0, 1.0, 2.9, -5.0]])
    seq = make(temperature=1.0, top_k=2)
    seq.noise = lambda position: number  # type: ignore[method-assign]
    assert sample(logits_MV, [seq], [1]) == [1 if number == 0 else 3]


def test_the_coldest_temperature_is_greedy() -> None:
    logits_MV = torch.randn(8, 100) * 30
    assert sample(logits_MV, [make(temperature=1e-300, seed=0)], [8]) == logits_MV.argmax(-1).tolist()


def test_log_probabilities_are_of_the_unchanged_logits() -> None:
    logits_MV = torch.randn(4, 30)
    expected_MV = logits_MV.double().log_softmax(-1)
    tokens = [3, 0, 29, 7]
    for row, entry in enumerate(log_probabilities(logits_MV, tokens, 5)):
        assert entry.token_id == tokens[row]
        assert entry.logprob == pytest.approx(expected_MV[row, tokens[row]].item(), abs=1e-5)
        values, ids = expected_MV[row].topk(5)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [v for _, v in entry.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert all(entry.top == () for entry in log_probabilities(logits_MV, tokens, 0))


@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1.0])
def test_an_extreme_penalty_stays_finite(penalty: float, temperature: float) -> None:
    seq = make([0, 1, 2], repetition_penalty=penalty, temperature=temperature, seed=1)
    (token,) = sample(torch.tensor([[0.0, 3.0, -3.0, 1.0]]), [seq], [1])
    assert token == (1 if penalty < 1 else token)
    assert 0 <= token < 4


def test_damaged_weights_are_named() -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        sample(torch.full((1, 4), float("nan")), [make(temperature=1.0, seed=1)], [1])
