"""Pages, slots and masks: what AttnContext.build says, against a plain statement of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.config import ModelConfig
from dsv3.layers.cache import BATCHED_QUERIES, AttnContext, LatentCache, SequenceGroup
from tests.conftest import SmallConfig

CONFIG = ModelConfig(n_layers=2, kv_lora_rank=4, qk_rope_head_dim=2)


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[list[int]], list[int], list[int]]:
    """page_size, page_table (own pages for each sequence, in any order, sometimes too many), starts, q_lens."""
    page_size = draw(st.sampled_from([1, 2, 4, 16]))
    n = draw(st.integers(1, 5))
    starts = draw(st.lists(st.integers(0, 20), min_size=n, max_size=n))
    q_lens = draw(st.lists(st.sampled_from([1, 1, 2, 3, 18]), min_size=n, max_size=n))
    needed = [-(-(s + q) // page_size) + draw(st.integers(0, 2)) for s, q in zip(starts, q_lens)]
    pages = draw(st.permutations(range(sum(needed)))) if draw(st.booleans()) else list(range(sum(needed)))
    table, first = [], 0
    for count in needed:
        table.append(list(pages[first : first + count]))
        first += count
    return page_size, table, starts, q_lens


def as_tensor(slots: torch.Tensor | slice, cache: LatentCache) -> torch.Tensor:
    return torch.arange(cache.storage.shape[1])[slots].unsqueeze(0) if isinstance(slots, slice) else slots


@settings(deadline=None, max_examples=150)
@given(batches())
def test_every_query_sees_exactly_its_own_past(batch: tuple[int, list[list[int]], list[int], list[int]]) -> None:
    page_size, table, starts, q_lens = batch
    cache = LatentCache(CONFIG, sum(map(len, table)), page_size)
    ctx = AttnContext.build(cache, table, starts, q_lens)

    def slot(sequence: int, position: int) -> int:
        return table[sequence][position // page_size] * page_size + position % page_size

    feeding = [(b, p) for b, (s, q) in enumerate(zip(starts, q_lens)) for p in range(s, s + q)]
    assert ctx.positions_T.tolist() == [p for _, p in feeding]
    assert ctx.slots_T.tolist() == [slot(b, p) for b, p in feeding]
    assert ctx.q_lens == tuple(q_lens)
    assert ctx.kv_lens == tuple(s + q for s, q in zip(starts, q_lens))

    first = 0
    for group in ctx.groups:
        assert group.rows == slice(first, first + group.B * group.S)
        assert group.B == 1 or group.S <= BATCHED_QUERIES
        slots_BL = as_tensor(group.slots, cache)
        own = {b for b, _ in feeding[group.rows]}
        for row, (b, position) in enumerate(feeding[group.rows]):
            i, s = divmod(row, group.S)
            seen = slots_BL[i]
            if group.mask_BSL is not None:
                mask_L = group.mask_BSL[i, s]
                assert set(mask_L.tolist()) <= {0.0, float("-inf")}
                seen = seen[mask_L == 0]
            elif group.causal:
                seen = seen[: s + 1]
            assert seen.tolist() == [slot(b, p) for p in range(position + 1)]
        # Hidden columns too lie on tokens of the sequence itself: what stands elsewhere may be NaN.
        written = {slot(b, p) for b in own for p in range(starts[b] + q_lens[b])}
        assert set(slots_BL.flatten().tolist()) <= written
        first = group.rows.stop
    assert first == len(feeding)


def grouping(q_lens: list[int]) -> list[tuple[int, int]]:
    cache = LatentCache(CONFIG, len(q_lens) * 2, 64)
    pages = [[2 * b, 2 * b + 1] for b in range(len(q_lens))]
    return [(g.B, g.S) for g in AttnContext.build(cache, pages, [0] * len(q_lens), q_lens).groups]


def test_neighbours_with_equal_counts_attend_together() -> None:
    assert grouping([1, 1, 1]) == [(3, 1)]
    assert grouping([2, 2, 1, 1, 2]) == [(2, 2), (2, 1), (1, 2)]
    assert grouping([16, 16]) == [(2, 16)]
    assert grouping([17, 17]) == [(1, 17), (1, 17)]  # long chunks: no padding of one to the other's length


def test_a_long_prompt_from_its_first_token_on_needs_no_mask() -> None:
    def group(start: int, count: int) -> SequenceGroup:
        (found,) = AttnContext.build(LatentCache(CONFIG, 1, 64), [[0]], [start], [count]).groups
        return found

    assert group(0, BATCHED_QUERIES + 1).causal
    assert group(0, BATCHED_QUERIES + 1).mask_BSL is None
    assert not group(0, BATCHED_QUERIES).causal
    assert not group(1, BATCHED_QUERIES + 1).causal
    assert group(1, BATCHED_QUERIES + 1).mask_BSL is not None


def single(pages: list[int], start: int, count: int) -> SequenceGroup:
    (group,) = AttnContext.build(LatentCache(CONFIG, 8, 4), [pages], [start], [count]).groups
    return group


def test_neighbouring_pages_are_read_without_a_copy() -> None:
    cache = LatentCache(CONFIG, 8, 4)
    slots = single([3, 4, 5], 6, 1).slots
    assert slots == slice(12, 19)
    assert cache.read(0, slots).data_ptr() == cache.storage[0, 12].data_ptr()
    assert isinstance(single([3, 5, 4], 6, 1).slots, torch.Tensor)
    assert single([3, 5], 2, 1).slots == slice(12, 15)  # the second page is not in use yet


def test_a_single_token_of_equal_lengths_needs_no_mask() -> None:
    assert single([0, 1], 6, 1).mask_BSL is None
    cache = LatentCache(CONFIG, 8, 4)
    assert AttnContext.build(cache, [[0, 1], [2, 3]], [6, 6], [1, 1]).groups[0].mask_BSL is None
    assert AttnContext.build(cache, [[0, 1], [2, 3]], [6, 5], [1, 1]).groups[0].mask_BSL is not None


def test_write_then_read(small_config: SmallConfig) -> None:
    config = small_config("v3")
    cache = LatentCache(config, 3, 4, dtype=torch.bfloat16)
    assert cache.storage.shape == (4, 12, config.kv_lora_rank + config.qk_rope_head_dim)  # 3 layers and an MTP module
    c_kv, k_pe = torch.randn(2, config.kv_lora_rank), torch.randn(2, config.qk_rope_head_dim)
    cache.write(3, torch.tensor([9, 2]), c_kv, k_pe)
    assert torch.equal(cache.read(3, torch.tensor([[2, 9]]))[0, 1], torch.cat((c_kv[0], k_pe[0])).bfloat16())
    assert torch.equal(cache.read(3, slice(2, 3))[0, 0], torch.cat((c_kv[1], k_pe[1])).bfloat16())
    assert torch.count_nonzero(cache.storage) == torch.count_nonzero(cache.storage[3][[2, 9]])


@pytest.mark.parametrize(("layers", "expected"), [(61, 70272), (27, 31104)])
def test_bytes_of_a_token(layers: int, expected: int) -> None:
    cache = LatentCache(ModelConfig(n_layers=layers), 2, 64, device="meta")
    assert cache.storage.nbytes == 128 * expected


def test_everything_lies_on_the_device_of_the_cache() -> None:
    cache = LatentCache(CONFIG, 8, 4, device="meta")
    ctx = AttnContext.build(cache, [[0, 2], [1]], [3, 0], [2, 2])
    (group,) = ctx.groups
    assert isinstance(group.slots, torch.Tensor)
    assert group.mask_BSL is not None
    for tensor in (ctx.positions_T, ctx.slots_T, group.slots, group.mask_BSL):
        assert tensor.device.type == "meta"


def test_pages_must_cover_the_tokens() -> None:
    with pytest.raises(AssertionError):
        AttnContext.build(LatentCache(CONFIG, 8, 4), [[0, 1]], [7], [2])
