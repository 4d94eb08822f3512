"""The face of the engine: text in, text out.

    llm = LLM("tiny")
    llm.generate(["Once upon a time", "Había una vez"], SamplingParams(max_tokens=64))
    for event in llm.stream("从前"):
        print(event.text, end="")

Whatever can be wrong with a request is found here, before it touches a running batch.
"""

import dataclasses
import sys
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, Literal, Self

import torch
from tqdm import tqdm

from dsv3 import weights
from dsv3.config import EngineConfig, ModelConfig
from dsv3.engine.engine import Engine, EngineStats
from dsv3.engine.outputs import RequestOutput, StreamEvent
from dsv3.engine.params import SamplingParams
from dsv3.engine.runner import Runner
from dsv3.engine.sequence import Sequence
from dsv3.engine.speculative import Drafter
from dsv3.errors import CapacityError, CheckpointError, ConfigError, RequestError
from dsv3.layers.cache import LatentCache
from dsv3.model.transformer import Transformer
from dsv3.tokenizer import Tokenizer

Prompt = str | Seq[int]

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "float8_e4m3fn": torch.float8_e4m3fn,
}

CPU_CACHE_BYTES = 256 << 20
"""The cache that is reserved on a CPU unless n_pages says otherwise: it is zeroed at start, and so really used."""

CUDA_CACHE_SHARE = 0.8
"""Part of the free GPU memory that the cache may take; the rest is for activations."""


class LLM:
    """A loaded model that answers requests, any number at a time.

    Args:
        path_or_name: a Hugging Face directory or one in the official demo's layout; "tiny" is the embedded model.
        device: "cpu", "cuda", "cuda:1"; None takes CUDA where there is one.
        dtype: "fp32", "bf16", "fp8" or a torch dtype; None: FP32 on a CPU, what the checkpoint says on CUDA.
        config: a model configuration instead of the checkpoint's own.
        max_seq_len: longest prompt plus output; None: the context the model was made for.
        speculative: tokens that the MTP module drafts in each step; None: none; "auto": one, where there is a module.
            Changes speed, never a token.
        options: further fields of EngineConfig (max_batch_size, max_step_tokens, page_size, n_pages, ...).

    Raises RequestError (a device that is not here), ConfigError (dtype, options), CheckpointError (loading).
    """

    def __init__(
        self,
        path_or_name: str | Path = "tiny",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        config: ModelConfig | None = None,
        max_seq_len: int | None = None,
        speculative: int | Literal["auto"] | None = None,
        **options: Any,
    ) -> None:
        where = resolve_device(device)
        what = resolve_dtype(dtype, where)
        options |= {"max_seq_len": max_seq_len, "speculative": speculative}
        path = weights.resolve(path_or_name)
        # Before minutes of loading. The weights have the last word: some come without the MTP layer that they name.
        shape = weights.read_config(path) if config is None else config
        _limits(shape, options)
        tokenizer = Tokenizer.from_dir(path)
        if tokenizer.vocab_size > shape.vocab_size:
            raise CheckpointError(
                f"the tokenizer in {path} has {tokenizer.vocab_size} ids, but the model's vocab_size is "
                f"{shape.vocab_size}: they do not belong together"
            )
        model = weights.load_model(path, config=config, dtype=what, device=where)
        self._start(model, tokenizer, _limits(model.config, options), None, None)

    @classmethod
    def from_model(
        cls,
        model: Transformer,
        tokenizer: Tokenizer | None = None,
        *,
        eos_id: int | None = None,
        drafter: Drafter | None = None,
        max_seq_len: int | None = None,
        speculative: int | Literal["auto"] | None = None,
        **options: Any,
    ) -> Self:
        """From a model in memory. Without a tokenizer prompts are token ids and outputs have no text.

        eos_id: the end-of-sequence token where no tokenizer knows it. drafter: another source of drafts than MTP.
        """
        options |= {"max_seq_len": max_seq_len, "speculative": speculative}
        limits = _limits(model.config, options)
        if drafter is not None:
            limits = dataclasses.replace(limits, speculative=drafter.n_drafts)
        llm = cls.__new__(cls)
        llm._start(model.eval().prepare(), tokenizer, limits, eos_id, drafter)
        return llm

    def _start(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        limits: EngineConfig,
        eos_id: int | None,
        drafter: Drafter | None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.config = model.config
        self.max_seq_len = limits.max_seq_len or model.config.max_context
        if eos_id is None and tokenizer is not None:
            eos_id = tokenizer.eos_id
        self._eos_ids = frozenset[int]() if eos_id is None else frozenset({eos_id})
        weight = model.embed.weight
        pages = n_pages(limits, model.config, weight.dtype, weight.device)
        cache = LatentCache(model.config, pages, limits.page_size, dtype=weight.dtype, device=weight.device)
        runner = Runner(model, cache, max_batch_size=limits.max_batch_size, max_seq_len=self.max_seq_len)
        self.engine = Engine(runner, limits, drafter)

    @property
    def stats(self) -> EngineStats:
        """Totals over all requests so far."""
        return self.engine.stats

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        params: SamplingParams | Seq[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Continue every prompt, all together; the results stand in the order of the prompts.

        A prompt is a text or a list of token ids. params: one for all, or one for each. progress: a bar on stderr.
        Raises RequestError and CapacityError before anything runs. An interrupt leaves nothing behind.
        """
        requests = _as_list(prompts)
        sequences: list[Sequence] = []
        for i, (prompt, its_params) in enumerate(zip(requests, _match(params, len(requests)))):
            try:
                sequences.append(self._sequence(prompt, its_params))
            except (RequestError, CapacityError) as error:
                raise type(error)(f"prompt {i}: {error}" if len(requests) > 1 else str(error)) from None
        waiting = set(sequences)
        bar = tqdm(total=len(sequences), desc="generating", unit="request", disable=not progress, file=sys.stderr)
        try:
            for sequence in sequences:
                self.engine.add(sequence)
            while waiting:
                self.engine.step()
                # Another thread's step may have finished some of them.
                finished = {sequence for sequence in waiting if sequence.finish_reason is not None}
                waiting -= finished
                bar.update(len(finished))
        finally:
            for sequence in waiting:
                self.engine.abort(sequence)
            bar.close()
        return [sequence.output() for sequence in sequences]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamEvent]:
        """Continue one prompt and yield what each step adds. Several streams may be read in turns.

        Raises RequestError and CapacityError at once, not at the first event. A stream that is dropped or closed
        half-way gives its cache pages back.
        """
        (request,) = _as_list([prompt])
        return self._events(self._sequence(request, SamplingParams() if params is None else params))

    def _events(self, sequence: Sequence) -> Iterator[StreamEvent]:
        self.engine.add(sequence)
        try:
            n_ids, n_text = sequence.n_prompt, 0
            while True:
                with self.engine.lock:
                    # The step of another stream may have advanced this one already.
                    while len(sequence.token_ids) == n_ids:
                        self.engine.step()
                    text = sequence.text or ""
                    done = sequence.finish_reason is not None
                    event = StreamEvent(
                        text=text[n_text:],
                        token_ids=sequence.token_ids[n_ids:],
                        logprobs=None if sequence.logprobs is None else sequence.logprobs[n_ids - sequence.n_prompt :],
                        finish_reason=sequence.finish_reason,
                        output=sequence.output() if done else None,
                    )
                n_ids, n_text = len(sequence.token_ids), len(text)
                yield event
                if done:
                    return
        finally:
            if sequence.finish_reason is None:
                self.engine.abort(sequence)

    def _sequence(self, prompt: Prompt, params: SamplingParams) -> Sequence:
        """A checked request. Raises RequestError naming what is wrong, CapacityError where the cache is too small."""
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params is {type(params).__name__}; expected SamplingParams")
        vocab_size = self.config.vocab_size
        if (params.logprobs or 0) > vocab_size:
            raise RequestError(f"logprobs is {params.logprobs}; the vocabulary has only {vocab_size} tokens")
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need text, and this model was given no tokenizer: leave stop empty")
        token_ids = self._token_ids(prompt)
        if len(token_ids) >= self.max_seq_len:
            context = self.config.max_context
            longer = f" or raise max_seq_len (up to {context})" if self.max_seq_len < context else ""
            raise RequestError(
                f"the prompt has {len(token_ids)} tokens, but the context holds {self.max_seq_len} and at least one of "
                f"them is for the answer: shorten the prompt to {self.max_seq_len - 1} tokens{longer}"
            )
        sequence = Sequence(
            token_ids,
            params,
            max_seq_len=self.max_seq_len,
            prompt=prompt if isinstance(prompt, str) else None,
            eos_ids=self._eos_ids,
            detokenizer=None if self.tokenizer is None else self.tokenizer.stream(),
        )
        self.engine.check_fits(sequence)
        return sequence

    def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            if self.tokenizer is None:
                raise RequestError("the prompt is text, and this model was given no tokenizer: give token ids")
            if not prompt:
                raise RequestError("the prompt is empty: give at least one character to continue")
            return self.tokenizer.encode(prompt)
        token_ids = list(prompt)
        if not token_ids:
            raise RequestError("the prompt is empty: give at least one token id to continue")
        for token in token_ids:
            if not 0 <= token < self.config.vocab_size:
                raise RequestError(
                    f"token id {token} is outside the vocabulary: ids run from 0 to {self.config.vocab_size - 1}"
                )
        return token_ids


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device meant; None takes CUDA where there is one. Raises RequestError for one that does not exist here."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise RequestError(f"unknown device {device!r}: use 'cpu', 'cuda' or 'cuda:N'") from None
    if found.type not in ("cpu", "cuda"):
        raise RequestError(f"device {str(found)!r} is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found.type == "cuda" and (found.index or 0) >= n_gpus:
        raise RequestError(
            f"device {str(found)!r} was asked for, but torch {torch.__version__} sees {n_gpus} CUDA devices: "
            "use 'cpu', or check nvidia-smi and that torch was installed with CUDA"
        )
    return found


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """A torch dtype, or None for the checkpoint's own. Raises ConfigError for names that mean none.

    The default on a CPU is FP32: there is no FP8 arithmetic, and BF16 would make results depend on the batch.
    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(f"unknown dtype {dtype!r}: use one of {', '.join(map(repr, DTYPES))}")
        return DTYPES[dtype]
    if dtype not in DTYPES.values():
        raise ConfigError(f"dtype {dtype} is not supported: use torch.float32, torch.bfloat16 or torch.float8_e4m3fn")
    return dtype


def n_pages(limits: EngineConfig, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Pages to reserve: what was asked for, or enough for every sequence at full length as far as memory goes."""
    if limits.n_pages is not None:
        return limits.n_pages
    assert limits.max_seq_len is not None
    wanted = limits.max_batch_size * -(-limits.max_seq_len // limits.page_size)
    page_bytes = limits.page_size * (model.n_layers + model.n_mtp_layers) * model.latent_dim * dtype.itemsize
    budget = int(CUDA_CACHE_SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else CPU_CACHE_BYTES
    return max(1, min(wanted, budget // page_bytes))


def _limits(model: ModelConfig, options: dict[str, Any]) -> EngineConfig:
    """EngineConfig for this model. Raises ConfigError for unknown options and for what the model cannot do."""
    speculative = options["speculative"]
    if speculative == "auto":
        speculative = min(model.n_mtp_layers, 1)
    return EngineConfig.from_dict({**options, "speculative": 0 if speculative is None else speculative}).for_model(
        model
    )


def _as_list(prompts: Any) -> list[Prompt]:
    """One prompt or many -> a list of prompts. A list of integers is one prompt of token ids."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, (list, tuple)):
        found = type(prompts).__name__
        raise RequestError(f"prompts is {found}; expected a text, a list of token ids, or a list of these")
    many: list[Any] = list(prompts)
    if many and all(_is_id(token) for token in many):
        return [many]
    for i, prompt in enumerate(many):
        if isinstance(prompt, str) or (isinstance(prompt, (list, tuple)) and all(_is_id(t) for t in prompt)):
            continue
        raise RequestError(f"prompt {i} is {prompt!r}; expected a text or a list of token ids")
    return many


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _match(params: Any, n: int) -> list[SamplingParams]:
    if params is None:
        return [SamplingParams()] * n
    if isinstance(params, SamplingParams):
        return [params] * n
    if not isinstance(params, (list, tuple)):
        raise RequestError(f"params is {type(params).__name__}; expected SamplingParams, or a list with one per prompt")
    if len(params) != n:
        raise RequestError(f"{len(params)} SamplingParams for {n} prompts: give one for all, or one for each")
    return list(params)
