import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.engine.blocks import PageAllocator
from dsv3.engine.params import SamplingParams
from dsv3.engine.scheduler import Scheduler
from dsv3.engine.sequence import Sequence
from dsv3.errors import CapacityError


def make(n_prompt: int, max_tokens: int) -> Sequence:
    return Sequence(list(range(n_prompt)), SamplingParams(max_tokens=max_tokens), max_seq_len=1000)


def feed(scheduler: Scheduler, plan: list[tuple[Sequence, int]], accepted: random.Random | None = None) -> None:
    """What the engine does with a plan, with a random number of right drafts."""
    for seq, n in plan:
        seq.n_computed += n
        if seq.n_computed < len(seq.token_ids):
            continue
        n_drafts = len(seq.drafts)
        right = accepted.randint(0, n_drafts) if accepted else n_drafts
        seq.n_computed -= n_drafts - right
        seq.append([1] * (right + 1))
        room = seq.max_len - len(seq.token_ids) - 1
        seq.drafts = [2] * min(accepted.randint(0, 2), room) if accepted and not seq.finish_reason else []
        if seq.finish_reason:
            scheduler.remove(seq)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20)), min_size=1, max_size=10),
    batch_size=st.integers(1, 4),
    extra_budget=st.integers(0, 20),
    page_size=st.integers(1, 8),
    spare_pages=st.integers(0, 10),
    seed=st.integers(0, 1000),
)
def test_every_request_finishes_and_no_rule_is_broken(
    requests: list[tuple[int, int]], batch_size: int, extra_budget: int, page_size: int, spare_pages: int, seed: int
) -> None:
    rng = random.Random(seed)
    lookahead = 1
    longest = max(n + m for n, m in requests) + lookahead
    allocator = PageAllocator(-(-longest // page_size) + spare_pages, page_size)
    budget = batch_size * 3 + extra_budget
    scheduler = Scheduler(allocator, max_batch_size=batch_size, max_step_tokens=budget, lookahead=lookahead)
    seqs = [make(n, m) for n, m in requests]
    for seq in seqs:
        scheduler.add(seq)
    for _ in range(5000):
        decoding = [seq for seq in scheduler.running if seq.n_pending == 1]
        plan = scheduler.schedule()
        if not plan:
            break
        planned = [seq for seq, _ in plan]
        assert len(set(planned)) == len(planned) <= batch_size
        assert 0 < sum(n for _, n in plan) <= budget
        assert all(seq in planned or seq in scheduler.waiting for seq in decoding), "a decoding request was passed over"
        owned = [page for seq in seqs for page in seq.pages]
        assert len(set(owned)) == len(owned)
        for seq, n in plan:
            assert len(seq.pages) * page_size >= seq.n_computed + n + lookahead
            assert 1 <= n <= seq.n_pending + len(seq.drafts)
        feed(scheduler, plan, rng)
    assert all(seq.finish_reason == "length" for seq in seqs)
    assert all(len(seq.token_ids) == seq.max_len for seq in seqs)
    assert allocator.n_free == allocator.n_pages
    assert not scheduler.running
    assert not scheduler.waiting


def test_a_long_prompt_goes_in_chunks_and_never_stops_a_decoding_request() -> None:
    scheduler = Scheduler(PageAllocator(100, 4), max_batch_size=4, max_step_tokens=10)
    talker, reader = make(2, 50), make(35, 5)
    scheduler.add(talker)
    feed(scheduler, scheduler.schedule())
    scheduler.add(reader)
    chunks = []
    while reader.n_computed < 35:
        plan = dict(scheduler.schedule())
        assert plan[talker] == 1
        chunks.append(plan[reader])
        feed(scheduler, list(plan.items()))
    assert chunks == [9, 9, 9, 8]


def test_first_come_first_served_even_where_a_later_one_would_fit() -> None:
    scheduler = Scheduler(PageAllocator(4, 4), max_batch_size=4, max_step_tokens=64)
    first, big, small = make(6, 2), make(12, 2), make(1, 2)
    for seq in (first, big, small):
        scheduler.add(seq)
    assert [seq for seq, _ in scheduler.schedule()] == [first]


def test_the_youngest_gives_way_and_keeps_its_tokens() -> None:
    scheduler = Scheduler(PageAllocator(4, 4), max_batch_size=2, max_step_tokens=64)
    old, young = make(7, 9), make(7, 9)
    scheduler.add(old)
    scheduler.add(young)
    feed(scheduler, scheduler.schedule())
    feed(scheduler, scheduler.schedule())  # both now fill two pages
    plan = scheduler.schedule()
    assert [seq for seq, _ in plan] == [old]
    assert young.pages == []
    assert young.n_computed == 0
    assert len(young.token_ids) == 9
    assert young.preemptions == 1
    assert list(scheduler.waiting) == [young]


def test_a_request_that_can_never_fit_is_refused() -> None:
    scheduler = Scheduler(PageAllocator(4, 4), max_batch_size=2, max_step_tokens=64)
    with pytest.raises(CapacityError, match="20 tokens"):
        scheduler.add(make(10, 10))
    assert not scheduler.waiting


def test_recovery_after_an_interrupt_loses_and_doubles_nobody() -> None:
    scheduler = Scheduler(PageAllocator(8, 4), max_batch_size=2, max_step_tokens=64)
    seqs = [make(5, 5), make(6, 5), make(7, 5)]
    for seq in seqs:
        scheduler.add(seq)
    feed(scheduler, scheduler.schedule())
    seqs[0].finish_reason = "stop"  # cut off before the scheduler heard of it
    scheduler.waiting.appendleft(seqs[1])  # cut off between joining one list and leaving the other
    scheduler.recover()
    assert list(scheduler.waiting) == seqs[1:]
    assert scheduler.allocator.n_free == 8
    assert all(seq.n_computed == 0 and seq.pages == [] for seq in seqs)
