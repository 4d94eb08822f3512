"""Recorded decode steps: what they are filled with (anywhere), and that a replay is the step (on a GPU)."""

import copy
from types import SimpleNamespace

import pytest
import torch

from dsv3.engine import LLM, SamplingParams
from dsv3.engine.batch import Batch
from dsv3.engine.graphs import DecodeGraphs, _Inputs, batch_sizes
from dsv3.model.transformer import Transformer
from dsv3.probe import capture
from tests.gpu import never_waiting
from tests.kernels.tolerances import relative_error

PROMPTS = [list(range(2, 2 + n)) for n in (3, 9, 17, 40, 5)]


@pytest.mark.parametrize("most", [1, 2, 3, 8, 33, 256])
def test_sizes_end_with_the_largest_batch_and_pad_little(most):
    sizes = batch_sizes(most)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    for n in range(1, most + 1):
        padding = next(size for size in sizes if size >= n) - n
        assert padding <= max(3, n / 8)


def test_rows_behind_the_batch_repeat_its_first_sequence():
    inputs = _Inputs(4, 2, 3, torch.device("cpu"))
    batch = SimpleNamespace(seqs=[0, 1], pages=[[5, 2], [7]], starts=[9, 1], tokens=[11, 12, 13, 14])
    inputs.fill(batch, page_size=8)
    assert inputs.tokens_T.tolist() == [11, 12, 13, 14, 11, 12, 11, 12]
    assert inputs.positions_T.tolist() == [9, 10, 1, 2, 9, 10, 9, 10]
    assert inputs.slots_T.tolist() == [17, 18, 57, 58, 17, 18, 17, 18]
    assert inputs.kv_lens_B.tolist() == [11, 3, 11, 11]
    assert inputs.page_table_BP.tolist() == [[5, 2, 0], [7, 0, 0], [5, 2, 0], [5, 2, 0]]


def test_a_cpu_records_nothing(model, make_llm):
    llm = make_llm()
    assert not DecodeGraphs.supports(model, llm.engine.runner.cache)
    assert llm.engine.runner.graphs is None


@pytest.fixture(scope="module")
def gpu_model(model: Transformer) -> Transformer:
    return copy.deepcopy(model).to("cuda", torch.bfloat16).prepare()


def poisoned(model: Transformer, **options) -> LLM:
    """A cache full of NaN: whatever reads a slot that was not written shows it."""
    llm = LLM.from_model(model, page_size=8, **options)
    llm.engine.runner.cache.storage.fill_(float("nan"))
    return llm


def prefilled(model: Transformer, prompts: list[list[int]], **options) -> LLM:
    """An engine over a cache full of NaN whose requests have read their prompts and are about to decode."""
    llm = poisoned(model, **options)
    for prompt in prompts:
        llm.engine.add(llm._sequence(prompt, SamplingParams(max_tokens=40, temperature=0)))
    llm.engine.step()
    assert all(seq.n_computed == seq.n_prompt for seq in llm.engine.scheduler.running)
    return llm


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 3, 5])
def test_replays_are_the_plain_step(gpu_model, n):
    llm = prefilled(gpu_model, PROMPTS[:n])
    runner = llm.engine.runner
    assert runner.graphs is not None
    errors: list[float] = []
    for _ in range(12):
        with torch.inference_mode():
            batch = Batch(llm.engine.scheduler.schedule(), runner.cache)
            assert runner.graphs.fits(batch)
            logits_TV = runner.graphs.run(batch)[1].clone()
            expected_TV = gpu_model.logits(gpu_model.hidden(batch.tokens_T, batch.ctx))  # writes the same slots again
            errors += [relative_error(row, expected) for row, expected in zip(logits_TV, expected_TV)]
            assert torch.equal(batch.likeliest_M, logits_TV.argmax(-1))
        llm.engine.step()
    assert len(runner.graphs.recorded) == 1
    # BF16, in another order of sums; once in a while a token's experts are a near tie, and it goes to another one.
    assert sum(error > 0.03 for error in errors) <= len(errors) / 10, sorted(errors)


@pytest.mark.gpu
def test_recorded_drafts_are_the_plain_ones(gpu_model):
    llm = prefilled(gpu_model, PROMPTS[:2], speculative=1)
    runner = llm.engine.runner
    llm.engine.step()  # drafts exist now, so the next step feeds two tokens of each
    agreed = []
    for _ in range(12):
        with torch.inference_mode():
            batch = Batch(llm.engine.scheduler.schedule(), runner.cache)
            if batch.q_lens != [2, 2]:
                break
            h_TD, _ = runner.graphs.run(batch)
            following = [7, 11, 13, 17]
            drafts_T = runner.recorded_draft(batch, following).clone()
            plain_TD = gpu_model.predict_next(0, h_TD, torch.tensor(following, device="cuda"), batch.ctx)
            agreed += (gpu_model.logits(plain_TD).argmax(-1) == drafts_T).tolist()
        llm.engine.step()
    assert agreed
    assert sum(agreed) / len(agreed) > 0.9  # BF16 and another order of sums: a near tie may fall the other way


@pytest.mark.gpu
def test_speculation_runs_on_recorded_steps(gpu_model):
    llm = poisoned(gpu_model, speculative=1)
    outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=24, temperature=0))
    assert [len(out.token_ids) for out in outputs] == [24] * len(PROMPTS)
    assert llm.stats.drafted > 0
    assert any(S == 2 for _, S in llm.engine.runner.graphs.recorded)


@pytest.mark.gpu
def test_neighbours_change_no_bit_of_a_recorded_step(gpu_model):
    """A request's numbers depend on the recorded size, not on who else is in the batch or in which row it stands."""
    params = SamplingParams(max_tokens=12, temperature=0, logprobs=0)

    def first(shift: int) -> list[float]:
        # Prompts of the same lengths: their prefill is not recorded, and its products depend on the number of rows.
        others = [[(token * 7 + shift) % 90 + 2 for token in prompt] for prompt in PROMPTS[2:5]]
        out = LLM.from_model(gpu_model, page_size=8, max_batch_size=4).generate([PROMPTS[1], *others], params)[0]
        return [entry.logprob for entry in out.logprobs]

    assert first(3) == first(40)


@pytest.mark.gpu
def test_whoever_listens_is_heard_and_waiting_is_never_needed(gpu_model):
    llm = LLM.from_model(gpu_model, page_size=8)
    params = SamplingParams(max_tokens=4, temperature=0)
    llm.generate(PROMPTS[0], params)
    with capture(gpu_model, "gate.indices_TK") as records:
        llm.generate(PROMPTS[0], params)
    assert records
    assert all(len(tensors) == 4 for tensors in records.values())
    with never_waiting():
        llm.engine.runner.graphs.recorded[1, 1].graph.replay()
