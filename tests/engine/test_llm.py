import copy
import dataclasses
import gc
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dsv3.config import ModelConfig
from dsv3.engine import LLM, SamplingParams
from dsv3.engine.llm import resolve_device, resolve_dtype
from dsv3.errors import CapacityError, CheckpointError, ConfigError, RequestError
from dsv3.model.transformer import Transformer
from dsv3.train import bpe
from dsv3.weights import read_config, save_model

MakeLLM = Callable[..., LLM]


def free(llm: LLM) -> bool:
    """Whether nothing is under way and every page is back."""
    scheduler = llm.engine.scheduler
    busy = scheduler.running or scheduler.waiting
    return not busy and scheduler.allocator.n_free == scheduler.allocator.n_pages


# ------------------------------------------------------------------------------------------------------------- prompts


def test_outputs_stand_in_the_order_of_the_prompts(make_llm: MakeLLM) -> None:
    prompts = [[i] * (1 + i % 5) for i in range(11)]
    lengths = [SamplingParams(max_tokens=1 + (7 * i) % 11) for i in range(11)]
    outputs = make_llm().generate(prompts, lengths)
    assert [out.prompt_token_ids for out in outputs] == prompts
    assert [len(out.token_ids) for out in outputs] == [p.max_tokens for p in lengths]
    assert all(out.finish_reason == "length" and out.text is None and out.prompt is None for out in outputs)


def test_no_prompts_no_outputs(make_llm: MakeLLM) -> None:
    assert make_llm().generate([]) == []


def test_one_prompt_may_stand_alone(make_llm: MakeLLM, letters: Any) -> None:
    llm = make_llm(tokenizer=letters)
    as_text, as_ids, as_list = llm.generate("abc"), llm.generate([0, 1, 2]), llm.generate(["abc"])
    assert as_text[0].token_ids == as_ids[0].token_ids == as_list[0].token_ids
    assert as_text[0].prompt == "abc"
    assert as_text[0].prompt_token_ids == [0, 1, 2]
    assert as_text[0].text == letters.decode(as_text[0].token_ids)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([""], "prompt is empty"),
        ([[]], "prompt is empty"),
        ([[1, 2], []], "prompt is empty"),
        ([[96]], "token id 96 is outside the vocabulary: ids run from 0 to 95"),
        ([[-1]], "token id -1 is outside"),
        ([[1] * 160], r"160 tokens, but the context holds 160.*shorten the prompt to 159"),
        (None, "prompts is NoneType"),
        (5, "prompts is int"),
        ([1.5], "prompt 0 is 1.5"),
        (["a", None], "prompt 1 is None"),
        ([[1, "a"]], "prompt 0 is"),
        ([[True]], "prompt 0 is"),
    ],
)
def test_bad_prompts(make_llm: MakeLLM, letters: Any, prompts: Any, message: str) -> None:
    llm = make_llm(tokenizer=letters)
    with pytest.raises(RequestError, match=message):
        llm.generate(prompts)
    assert free(llm)


def test_one_bad_prompt_starts_none(make_llm: MakeLLM) -> None:
    llm = make_llm()
    with pytest.raises(RequestError, match=r"^prompt 1: token id 1000 is outside the vocabulary"):
        llm.generate([[1, 2], [1000]])
    assert free(llm)
    assert llm.stats.steps == 0


def test_the_longest_prompt_leaves_one_token(make_llm: MakeLLM) -> None:
    (out,) = make_llm().generate([[1] * 159])
    assert len(out.token_ids) == 1
    assert out.finish_reason == "length"


def test_the_remedy_for_a_long_prompt_names_the_longer_context(make_llm: MakeLLM) -> None:
    with pytest.raises(RequestError, match=r"31 tokens, but the context holds 30 .*raise max_seq_len \(up to 160\)"):
        make_llm(max_seq_len=30).generate([[1] * 31])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ([SamplingParams()], "1 SamplingParams for 2 prompts"),
        ({"temperature": 1}, "params is dict"),
        ([SamplingParams(), None], "params is NoneType"),
        (SamplingParams(logprobs=97), "logprobs is 97; the vocabulary has only 96"),
        (SamplingParams(stop="x"), "no tokenizer"),
    ],
)
def test_bad_params(make_llm: MakeLLM, params: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_llm().generate([[1], [2]], params)


def test_text_needs_a_tokenizer(make_llm: MakeLLM) -> None:
    with pytest.raises(RequestError, match="no tokenizer: give token ids"):
        make_llm().generate(["abc"])


def test_a_request_beyond_the_cache(make_llm: MakeLLM) -> None:
    llm = make_llm(n_pages=4)
    with pytest.raises(CapacityError, match=r"^prompt 1: .*may grow to 33 tokens, but the cache holds 32"):
        llm.generate([[1], [1, 2, 3]], SamplingParams(max_tokens=30))
    with pytest.raises(CapacityError):
        llm.stream([1, 2, 3], SamplingParams(max_tokens=40))
    assert free(llm)
    assert len(llm.generate([[1, 2, 3]], SamplingParams(max_tokens=29))[0].token_ids) == 29


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seq_len": 161}, r"max_seq_len = 161 exceeds the model's context of 160"),
        ({"max_batch_size": 0}, "max_batch_size is 0; it must be at least 1"),
        ({"page_size": 0}, "page_size is 0"),
        ({"speculative": -1}, "speculative is -1"),
        ({"max_batch_sise": 3}, "did you mean 'max_batch_size'"),
        ({"max_step_tokens": 7, "speculative": 1}, "max_step_tokens = 7 is too small: max_batch_size = 4.*8 tokens"),
        ({"max_batch_size": "many"}, "'max_batch_size' is 'many'; expected int"),
        ({"speculative": "always"}, "'speculative' is 'always'; expected int"),
    ],
)
def test_options_that_cannot_be(make_llm: MakeLLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_llm(**options)


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    for unknown in ("gpu0", "mps", "cuda:x", 3.5):
        with pytest.raises(RequestError, match=r"unknown device|not supported"):
            resolve_device(unknown)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"sees \d+ CUDA devices: use 'cpu'"):
        resolve_device("cuda:99")


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device(None) == torch.device("cpu")
    with pytest.raises(RequestError, match="sees 0 CUDA devices"):
        resolve_device("cuda")


def test_dtypes() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("bf16", cpu) == resolve_dtype(torch.bfloat16, cpu) == torch.bfloat16
    assert resolve_dtype(None, cpu) == torch.float32
    assert resolve_dtype(None, gpu) is None
    for unknown in ("fp16", torch.int8):
        with pytest.raises(ConfigError, match="dtype"):
            resolve_dtype(unknown, cpu)


def test_auto_speculates_where_there_is_a_module(make_llm: MakeLLM, model: Transformer) -> None:
    assert make_llm(speculative="auto").engine.drafter is not None
    assert make_llm().engine.drafter is None
    without = Transformer(dataclasses.replace(model.config, n_mtp_layers=0), dtype=torch.float32)
    assert LLM.from_model(without, speculative="auto").engine.drafter is None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with weights and a real tokenizer, as a download would be."""
    directory = tmp_path_factory.mktemp("llm") / "checkpoint"
    shape = {"vocab_size": 384, "dim": 32, "inter_dim": 32, "moe_inter_dim": 16, "n_layers": 2, "n_heads": 2}
    shape |= {"n_routed_experts": 4, "n_activated_experts": 2, "n_shared_experts": 1, "score_func": "sigmoid"}
    shape |= {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_mtp_layers": 1}
    torch.manual_seed(1)
    fresh = Transformer(ModelConfig.from_dict(shape | {"original_seq_len": 64, "rope_factor": 1}), dtype=torch.float32)
    fresh.reset_parameters(std=0.2)
    save_model(fresh, directory, dtype="fp32")
    bpe.save(
        bpe.train_bpe({"en": ["the cat sat on the mat and the dog ran after the cat again and again " * 9]}, 324),
        directory,
    )
    return directory


def test_a_directory_loads_and_answers_in_text(checkpoint: Path) -> None:
    llm = LLM(checkpoint, device="cpu", max_batch_size=2, speculative="auto")
    assert llm.engine.runner.cache.storage.dtype == torch.float32
    assert llm.tokenizer is not None
    params = SamplingParams(max_tokens=20, temperature=0.7, seed=3)
    outputs = llm.generate(["the cat", "¿qué? 从前"], params)
    for prompt, out in zip(("the cat", "¿qué? 从前"), outputs):
        assert out.prompt_token_ids == llm.tokenizer.encode(prompt)
        assert out.prompt_token_ids[0] == llm.tokenizer.bos_id
        ids = out.token_ids[:-1] if out.finish_reason == "stop" else out.token_ids
        assert out.text == llm.tokenizer.decode(ids)
        assert out.text == "".join(event.text for event in llm.stream(prompt, params))
    plain = LLM(str(checkpoint), device="cpu").generate(["the cat", "¿qué? 从前"], params)
    assert [out.text for out in plain] == [out.text for out in outputs]


def test_what_cannot_be_is_said_before_loading(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsv3.weights.load_model", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="max_seq_len = 65 exceeds"):
        LLM(checkpoint, device="cpu", max_seq_len=65)
    with pytest.raises(ConfigError, match="unknown dtype 'fp7'"):
        LLM(checkpoint, device="cpu", dtype="fp7")
    with pytest.raises(CheckpointError, match="has 324 ids, but the model's vocab_size is 300"):
        LLM(checkpoint, device="cpu", config=dataclasses.replace(read_config(checkpoint), vocab_size=300))
    with pytest.raises(CheckpointError, match="no checkpoint directory"):
        LLM(checkpoint / "nowhere", device="cpu")


def test_building_an_llm_readies_the_model(model: Transformer) -> None:
    """A model in training mode, with weights replaced since it was prepared, answers by its present weights."""
    fresh = copy.deepcopy(model).prepare()
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if name.endswith("wkv_b.weight"):
                parameter.data = parameter.data * -1.5  # new memory: the prepared views look at the old
    fresh.train()
    (out,) = LLM.from_model(fresh).generate([[1, 2, 3]], SamplingParams(max_tokens=5))
    assert not fresh.training
    tokens = [1, 2, 3]
    with torch.inference_mode():
        for _ in range(5):
            tokens.append(int(fresh(torch.tensor([tokens]))[0, -1].argmax()))
    assert out.token_ids == tokens[3:]


# ----------------------------------------------------------------------------------------------------- text and streams


def test_a_stream_is_the_text_in_pieces(make_llm: MakeLLM, letters: Any) -> None:
    llm = make_llm(tokenizer=letters)
    for seed in range(5):
        params = SamplingParams(max_tokens=60, temperature=1.5, seed=seed, logprobs=1)
        (whole,) = llm.generate(["abc"], params)
        events = list(llm.stream("abc", params))
        assert "".join(event.text for event in events) == whole.text == letters.decode(whole.token_ids)
        assert [i for event in events for i in event.token_ids] == whole.token_ids
        assert [x for event in events for x in event.logprobs or ()] == whole.logprobs
        assert [event.finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]
        last = events[-1].output
        assert last is not None
        assert (last.text, last.token_ids, last.prompt) == (whole.text, whole.token_ids, "abc")
    assert free(llm)


def test_a_stop_string_ends_text_and_stream_before_itself(make_llm: MakeLLM, letters: Any) -> None:
    llm = make_llm(tokenizer=letters)
    (whole,) = llm.generate(["abc"], SamplingParams(max_tokens=60))
    text = whole.text
    assert text is not None
    straddled = 0
    for start, length in itertools.product((5, 11, 17), (1, 2, 5)):
        stop = text[start : start + length]
        params = SamplingParams(max_tokens=60, stop=["never there", stop])
        (out,) = llm.generate(["abc"], params)
        assert out.finish_reason == "stop"
        assert out.text == text[: text.index(stop)]
        assert out.token_ids == whole.token_ids[: len(out.token_ids)], "the stop string's own tokens are kept"
        assert stop in letters.decode(out.token_ids)
        assert stop not in letters.decode(out.token_ids[:-1])
        shown = ""
        for event in llm.stream("abc", params):
            shown += event.text
            assert out.text.startswith(shown)
        assert shown == out.text
        straddled += not any(stop in letters.decode([i]) for i in out.token_ids)
    assert straddled > 0, "no stop string lay across tokens"
    assert free(llm)


def test_the_end_of_sequence_is_not_text(make_llm: MakeLLM, letters: Any) -> None:
    (whole,) = make_llm(tokenizer=letters).generate(["abc"], SamplingParams(max_tokens=30))
    letters.eos_id = whole.token_ids[9]
    n = whole.token_ids.index(letters.eos_id)
    (out,) = make_llm(tokenizer=letters).generate(["abc"], SamplingParams(max_tokens=30))
    assert out.finish_reason == "stop"
    assert out.token_ids == whole.token_ids[: n + 1]
    assert out.text == letters.decode(whole.token_ids[:n])
    (on,) = make_llm(tokenizer=letters).generate(["abc"], SamplingParams(max_tokens=30, ignore_eos=True))
    assert on.token_ids == whole.token_ids


def test_streams_take_turns_and_share_steps(make_llm: MakeLLM) -> None:
    llm = make_llm()
    params = SamplingParams(max_tokens=20)
    prompts = [[1, 2, 3], [9] * 30, [50]]
    expected = [out.token_ids for out in llm.generate(prompts, params)]
    before = llm.stats.steps
    streams = [llm.stream(prompt, params) for prompt in prompts]
    got: list[list[int]] = [[], [], []]
    for round_of_events in itertools.zip_longest(*streams):
        for ids, event in zip(got, round_of_events):
            ids += event.token_ids if event else []
    assert got == expected
    assert llm.stats.steps - before < 20 + 3, "each stream stepped on its own"
    assert free(llm)


def test_an_abandoned_stream_gives_its_pages_back(make_llm: MakeLLM) -> None:
    llm = make_llm()
    closed = llm.stream([1, 2, 3])
    next(closed)
    assert not free(llm)
    closed.close()  # type: ignore[attr-defined]
    assert free(llm)
    dropped = llm.stream([1, 2, 3])
    next(dropped)
    del dropped
    gc.collect()
    assert free(llm)
    llm.stream([1, 2, 3])  # never begun
    assert free(llm)


def test_a_stream_finds_mistakes_at_once(make_llm: MakeLLM) -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        make_llm().stream([])
    with pytest.raises(RequestError, match="prompt 0 is"):
        make_llm().stream([[1]])  # type: ignore[list-item]


def test_metrics(make_llm: MakeLLM) -> None:
    (out,) = make_llm().generate([[1, 2, 3]], SamplingParams(max_tokens=10))
    metrics = out.metrics
    assert (metrics.prompt_tokens, metrics.output_tokens, metrics.drafted, metrics.preemptions) == (3, 10, 0, 0)
    assert 0 < metrics.ttft < metrics.seconds
    assert metrics.tokens_per_second == pytest.approx(9 / (metrics.seconds - metrics.ttft))


def test_progress_goes_to_stderr_alone(make_llm: MakeLLM, capfd: pytest.CaptureFixture[str]) -> None:
    make_llm().generate([[1], [2]], SamplingParams(max_tokens=2), progress=True)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "2/2" in captured.err


def test_threads_may_share_one_llm(make_llm: MakeLLM) -> None:
    llm, params = make_llm(), SamplingParams(max_tokens=12)
    prompts = [[1 + i, 2, 3] for i in range(6)]
    expected = [llm.generate(prompt, params)[0].token_ids for prompt in prompts]

    def answer(i: int) -> list[int]:
        if i % 2:
            return llm.generate(prompts[i], params)[0].token_ids
        return [token for event in llm.stream(prompts[i], params) for token in event.token_ids]

    with ThreadPoolExecutor(len(prompts)) as pool:
        assert list(pool.map(answer, range(len(prompts)))) == expected
    assert free(llm)
    assert copy.deepcopy(llm).generate(prompts[0], params)[0].token_ids == expected[0]
