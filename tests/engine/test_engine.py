"""The step loop against the model itself: every way of cutting the work must give what one plain pass gives."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsv3.engine import LLM, SamplingParams
from dsv3.model.transformer import Transformer

MakeLLM = Callable[..., LLM]
PROMPTS = [[1, 2, 3], list(range(60)), [40], [7, 7, 7, 7, 9], list(range(90, 10, -1)), [95, 0]]
GREEDY = SamplingParams(max_tokens=24)
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8, "seed": 5},
    {"temperature": 1.2, "seed": 6, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1},
]


def greedy_by_full_passes(model: Transformer, prompt: list[int], n: int) -> list[int]:
    """No cache, no batch: the whole sequence again for every token."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_greedy_equals_full_passes_of_the_model(make_llm: MakeLLM, model: Transformer) -> None:
    outputs = make_llm().generate(PROMPTS, GREEDY)
    assert [out.token_ids for out in outputs] == [greedy_by_full_passes(model, p, 24) for p in PROMPTS]
    assert len({tuple(out.token_ids) for out in outputs}) == len(PROMPTS), (
        "the model must not say the same to everything"
    )
    assert all(len(set(out.token_ids)) > 3 for out in outputs), "nor repeat itself"


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_alone_equals_in_a_batch(make_llm: MakeLLM, kind: dict[str, Any]) -> None:
    """Batch mates that come and go (four at once of six, of different lengths) and use other parameters."""
    params = SamplingParams(max_tokens=30, **kind)
    alone = [make_llm().generate([prompt], params)[0].token_ids for prompt in PROMPTS]
    together = make_llm().generate(PROMPTS, params)
    assert [out.token_ids for out in together] == alone
    mixed = [params if i % 2 else SamplingParams(max_tokens=17, temperature=1.0) for i in range(len(PROMPTS))]
    outputs = make_llm(max_batch_size=3).generate(PROMPTS, mixed)
    assert [out.token_ids for out in outputs][1::2] == alone[1::2]


@pytest.mark.parametrize("budget", [4, 7, 16, 33])
@pytest.mark.parametrize("page_size", [1, 8, 64])
def test_chunked_prefill_equals_whole(make_llm: MakeLLM, budget: int, page_size: int) -> None:
    params = SamplingParams(max_tokens=6, logprobs=0, prompt_logprobs=True)
    whole = make_llm(max_batch_size=4).generate(PROMPTS, params)
    chunked = make_llm(max_batch_size=4, max_step_tokens=budget, page_size=page_size).generate(PROMPTS, params)
    for a, b in zip(whole, chunked):
        assert a.token_ids == b.token_ids
        assert [x.logprob for x in a.logprobs or ()] == pytest.approx([x.logprob for x in b.logprobs or ()], abs=1e-4)
        ours, theirs = ([x.logprob for x in (out.prompt_logprobs or ())[1:] if x] for out in (a, b))
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("budget", [2048, 6])
def test_preemption_changes_nothing(make_llm: MakeLLM, budget: int, kind: dict[str, Any]) -> None:
    """Too few pages for all; with a small budget requests lose theirs in the middle of a prompt, too."""
    params = SamplingParams(max_tokens=40, prompt_logprobs=True, logprobs=0, **kind)
    calm = make_llm().generate(PROMPTS, params)
    llm = make_llm(n_pages=16, max_step_tokens=budget)
    crowded = llm.generate(PROMPTS, params)
    assert llm.stats.preemptions > 0
    assert sum(out.metrics.preemptions for out in crowded) == llm.stats.preemptions
    for a, b in zip(calm, crowded):
        assert a.token_ids == b.token_ids
        for ours, theirs in ((a.prompt_logprobs, b.prompt_logprobs), (a.logprobs, b.logprobs)):
            assert ours is not None
            assert theirs is not None
            assert [x and x.token_id for x in ours] == [x and x.token_id for x in theirs]
            assert [x.logprob for x in ours if x] == pytest.approx([x.logprob for x in theirs if x], abs=1e-4)
    assert llm.engine.scheduler.allocator.n_free == 16


def test_log_probabilities_equal_a_full_forward(make_llm: MakeLLM, model: Transformer) -> None:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=1, logprobs=4, prompt_logprobs=True)
    for out in make_llm(max_step_tokens=16).generate(PROMPTS, params):
        tokens = out.prompt_token_ids + out.token_ids
        with torch.inference_mode():
            expected_SV = model(torch.tensor([tokens]))[0].log_softmax(-1)
        entries = [*(out.prompt_logprobs or ()), *(out.logprobs or ())]
        assert len(entries) == len(tokens)
        assert entries[0] is None
        for position, entry in enumerate(entries[1:], start=1):
            assert entry is not None
            row_V = expected_SV[position - 1]
            assert entry.token_id == tokens[position]
            assert entry.logprob == pytest.approx(row_V[tokens[position]].item(), abs=1e-4)
            assert [v for _, v in entry.top] == pytest.approx(row_V.topk(4).values.tolist(), abs=1e-4)


def test_an_error_in_a_step_leaves_the_engine_usable(make_llm: MakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the model runs, with another request of the same engine half-way: it ends as if nothing had been."""
    expected = make_llm().generate([[1, 2, 3]], GREEDY)[0].token_ids
    llm = make_llm()
    other = llm.stream([1, 2, 3], GREEDY)
    got = next(other).token_ids
    run, calls = llm.engine.runner.run, 0

    def interrupted(batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return run(batch)

    monkeypatch.setattr(llm.engine.runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY)
    assert list(llm.engine.scheduler.waiting)
    for event in other:
        got = got + event.token_ids
    assert got == expected
    assert llm.engine.scheduler.allocator.n_free == llm.engine.scheduler.allocator.n_pages
    assert [out.token_ids for out in llm.generate([[1, 2, 3]], GREEDY)] == [expected]


def test_totals_count_every_token_once(make_llm: MakeLLM) -> None:
    llm = make_llm(max_step_tokens=16)
    llm.generate(PROMPTS, SamplingParams(max_tokens=9))
    assert llm.stats.prefill_tokens == sum(map(len, PROMPTS))
    assert llm.stats.decode_tokens == 8 * len(PROMPTS)
    assert llm.stats.prefill_tokens_per_second > 0
    assert llm.stats.decode_tokens_per_second > 0
    assert llm.stats.acceptance == 0


@pytest.mark.gpu
def test_on_a_gpu(model: Transformer, make_llm: MakeLLM) -> None:
    """Same kernels' contract, other rounding: the first tokens agree, and speculation agrees with plain decoding."""
    expected = make_llm().generate(PROMPTS, SamplingParams(max_tokens=8))
    gpu = copy.deepcopy(model).to("cuda")
    plain = LLM.from_model(gpu, page_size=8).generate(PROMPTS, SamplingParams(max_tokens=8, logprobs=2))
    drafted = LLM.from_model(gpu, page_size=8, speculative=2).generate(PROMPTS, SamplingParams(max_tokens=8))
    assert [out.token_ids for out in plain] == [out.token_ids for out in expected]
    assert [out.token_ids for out in drafted] == [out.token_ids for out in plain]
    params = SamplingParams(max_tokens=8, temperature=0.8, top_p=0.9, seed=1)
    sampled = LLM.from_model(gpu, page_size=8).generate(PROMPTS, params)
    assert [out.token_ids for out in sampled] == [out.token_ids for out in make_llm().generate(PROMPTS, params)]
