"""What a caller gets back: finished requests, pieces of a stream, log-probabilities, timings."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]


class TokenLogprob(NamedTuple):
    """One token, its natural-log probability under the model, and the likeliest tokens there, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RequestMetrics:
    """Timings in seconds since the request was added, and what speculation brought.

    ttft: until the first output token was known. seconds: until the last. tokens_per_second: output tokens after the
    first over the time they took; 0 where there is only one. drafted, accepted: draft tokens verified, and how many
    of them were what the model itself chose. preemptions: how often the cache was taken away and computed again.
    """

    prompt_tokens: int
    output_tokens: int
    ttft: float
    seconds: float
    tokens_per_second: float
    drafted: int = 0
    accepted: int = 0
    preemptions: int = 0


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A finished request.

    prompt: the text that was given, or None where token ids were. text: the continuation, without the stop string and
    special tokens; None without a tokenizer. token_ids: every generated token, with the end-of-sequence token or the
    tokens of a stop string at their end. finish_reason: "stop" (end of sequence or stop string) or "length".
    logprobs: one entry for each of token_ids, where asked for. prompt_logprobs: one entry for each prompt token, None
    for the first, which nothing predicts.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    text: str | None
    token_ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenLogprob] | None
    prompt_logprobs: list[TokenLogprob | None] | None
    metrics: RequestMetrics


@dataclass(frozen=True, kw_only=True)
class StreamEvent:
    """What one step added to a streamed request.

    text: complete characters that no stop string can take back any more; the pieces of all events together are the
    final text. token_ids: the step's new tokens, several when drafts were accepted. logprobs: theirs, where asked for.
    The last event carries finish_reason and the whole output.
    """

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    output: RequestOutput | None = None
