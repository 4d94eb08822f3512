import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.engine.outputs import TokenLogprob
from dsv3.engine.params import SamplingParams
from dsv3.engine.sequence import OutputText, Sequence


class Pieces:
    """A detokenizer for tokens that are their own text; holds the last piece back until it is flushed, if told to."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self.pieces, self.tail = pieces, tail

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return self.tail


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read letter by letter; the first moment at which some stop string has just been completed ends it."""
    for end in range(len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


@settings(deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    tail=st.text("abc", max_size=2),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_end_the_text_however_it_is_cut(pieces: list[str], tail: str, stops: list[str]) -> None:
    text = OutputText(Pieces(pieces, tail), tuple(stops))
    expected, stopped = cut_at_first_stop("".join(pieces) + tail, stops)
    shown, hit = "", False
    for i in range(len(pieces)):
        hit = text.push(i)
        assert text.released.startswith(shown), "text that was shown was taken back"
        assert expected.startswith(text.released), "text was shown that belongs to a stop string"
        shown = text.released
        if hit:
            break
    if not hit:
        hit = text.close()
    assert (text.released, hit) == (expected, stopped)


def test_no_more_text_is_held_back_than_needed() -> None:
    text = OutputText(Pieces(["hello s", "t", "ay", " s"]), ("stop",))
    shown = []
    for i in range(4):
        assert not text.push(i)
        shown.append(text.released)
    assert shown == ["hello ", "hello ", "hello stay", "hello stay "]
    text.close()
    assert text.released == "hello stay s"


def make(max_tokens: int = 10, *, eos: int | None = None, logprobs: int | None = None, **more: object) -> Sequence:
    params = SamplingParams(max_tokens=max_tokens, logprobs=logprobs, **more)  # type: ignore[arg-type]
    return Sequence([5, 6], params, max_seq_len=9, eos_ids=frozenset() if eos is None else frozenset({eos}))


def test_the_end_of_sequence_inside_a_run_drops_what_follows() -> None:
    seq = make(eos=3, logprobs=0)
    seq.append([1, 3, 4], [TokenLogprob(t, -1.0) for t in (1, 3, 4)])
    assert seq.finish_reason == "stop"
    assert seq.output().token_ids == [1, 3]
    assert [entry.token_id for entry in seq.output().logprobs or ()] == [1, 3]


def test_ignore_eos_goes_on() -> None:
    seq = make(eos=3, ignore_eos=True)
    seq.append([3])
    assert seq.finish_reason is None


@pytest.mark.parametrize(("max_tokens", "length"), [(3, 3), (100, 7)])
def test_length_ends_at_max_tokens_or_at_the_context(max_tokens: int, length: int) -> None:
    seq = make(max_tokens)
    for _ in range(4):
        if seq.finish_reason is None:
            seq.append([1, 1])
    assert seq.finish_reason == "length"
    assert len(seq.output().token_ids) == length


def test_noise_is_a_function_of_seed_and_position() -> None:
    a, b = make(seed=1), make(seed=1)
    assert [a.noise(i) for i in (2, 3, 4)] == [b.noise(i) for i in (4, 3, 2)][::-1]
    assert make(seed=2).noise(2) != a.noise(2)
    assert make().noise(2) != make().noise(2)
    assert 0 <= a.noise(2) < 1


def test_metrics_of_a_single_token() -> None:
    seq = make(1)
    seq.append([1])
    metrics = seq.output().metrics
    assert metrics.prompt_tokens == 2
    assert metrics.output_tokens == 1
    assert metrics.tokens_per_second == 0
    assert 0 <= metrics.ttft == metrics.seconds
