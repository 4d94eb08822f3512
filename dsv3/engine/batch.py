"""One step's input: the tokens of all scheduled sequences end to end, and what attention must know about them."""

import torch
from torch import Tensor

from dsv3.engine.sequence import Sequence
from dsv3.layers.cache import AttnContext, LatentCache


def _fed(scheduled: tuple[Sequence, int]) -> int:
    return scheduled[1]


class Batch:
    """A ragged batch. Sequence b feeds ``q_lens[b]`` tokens from position ``starts[b]`` on.

    tokens: their ids, one after another. pages: each sequence's, as they were when the step began.
    tokens_T, ctx: the same on the device, with positions and lengths for attention; made when first asked for, since a
        recorded step brings its own.
    counts: how many of each sequence's last rows are sampled from: 0 inside a prompt, else one after its last known
        token and one after each draft.
    logit_rows: the rows of T that the head is applied to, None for all of them. Those of prompts whose
        log-probabilities were asked for come on top of the sampled ones.
    sample_rows: which of the computed logits are sampled from, None for all of them.
    likeliest_M: each row's likeliest token, where the step that ran has found it already.
    prompt_rows: (sequence, first, last): computed logits first..last-1 predict the next prompt tokens of a sequence.
    """

    __slots__ = (
        "_cache", "_ctx", "_tokens_T", "counts", "likeliest_M", "logit_rows", "pages", "prompt_rows", "q_lens",
        "sample_rows", "seqs", "starts", "tokens",
    )  # fmt: skip

    def __init__(self, plan: list[tuple[Sequence, int]], cache: LatentCache) -> None:
        seqs: list[Sequence] = []
        starts: list[int] = []
        q_lens: list[int] = []
        counts: list[int] = []
        tokens: list[int] = []
        wants_prompt = False
        for seq, n in sorted(plan, key=_fed):  # equal lengths side by side: attention takes them together
            start = seq.n_computed
            fed = seq.token_ids[start : start + n]
            if start + n >= len(seq.token_ids):
                counts.append(1 + len(seq.drafts))
                fed += seq.drafts
            else:
                counts.append(0)
            wants_prompt = wants_prompt or (seq.prompt_logprobs is not None and len(seq.prompt_logprobs) < seq.n_prompt)
            seqs.append(seq)
            starts.append(start)
            q_lens.append(n)
            tokens += fed
        device = cache.storage.device
        self.seqs, self.starts, self.q_lens, self.counts = seqs, starts, q_lens, counts
        self.tokens, self.pages, self._cache = tokens, [seq.pages[:] for seq in seqs], cache
        self._tokens_T: Tensor | None = None
        self._ctx: AttnContext | None = None
        self.logit_rows: Tensor | None = None
        self.sample_rows: Tensor | None = None
        self.likeliest_M: Tensor | None = None
        self.prompt_rows: list[tuple[Sequence, int, int]] = []
        if counts != q_lens:  # in a step of pure decoding every row is sampled from
            self._choose_rows(wants_prompt, device)

    @property
    def tokens_T(self) -> Tensor:
        if self._tokens_T is None:
            self._tokens_T = torch.tensor(self.tokens, device=self._cache.storage.device)
        return self._tokens_T

    @property
    def ctx(self) -> AttnContext:
        if self._ctx is None:
            self._ctx = AttnContext.build(self._cache, self.pages, self.starts, self.q_lens)
        return self._ctx

    def _choose_rows(self, wants_prompt: bool, device: torch.device) -> None:
        logit_rows: list[int] = []
        sample_rows: list[int] = []
        at = 0
        for seq, start, n, count in zip(self.seqs, self.starts, self.q_lens, self.counts):
            first = at + n - count
            if wants_prompt and seq.prompt_logprobs is not None:
                # Position i predicts token i + 1. After a preemption some are known already.
                from_position = max(start, len(seq.prompt_logprobs) - 1)
                n_prompt_rows = min(start + n, seq.n_prompt - 1) - from_position
                if n_prompt_rows > 0:
                    self.prompt_rows.append((seq, len(logit_rows), len(logit_rows) + n_prompt_rows))
                    logit_rows.extend(range(at + from_position - start, at + from_position - start + n_prompt_rows))
            sample_rows.extend(range(len(logit_rows), len(logit_rows) + count))
            logit_rows.extend(range(first, at + n))
            at += n
        self.logit_rows = torch.tensor(logit_rows, dtype=torch.int64, device=device)
        if self.prompt_rows:
            self.sample_rows = torch.tensor(sample_rows, dtype=torch.int64, device=device)
