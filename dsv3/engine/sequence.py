"""One request's whole state: its tokens, how many of them are cached, its text so far, and how it ended.

The engine has no separate prefill and decode. A sequence has ``token_ids`` (prompt, then output), of which the first
``n_computed`` have their latents in the cache. A step computes the next few; where it reaches the last one, the logits
there give a new token. A prompt, a chunk of a prompt, one decoded token and a preempted request that starts over are
all this same case.
"""

import itertools
import random
import time
from typing import Protocol

from dsv3.engine.outputs import FinishReason, RequestMetrics, RequestOutput, TokenLogprob
from dsv3.engine.params import SamplingParams

_ids = itertools.count()


class Detokenizer(Protocol):
    """Turns token ids into text one by one, giving out complete characters only."""

    def push(self, token_id: int, /) -> str: ...

    def flush(self) -> str: ...


class OutputText:
    """Text on its way out: what may still turn out to be the beginning of a stop string is held back.

    ``released`` never has to be taken back, so a stream may show it. The stop string that is complete first ends the
    text, whatever pieces the text came in; of several that end together, the one that began first.
    """

    __slots__ = ("_detokenizer", "_held", "_longest", "_stops", "released")

    def __init__(self, detokenizer: Detokenizer, stops: tuple[str, ...] = ()) -> None:
        self.released = ""
        self._detokenizer = detokenizer
        self._held = ""
        self._stops = stops
        self._longest = max(map(len, stops), default=0)

    def push(self, token_id: int) -> bool:
        """Take one token. True where it completes a stop string; the text then ends before that string."""
        return self._take(self._detokenizer.push(token_id))

    def close(self) -> bool:
        """No more tokens will come: bytes of an incomplete character and held text come out. True as for ``push``."""
        stopped = self._take(self._detokenizer.flush())
        self.released += self._held
        self._held = ""
        return stopped

    def _take(self, piece: str) -> bool:
        if not self._stops:
            self.released += piece
            return False
        text = self._held + piece
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.released += text[: min(ends)[1]]
            self._held = ""
            return True
        n_held = self._possible_start(text)
        self.released += text[: len(text) - n_held]
        self._held = text[len(text) - n_held :]
        return False

    def _possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for n in range(min(len(text), self._longest - 1), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self._stops):
                return n
        return 0


class Sequence:
    """State of one request. The scheduler owns ``pages`` and ``n_computed``; nothing here touches a tensor."""

    __slots__ = (
        "_noise",
        "_rng",
        "_started",
        "_text",
        "_times",
        "accepted",
        "drafted",
        "drafts",
        "eos_ids",
        "finish_reason",
        "id",
        "logprobs",
        "max_len",
        "n_computed",
        "n_prompt",
        "pages",
        "params",
        "preemptions",
        "prompt",
        "prompt_logprobs",
        "token_ids",
    )

    def __init__(
        self,
        token_ids: list[int],
        params: SamplingParams,
        *,
        max_seq_len: int,
        prompt: str | None = None,
        eos_ids: frozenset[int] = frozenset(),
        detokenizer: Detokenizer | None = None,
    ) -> None:
        self.id = next(_ids)
        self.prompt = prompt
        self.params = params
        self.token_ids = list(token_ids)
        self.n_prompt = len(token_ids)
        self.max_len = min(self.n_prompt + params.max_tokens, max_seq_len)
        self.eos_ids = frozenset[int]() if params.ignore_eos else eos_ids
        self.pages: list[int] = []
        self.n_computed = 0
        self.drafts: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] | None = None if params.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprob | None] | None = [None] if params.prompt_logprobs else None
        self.drafted = self.accepted = self.preemptions = 0
        self._text = None if detokenizer is None else OutputText(detokenizer, tuple(params.stop))
        self._rng = random.Random(params.seed)
        self._noise: list[float] = []
        self._started = time.perf_counter()
        self._times: tuple[float, float] | None = None  # when the first and the latest output token were known

    @property
    def n_pending(self) -> int:
        """Known tokens that the cache does not hold yet: the prompt at first, one in steady decoding."""
        return len(self.token_ids) - self.n_computed

    @property
    def output_ids(self) -> list[int]:
        return self.token_ids[self.n_prompt :]

    @property
    def text(self) -> str | None:
        """Text that is final; None without a tokenizer."""
        return None if self._text is None else self._text.released

    def noise(self, position: int) -> float:
        """The uniform number in [0, 1) that decides which token stands at index ``position`` of ``token_ids``.

        A pure function of seed and position. So neither batch mates nor preemption change a sampled request, and one
        that is decoded speculatively draws exactly what plain decoding would have drawn.
        """
        index = position - self.n_prompt
        while len(self._noise) <= index:
            self._noise.append(self._rng.random())
        return self._noise[index]

    def append(self, tokens: list[int], logprobs: list[TokenLogprob] | None = None) -> None:
        """Take the tokens of one step, up to the first that ends the sequence; those behind it never happened."""
        now = time.perf_counter()
        self._times = (now if self._times is None else self._times[0], now)
        for i, token in enumerate(tokens):
            self.token_ids.append(token)
            if self.logprobs is not None and logprobs is not None:
                self.logprobs.append(logprobs[i])
            if token in self.eos_ids:
                self._finish("stop")
            elif self._text is not None and self._text.push(token):
                self.finish_reason = "stop"
            elif len(self.token_ids) >= self.max_len:
                self._finish("length")
            if self.finish_reason is not None:
                return

    def _finish(self, reason: FinishReason) -> None:
        self.finish_reason = reason
        if self._text is not None and self._text.close():
            self.finish_reason = "stop"

    def restart(self) -> None:
        """Forget the cache, keep the tokens: they are computed again when pages are free."""
        self.n_computed = 0
        self.drafts = []

    def output(self) -> RequestOutput:
        """The finished request. Only valid once ``finish_reason`` is set."""
        assert self.finish_reason is not None
        assert self._times is not None
        first, last = self._times
        output_ids = self.output_ids
        return RequestOutput(
            prompt=self.prompt,
            prompt_token_ids=self.token_ids[: self.n_prompt],
            text=self.text,
            token_ids=output_ids,
            finish_reason=self.finish_reason,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
            metrics=RequestMetrics(
                prompt_tokens=self.n_prompt,
                output_tokens=len(output_ids),
                ttft=first - self._started,
                seconds=last - self._started,
                tokens_per_second=(len(output_ids) - 1) / (last - first) if last > first else 0.0,
                drafted=self.drafted,
                accepted=self.accepted,
                preemptions=self.preemptions,
            ),
        )
