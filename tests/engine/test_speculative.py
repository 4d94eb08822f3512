"""Speculation changes speed, never a token: with MTP drafts, with right ones, with wrong ones, greedy or sampled."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3.engine import LLM, RequestOutput, SamplingParams
from dsv3.engine.batch import Batch
from dsv3.engine.speculative import verify
from dsv3.errors import ConfigError
from dsv3.model.transformer import Transformer

MakeLLM = Callable[..., LLM]
PROMPTS = [[1, 2, 3], [40], list(range(30)), [7, 7, 7, 7, 9]]


class Oracle:
    """Drafts what plain decoding gave before, and every ``wrong``-th token wrong."""

    def __init__(self, n_drafts: int, outputs: Sequence[RequestOutput], wrong: int) -> None:
        self.n_drafts = n_drafts
        self.wrong = wrong
        self.texts = {tuple(out.prompt_token_ids): [*out.prompt_token_ids, *out.token_ids] for out in outputs}

    def draft(self, batch: Batch, h_TD: Tensor) -> None:
        for seq in batch.seqs:
            n = len(seq.token_ids)
            if seq.finish_reason is not None or n - seq.n_computed != 1:
                continue
            text = self.texts[tuple(seq.token_ids[: seq.n_prompt])]
            room = min(self.n_drafts, seq.max_len - n - 1)
            seq.drafts = [text[i] if i % self.wrong else (text[i] + 1) % 96 for i in range(n, n + room)]


def ids(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [out.token_ids for out in outputs]


@pytest.mark.parametrize(
    ("drafts", "sampled", "expected"),
    [
        ([], [5], [5]),
        ([5], [5, 6], [5, 6]),
        ([4], [5, 6], [5]),
        ([5, 6, 7], [5, 6, 8, 9], [5, 6, 8]),
        ([4, 6, 7], [5, 6, 7, 9], [5]),
    ],
)
def test_verify_takes_the_right_drafts_and_the_token_after(
    drafts: list[int], sampled: list[int], expected: list[int]
) -> None:
    assert verify(sampled, drafts) == expected


KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "seed": 11},
    {"temperature": 1.0, "seed": 12, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.3},
    {"repetition_penalty": 1.2},
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("n_drafts", [1, 3])
def test_mtp_drafts_change_no_token(make_llm: MakeLLM, n_drafts: int, kind: dict[str, Any]) -> None:
    params = SamplingParams(max_tokens=40, **kind)
    plain = make_llm().generate(PROMPTS, params)
    llm = make_llm(speculative=n_drafts)
    assert ids(llm.generate(PROMPTS, params)) == ids(plain)
    assert llm.stats.drafted > 0
    assert llm.engine.scheduler.allocator.n_free == llm.engine.scheduler.allocator.n_pages


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("n_drafts", "wrong"), [(1, 10**6), (3, 10**6), (3, 4), (2, 3), (4, 2)])
def test_right_and_wrong_drafts_change_no_token(
    make_llm: MakeLLM, n_drafts: int, wrong: int, kind: dict[str, Any]
) -> None:
    params = SamplingParams(max_tokens=41, logprobs=3, **kind)
    plain = make_llm().generate(PROMPTS, params)
    llm = make_llm(drafter=Oracle(n_drafts, plain, wrong))
    drafted = llm.generate(PROMPTS, params)
    assert ids(drafted) == ids(plain)
    for a, b in zip(drafted, plain):
        assert [x.token_id for x in a.logprobs or ()] == a.token_ids
        assert [x.logprob for x in a.logprobs or ()] == pytest.approx([x.logprob for x in b.logprobs or ()], abs=1e-4)
    assert 0 < llm.stats.accepted <= llm.stats.drafted
    if wrong == 10**6:
        assert llm.stats.acceptance == 1
        # One token comes from the prompt's step, the other 40 in runs of drafts + 1.
        assert llm.stats.steps == 1 + -(-40 // (n_drafts + 1))
    else:
        assert llm.stats.accepted < llm.stats.drafted
    assert sum(out.metrics.accepted for out in drafted) == llm.stats.accepted
    assert sum(out.metrics.drafted for out in drafted) == llm.stats.drafted


@pytest.mark.parametrize("n_drafts", [1, 2, 5])
def test_the_end_of_sequence_inside_an_accepted_run(make_llm: MakeLLM, n_drafts: int) -> None:
    full = make_llm().generate(PROMPTS, SamplingParams(max_tokens=40))
    eos = full[0].token_ids[17]
    plain = make_llm(eos_id=eos).generate(PROMPTS, SamplingParams(max_tokens=40))
    assert plain[0].finish_reason == "stop"
    assert plain[0].token_ids[-1] == eos
    drafted = make_llm(eos_id=eos, drafter=Oracle(n_drafts, full, 10**6)).generate(
        PROMPTS, SamplingParams(max_tokens=40)
    )
    assert ids(drafted) == ids(plain)
    assert [out.finish_reason for out in drafted] == [out.finish_reason for out in plain]


def test_a_stop_string_inside_an_accepted_run(make_llm: MakeLLM, letters: Any) -> None:
    full = make_llm(tokenizer=letters).generate(["abc"], SamplingParams(max_tokens=40))
    text = full[0].text
    assert text is not None
    params = SamplingParams(max_tokens=40, stop=[text[20:24]])
    plain = make_llm(tokenizer=letters).generate(["abc"], params)
    drafted = make_llm(tokenizer=letters, drafter=Oracle(3, full, 10**6)).generate(["abc"], params)
    assert plain[0].finish_reason == "stop"
    assert plain[0].text == text[: text.index(text[20:24])]
    assert (drafted[0].text, drafted[0].token_ids) == (plain[0].text, plain[0].token_ids)


def test_speculation_up_to_the_last_position_of_the_context(make_llm: MakeLLM) -> None:
    params = SamplingParams(max_tokens=1000)
    plain = make_llm(max_seq_len=160).generate([[1, 2, 3]], params)
    drafted = make_llm(max_seq_len=160, speculative=4, max_batch_size=1, n_pages=21).generate([[1, 2, 3]], params)
    assert len(plain[0].token_ids) == 157
    assert ids(drafted) == ids(plain)


@pytest.mark.parametrize(("max_tokens", "drafted"), [(1, 0), (2, 0), (3, 1)])
def test_no_draft_that_could_not_become_output(make_llm: MakeLLM, max_tokens: int, drafted: int) -> None:
    """One token comes from the prompt's step, and one from the model behind the last draft."""
    full = make_llm().generate([[1, 2, 3]], SamplingParams(max_tokens=10))
    llm = make_llm(speculative=4)
    (out,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=max_tokens))
    assert out.token_ids == full[0].token_ids[:max_tokens]
    assert llm.stats.drafted == drafted


def test_preemption_and_chunks_with_speculation_change_no_token(make_llm: MakeLLM) -> None:
    params = SamplingParams(max_tokens=50)
    plain = make_llm().generate(PROMPTS, params)
    llm = make_llm(speculative=2, n_pages=14, max_step_tokens=12, page_size=8)
    assert ids(llm.generate(PROMPTS, params)) == ids(plain)
    assert llm.stats.preemptions > 0


def test_drafts_equal_those_of_the_module_over_the_whole_sequence(make_llm: MakeLLM, model: Transformer) -> None:
    """The drafter's paged, chunked, overwritten MTP cache must say what one pass over the final sequence says."""
    llm = make_llm(speculative=1, max_step_tokens=8)
    seen: list[tuple[list[int], int]] = []
    drafter = llm.engine.drafter
    assert drafter is not None
    draft = drafter.draft

    def listen(batch: Batch, h_TD: Tensor) -> None:
        draft(batch, h_TD)
        seen.extend((list(seq.token_ids), seq.drafts[0]) for seq in batch.seqs if seq.drafts)

    drafter.draft = listen  # type: ignore[method-assign]
    llm.generate([list(range(20)), [5, 6]], SamplingParams(max_tokens=30))
    assert len(seen) > 40
    for tokens, drafted in seen:
        with torch.inference_mode():
            tokens_S = torch.tensor([tokens])
            h_BSD = model.hidden(tokens_S)
            h_BSD = model.predict_next(0, h_BSD[:, :-1], tokens_S[:, 1:])
            assert model.logits(h_BSD)[0, -1].argmax().item() == drafted


def test_the_budget_must_hold_every_requests_drafts(make_llm: MakeLLM) -> None:
    with pytest.raises(ConfigError, match=r"max_step_tokens = 15 is too small.*16 tokens"):
        make_llm(drafter=Oracle(3, [], 2), max_step_tokens=15)


def test_a_model_without_mtp_cannot_speculate(model: Transformer) -> None:
    config = dataclasses.replace(model.config, n_mtp_layers=0)
    with pytest.raises(ConfigError, match="no MTP module"):
        LLM.from_model(Transformer(config, dtype=torch.float32), speculative=1)


def test_the_embedded_models_own_drafts() -> None:
    """A trained MTP module is right more often than not, and still decides nothing."""
    prompts = ["Once upon a time", "Había una vez", "从前有一个"]
    greedy, sampled = SamplingParams(max_tokens=48), SamplingParams(max_tokens=48, temperature=0.8, top_p=0.95, seed=1)
    plain, drafting = LLM("tiny", device="cpu"), LLM("tiny", device="cpu", speculative=1)
    expected = plain.generate(prompts, greedy)
    assert ids(drafting.generate(prompts, greedy)) == ids(expected)
    assert drafting.stats.acceptance > 0.4
    assert drafting.stats.steps < 0.8 * plain.stats.steps
    assert ids(drafting.generate(prompts, sampled)) == ids(plain.generate(prompts, sampled))
    text = expected[0].text
    assert text is not None
    assert len(text.split()) > 20, "English text has words"
