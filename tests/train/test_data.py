"""Packing, mixing, sharding and resuming, on stores whose every token is told apart by its id."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3.errors import ConfigError
from dsv3.train.corpus import Documents, TokenStore
from dsv3.train.data import Batch, PackedDataset, ValidationSet
from tests.gpu import never_waiting

BOS, EOS = 0, 1
LENGTHS = {"en": [7, 40, 3, 25, 2, 90, 11], "es": [33, 5, 64], "zh": [9] * 12}


def numbered(lengths: dict[str, list[int]]) -> TokenStore:
    """Token ids count through the whole store, so an id says which language, document and place it comes from.

    They start beyond 32,767, where a 16-bit id read as a signed number would turn negative.
    """
    languages, first = {}, 40_000
    for language, parts in lengths.items():
        starts = np.cumsum([0, *parts])
        tokens = np.arange(first, first + starts[-1]).astype(np.uint16)
        languages[language] = Documents(tokens, starts, np.array(parts) * 3)
        first += int(starts[-1])
    return TokenStore(languages, "", 2**16, BOS, EOS)


def texts(lengths: dict[str, list[int]]) -> TokenStore:
    """Documents that begin with BOS and end with EOS."""
    store = numbered(lengths)
    for documents in store.languages.values():
        documents.tokens[documents.starts[:-1]] = BOS
        documents.tokens[documents.starts[1:] - 1] = EOS
    return store


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [tuple(row) for batch in batches for row in batch.tokens_BS.tolist()]


def epoch_of(data: PackedDataset, epoch: int) -> list[Batch]:
    return [data.batch(epoch, step) for step in range(data.steps_per_epoch)]


def assert_equal(a: Batch, b: Batch) -> None:
    for name in ("tokens_BS", "documents_BS", "positions_BS", "languages_B"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@given(
    lengths=st.lists(st.lists(st.integers(2, 30), min_size=1, max_size=9), min_size=1, max_size=3),
    seq_len=st.integers(1, 12),
    mtp=st.integers(0, 2),
    epoch=st.integers(0, 3),
)
def test_an_epoch_takes_every_target_once(lengths: list[list[int]], seq_len: int, mtp: int, epoch: int) -> None:
    store = numbered(dict(zip("abc", lengths)))
    if any(sum(parts) < seq_len + 1 + mtp for parts in lengths):
        with pytest.raises(ConfigError, match="fewer than one row"):
            PackedDataset(store, seq_len, 1, mtp=mtp)
        return
    data = PackedDataset(store, seq_len, 1, mtp=mtp)
    batches = epoch_of(data, epoch)
    targets = [t for row in rows_of(batches) for t in row[1 : seq_len + 1]]
    assert len(targets) == len(set(targets)) == data.steps_per_epoch * data.tokens_per_step
    # What an epoch leaves out is less than one row per language.
    assert all(
        len(d.tokens) - 1 - mtp - seq_len < n * seq_len for d, n in zip(store.languages.values(), counts(batches))
    )
    for batch in batches:
        assert batch.tokens_BS.shape == (1, seq_len + 1 + mtp)
        check_boundaries(store, data, batch)


def counts(batches: list[Batch]) -> list[int]:
    return torch.bincount(torch.cat([batch.languages_B for batch in batches]), minlength=3).tolist()


def check_boundaries(store: TokenStore, data: PackedDataset, batch: Batch) -> None:
    """Documents stay whole and in one language; document numbers and positions say where each begins."""
    for tokens, numbers, positions, language in zip(
        batch.tokens_BS.tolist(), batch.documents_BS.tolist(), batch.positions_BS.tolist(), batch.languages_B.tolist()
    ):
        documents = store[data.languages[language]]
        first = int(documents.tokens[0])
        begins = {first + int(start) for start in documents.starts[:-1]}
        assert all(first <= token < first + len(documents.tokens) for token in tokens)
        assert positions[0] == 0
        for i in range(1, len(tokens)):
            if numbers[i] == numbers[i - 1]:
                assert tokens[i] == tokens[i - 1] + 1
                assert tokens[i] not in begins
                assert positions[i] == positions[i - 1] + 1
            else:
                assert tokens[i] in begins
                assert tokens[i - 1] + 1 in begins | {first + len(documents.tokens)}
                assert positions[i] == 0


def test_rows_continue_each_other() -> None:
    """The 1 + mtp tokens beyond a row are those with which another row of the pass begins."""
    data = PackedDataset(numbered({"en": [50, 31, 20]}), 10, 1, mtp=1)
    rows = rows_of(epoch_of(data, 0))
    heads = {row[:2] for row in rows}
    assert sum(row[-2:] in heads for row in rows) == len(rows) - 1  # all but the last of the stream


def test_batches_depend_on_seed_epoch_and_step_alone() -> None:
    store = numbered(LENGTHS)
    data, same = (PackedDataset(store, 8, 4, seed=3) for _ in range(2))
    for epoch, step in ((2, 1), (0, 0), (1, 5)):  # in any order
        assert_equal(data.batch(epoch, step), same.batch(epoch, step))
    orders = {tuple(rows_of(epoch_of(d, e))) for d in (data, PackedDataset(store, 8, 4, seed=4)) for e in (0, 1)}
    assert len(orders) == 4


def test_resuming_continues_the_iteration() -> None:
    store = numbered(LENGTHS)
    whole = PackedDataset(store, 8, 4).iterate()
    taken = [next(whole) for _ in range(30)]
    assert taken[-1][0] > 1  # over the border of two epochs
    epoch, step, _ = taken[17]
    resumed = PackedDataset(store, 8, 4).iterate(epoch, step + 1)
    for expected in taken[18:]:
        got = next(resumed)
        assert got[:2] == expected[:2]
        assert_equal(got[2], expected[2])


def test_resuming_after_the_last_step_starts_the_next_epoch() -> None:
    data = PackedDataset(numbered(LENGTHS), 8, 4)
    epoch, step, batch = next(data.iterate(0, data.steps_per_epoch))
    assert (epoch, step) == (1, 0)
    assert_equal(batch, data.batch(1, 0))


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(world: int) -> None:
    store = numbered(LENGTHS)
    alone = PackedDataset(store, 8, 2 * world)
    ranks = [PackedDataset(store, 8, 2, rank=rank, world=world) for rank in range(world)]
    for step in range(alone.steps_per_epoch):
        parts = [data.batch(1, step) for data in ranks]
        assert torch.cat([part.tokens_BS for part in parts]).equal(alone.batch(1, step).tokens_BS)
    assert all(data.steps_per_epoch == alone.steps_per_epoch for data in ranks)
    assert all(data.tokens_per_step == alone.tokens_per_step == 2 * world * 8 for data in ranks)


def test_proportions() -> None:
    """Rows per epoch follow the shares; a language that must repeat uses all its rows before any twice."""
    store = numbered({"en": [100] * 6, "es": [50, 51], "zh": [30] * 10})
    data = PackedDataset(store, 10, 1, proportions={"en": 1, "es": 3})
    n_rows = 59 + 9 + 29  # as many as one pass over everything has
    assert data.steps_per_epoch == n_rows
    assert counts(epoch_of(data, 0)) == counts(epoch_of(data, 5)) == [24, 73, 0]
    spanish = [batch for epoch in range(9) for batch in epoch_of(data, epoch) if batch.languages_B[0] == 1]
    times = np.zeros(101, dtype=int)
    for row in rows_of(spanish):
        times[np.array(row[1:11]) - 40_600] += 1
    assert len(spanish) == 73 * 9 == 9 * 73  # 73 passes of 9 rows, each with 90 of the 100 targets
    assert times.sum() == 73 * 90
    assert times.max() <= 73
    assert times[1:].min() > 20  # a pass leaves out its tail only, which is another one in another order


@given(
    share=st.floats(0.02, 2.5),
    lengths=st.lists(st.integers(2, 40), min_size=4, max_size=12),
    seq_len=st.integers(1, 12),
    n_epochs=st.integers(1, 6),
)
def test_an_epoch_takes_the_share_of_a_pass_that_the_file_states(
    share: float, lengths: list[int], seq_len: int, n_epochs: int
) -> None:
    """Epochs continue the pass: no row comes again before all of them came once."""
    lengths[0] += 3 * seq_len  # a row at least
    store = numbered({"en": [60] * 3, "es": lengths})
    data = PackedDataset(dataclasses.replace(store, per_epoch={"es": share}), seq_len, 1)
    per_pass = (sum(lengths) - 2) // seq_len
    epochs = [epoch_of(data, epoch) for epoch in range(n_epochs)]
    assert [counts(batches)[:2] for batches in epochs] == [[178 // seq_len, round(per_pass * share)]] * n_epochs
    rows = [row for batches in epochs for batch in batches if batch.languages_B[0] == 1 for row in rows_of([batch])]
    # Within the passes that are complete, every target occurs as often as there were passes, less the tail each drops.
    times = Counter(target for row in rows for target in row[1 : seq_len + 1])
    assert max(times.values(), default=0) <= -(-len(rows) // per_pass)
    if len(rows) <= per_pass:
        assert len(times) == len(rows) * seq_len


def test_proportions_overrule_the_file() -> None:
    store = dataclasses.replace(numbered({"en": [100] * 6, "es": [100] * 6}), per_epoch={"es": 0.1})
    data = PackedDataset(store, 10, 1, proportions={"en": 1, "es": 1})
    assert counts(epoch_of(data, 0))[:2] == [59, 59]


@pytest.mark.parametrize("mtp", [0, 1, 2])
def test_documents_of_a_rows_length_fill_one_row_each(mtp: int) -> None:
    store = dataclasses.replace(numbered({"en": [40] * 3, "es": [10] * 13}), per_epoch={"es": 0.25})
    data = PackedDataset(store, 10, 1, mtp=mtp)
    seen: list[int] = []
    for epoch in range(4):
        batches = [batch for batch in epoch_of(data, epoch) if batch.languages_B[0] == 1]
        assert len(batches) == 3
        for batch in batches:
            tokens = batch.tokens_BS[0, :10]
            assert (int(tokens[0]) - 40_120) % 10 == 0
            assert torch.equal(tokens, tokens[0] + torch.arange(10))
            assert len(batch.documents_BS[0, :10].unique()) == 1
            assert batch.positions_BS[0, :11].tolist() == [*range(10), 0]
            seen.append(int(tokens[0]))
    assert len(set(seen)) == 12  # four epochs of a quarter: all documents but the one that ends the pass


def test_languages_and_books_are_mixed_within_a_batch() -> None:
    data = PackedDataset(numbered({"en": [400] * 5, "es": [400] * 5}), 8, 50)
    for batch in epoch_of(data, 0):
        assert 10 < int(batch.languages_B.sum()) < 40
        assert len(batch.documents_BS[:, 0].unique()) >= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"mtp": -1}, "mtp is -1"),
        ({"rank": 2, "world": 2}, "rank 2 of a world of 2"),
        ({"seq_len": 200}, "'en' has 178 tokens, fewer than one row of 202"),
        ({"batch_size": 100}, "fewer than one step of 100 x 1"),
        ({"batch_size": 10, "world": 9}, "fewer than one step of 10 x 9"),
        ({"proportions": {"en": 1, "fr": 1}}, "proportions name fr; the token file holds en, es, zh"),
        ({"proportions": {"en": -1, "es": 2}}, "one of them positive"),
        ({"proportions": {}}, "one of them positive"),
        ({"proportions": {"en": math.nan}}, "one of them positive"),
    ],
)
def test_errors(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PackedDataset(numbered(LENGTHS), **({"seq_len": 8, "batch_size": 4} | options))


@pytest.mark.parametrize(("epoch", "step"), [(-1, 0), (0, -1), (0, 10**6)])
def test_a_step_outside_the_epoch(epoch: int, step: int) -> None:
    data = PackedDataset(numbered(LENGTHS), 8, 4)
    with pytest.raises(ConfigError, match=f"steps 0 to {data.steps_per_epoch - 1}"):
        data.batch(epoch, step)


# --------------------------------------------------------------------------------------------------------- validation


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=8),
    seq_len=st.integers(1, 50),
    batch_size=st.integers(1, 5),
    mtp=st.integers(0, 2),
)
def test_validation_scores_every_text_token_once(lengths: list[int], seq_len: int, batch_size: int, mtp: int) -> None:
    store = texts({"en": [20, 4], "es": lengths})
    data = ValidationSet(store, "es", seq_len, batch_size, mtp=mtp)
    batches = list(data)
    assert len(batches) == len(data)
    scored: list[int] = []
    for batch, scored_BS in batches:
        assert batch.tokens_BS.shape[1] == data.seq_len + 1 + mtp
        assert scored_BS.shape == (len(batch.tokens_BS), data.seq_len)
        assert (batch.languages_B == 1).all()
        scored += batch.tokens_BS[:, 1 : data.seq_len + 1][scored_BS].tolist()
    tokens = store["es"].tokens
    assert sorted(scored) == sorted(tokens[tokens != BOS].tolist())


def test_validation_bits_per_byte_of_a_uniform_model() -> None:
    """A model that knows nothing needs log2(V) bits for each token but BOS."""
    store = texts(LENGTHS)
    data = ValidationSet(store, "en", 16, 3)
    nats = sum(math.log(store.vocab_size) * int(scored_BS.sum()) for _, scored_BS in data)
    n_text = sum(LENGTHS["en"]) - len(LENGTHS["en"])
    assert nats / math.log(2) / data.n_bytes == pytest.approx(16 * n_text / (3 * sum(LENGTHS["en"])))


def test_validation_can_be_repeated() -> None:
    data = ValidationSet(texts(LENGTHS), "zh", 16, 3)
    for (a, scored_a), (b, scored_b) in zip(data, data, strict=True):
        assert_equal(a, b)
        assert torch.equal(scored_a, scored_b)


@pytest.mark.parametrize("options", [{"seq_len": 0}, {"batch_size": 0}, {"mtp": -1}])
def test_validation_errors(options: dict) -> None:
    with pytest.raises(ConfigError, match="expected at least 1, 1 and 0"):
        ValidationSet(texts(LENGTHS), "en", **({"seq_len": 8, "batch_size": 1} | options))
    with pytest.raises(ConfigError, match="no language 'fr'"):
        ValidationSet(texts(LENGTHS), "fr", 8, 1)


# ---------------------------------------------------------------------------------------------------------------- gpu


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu_batches_are_equal_and_never_wait() -> None:
    store = numbered(LENGTHS)
    here, there = (PackedDataset(store, 8, 4, device=device) for device in ("cpu", "cuda"))
    there.batch(0, 0)  # makes the plan of the epoch, which copies it to the device
    with never_waiting():
        batches = [there.batch(0, step) for step in range(there.steps_per_epoch)]
    for step, batch in enumerate(batches):
        assert batch.tokens_BS.is_cuda
        expected = here.batch(0, step)
        for name in ("tokens_BS", "documents_BS", "positions_BS", "languages_B"):
            assert torch.equal(getattr(batch, name).cpu(), getattr(expected, name))
