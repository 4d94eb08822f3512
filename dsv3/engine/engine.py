"""The step: schedule, build, run, sample and verify, update, draft. Everything else in this package serves it."""

import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dsv3.config import EngineConfig
from dsv3.engine.batch import Batch
from dsv3.engine.blocks import PageAllocator
from dsv3.engine.outputs import TokenLogprob
from dsv3.engine.runner import Runner
from dsv3.engine.sampler import log_probabilities, sample
from dsv3.engine.scheduler import Scheduler
from dsv3.engine.sequence import Sequence
from dsv3.engine.speculative import Drafter, MTPDrafter, verify


@dataclass
class EngineStats:
    """Totals since the engine was made. The time of a step that mixes both kinds of work is shared out by tokens.

    prefill_tokens: prompt tokens fed, again after a preemption. decode_tokens: tokens generated after each request's
    first. drafted, accepted: as in RequestMetrics.
    """

    steps: int = 0
    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0
    preemptions: int = 0

    @property
    def prefill_tokens_per_second(self) -> float:
        return self.prefill_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def acceptance(self) -> float:
        """Part of the drafted tokens that the model would have chosen itself."""
        return self.accepted / self.drafted if self.drafted else 0.0


class Engine:
    """Runs requests over one model and one cache. Knows token ids only; ``LLM`` adds text, loading and waiting.

    Threads may share it: ``lock`` is held while requests come, advance or go. A step advances everyone's requests.
    """

    def __init__(self, runner: Runner, config: EngineConfig, drafter: Drafter | None = None) -> None:
        if drafter is None and config.speculative:
            drafter = MTPDrafter(runner, config.speculative)
        self.runner = runner
        self.drafter = drafter
        self.stats = EngineStats()
        self.lock = threading.RLock()
        self.scheduler = Scheduler(
            PageAllocator(runner.cache.n_pages, runner.cache.page_size),
            max_batch_size=config.max_batch_size,
            max_step_tokens=config.max_step_tokens,
            lookahead=max(drafter.n_drafts - 1, 0) if drafter is not None else 0,
        )

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles: locks allow neither
        return {name: value for name, value in self.__dict__.items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, lock=threading.RLock())

    def check_fits(self, sequence: Sequence) -> None:
        """Raise CapacityError where the request could not finish even with the whole cache to itself."""
        self.scheduler.check_fits(sequence)

    def add(self, sequence: Sequence) -> None:
        """Queue a request that fits."""
        with self.lock:
            self.scheduler.add(sequence)

    def abort(self, sequence: Sequence) -> None:
        """Drop a request, finished or not; its pages are free afterwards."""
        with self.lock:
            self.scheduler.remove(sequence)

    def step(self) -> list[Sequence]:
        """Advance every scheduled request; returns the ones that finished.

        An interrupt or an error inside leaves the engine usable: requests that were under way are computed again.
        """
        with self.lock:
            try:
                with torch.inference_mode():
                    return self._step()
            except BaseException:
                self.scheduler.recover()
                raise

    def _step(self) -> list[Sequence]:
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        if not plan:
            assert not self.scheduler.waiting, "requests wait, nothing runs, and still none was admitted"
            return []
        batch = Batch(plan, self.runner.cache)
        h_TD, logits_MV = self.runner.run(batch)
        if batch.prompt_rows:
            logits_MV = self._score_prompts(batch, logits_MV)
        sampled = sample(logits_MV, batch.seqs, batch.counts, batch.likeliest_M) if len(logits_MV) else []
        n_new, finished = self._update(batch, logits_MV, sampled)
        if self.drafter is not None:
            self.drafter.draft(batch, h_TD)
        self._count(batch, n_new, time.perf_counter() - started)
        return finished

    def _update(self, batch: Batch, logits_MV: Tensor, sampled: list[int]) -> tuple[int, list[Sequence]]:
        """Give every sequence its new tokens; returns how many came after a request's first, and who finished."""
        finished: list[Sequence] = []
        n_decoded = at = 0
        for seq, start, n, count in zip(batch.seqs, batch.starts, batch.q_lens, batch.counts):
            seq.n_computed = start + n
            if count == 0:
                continue
            drafts = seq.drafts
            tokens = verify(sampled[at : at + count], drafts)
            right = len(tokens) - 1
            seq.n_computed -= len(drafts) - right
            seq.drafted += len(drafts)
            seq.accepted += right
            self.stats.drafted += len(drafts)
            self.stats.accepted += right
            seq.drafts = []
            logprobs: list[TokenLogprob] | None = None
            if seq.params.logprobs is not None:
                logprobs = log_probabilities(logits_MV[at : at + len(tokens)], tokens, seq.params.logprobs)
            n_before = len(seq.token_ids)
            seq.append(tokens, logprobs)
            n_decoded += len(seq.token_ids) - max(n_before, seq.n_prompt + 1)
            if seq.finish_reason is not None:
                finished.append(seq)
                self.scheduler.remove(seq)
            at += count
        return n_decoded, finished

    def _score_prompts(self, batch: Batch, logits_MV: Tensor) -> Tensor:
        """Take the log-probabilities of prompt tokens; returns the rows that are sampled from."""
        for seq, first, last in batch.prompt_rows:
            assert seq.prompt_logprobs is not None
            known = len(seq.prompt_logprobs)
            tokens = seq.token_ids[known : known + last - first]
            seq.prompt_logprobs += log_probabilities(logits_MV[first:last], tokens, seq.params.logprobs or 0)
        return logits_MV[batch.sample_rows]

    def _count(self, batch: Batch, n_decoded: int, seconds: float) -> None:
        stats = self.stats
        n_prefill = n_rows = 0
        for seq, start, n in zip(batch.seqs, batch.starts, batch.q_lens):
            n_rows += n
            if start < seq.n_prompt:
                n_prefill += n
        stats.steps += 1
        stats.preemptions = self.scheduler.n_preemptions
        stats.prefill_tokens += n_prefill
        stats.decode_tokens += n_decoded
        stats.prefill_seconds += seconds * n_prefill / n_rows
        stats.decode_seconds += seconds * (n_rows - n_prefill) / n_rows
