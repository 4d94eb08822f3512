import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.engine.blocks import PageAllocator
from dsv3.errors import CapacityError


@settings(deadline=None)
@given(
    n_pages=st.integers(1, 12),
    page_size=st.integers(1, 5),
    actions=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=60),
)
def test_no_page_is_lost_or_shared(n_pages: int, page_size: int, actions: list[tuple[int, int]]) -> None:
    """Any sequence of growing (to n tokens) and releasing (n = 0) over five owners."""
    allocator = PageAllocator(n_pages, page_size)
    tables: list[list[int]] = [[] for _ in range(5)]
    for owner, n_tokens in actions:
        table = tables[owner]
        before, free = list(table), allocator.n_free
        if n_tokens == 0:
            allocator.release(table)
            assert table == []
        else:
            missing = max(0, -(-n_tokens // page_size) - len(before))
            assert allocator.grow(table, n_tokens) == (missing <= free)
            assert table[: len(before)] == before, "pages that hold tokens must not move"
            assert len(table) == len(before) + (missing if missing <= free else 0)
        owned = [page for t in tables for page in t]
        assert len(set(owned)) == len(owned)
        assert set(owned) <= set(range(n_pages))
        assert len(owned) + allocator.n_free == n_pages
    for table in tables:
        allocator.release(table)
    assert allocator.grow(tables[0], n_pages * page_size)
    assert sorted(tables[0]) == list(range(n_pages))


def test_what_can_never_fit_is_an_error_with_both_numbers() -> None:
    allocator = PageAllocator(3, 4)
    allocator.check_fits(12)
    with pytest.raises(CapacityError, match=r"13 tokens.* holds 12 \(3 pages of 4\).*n_pages"):
        allocator.check_fits(13)


def test_reset_frees_every_page() -> None:
    allocator = PageAllocator(5, 2)
    allocator.grow([], 7)
    allocator.reset()
    table: list[int] = []
    assert allocator.grow(table, 10)
    assert sorted(table) == [0, 1, 2, 3, 4]
