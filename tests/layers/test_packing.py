"""Documents in one row: the mask against its definition, the tiles against the mask, attention against each alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dsv3.layers.packing import TILE, Packing


def rows_of(*lengths: list[int]) -> torch.Tensor:
    """A row for each list: documents of these lengths, numbered from the row's own start on."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(row)) + 7, torch.tensor(row)) for row in lengths])


def test_a_query_sees_its_own_document_up_to_itself() -> None:
    mask = Packing.of(rows_of([2, 1, 2])).mask
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_numbers_may_come_back_but_documents_do_not() -> None:
    mask = Packing.of(torch.tensor([[5, 5, 2, 5]])).mask  # three documents, whatever they are called
    assert isinstance(mask, torch.Tensor)
    assert mask[0, 0, 3].tolist() == [False, False, False, True]


@given(st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=6), min_size=1, max_size=3))
def test_tiles_say_what_the_mask_says(lengths: list[list[int]]) -> None:
    longest = max(map(sum, lengths))
    documents_BS = rows_of(*([*row, longest - sum(row)] for row in lengths))
    mask = Packing.of(documents_BS).mask
    tiles = Packing.of(documents_BS, tiled=True).mask
    assert isinstance(mask, torch.Tensor)
    assert not isinstance(tiles, torch.Tensor)
    n = -(-longest // TILE)
    padded = F.pad(mask, (0, n * TILE - longest, 0, n * TILE - longest))
    any_Bij = padded.view(-1, n, TILE, n, TILE).any(4).any(2)
    assert torch.equal(tiles.to_dense()[:, 0].bool(), any_Bij)
    # Inside a partial tile the rule itself decides.
    b, q, k = (torch.randint(size, (200,)) for size in mask[:, 0].shape)
    assert torch.equal(tiles.mask_mod(b, torch.zeros_like(b), q, k), mask[b, 0, q, k])
    # A tile that is kept whole hides nothing (but what lies behind the end of the row).
    whole = tiles.full_kv_num_blocks, tiles.full_kv_indices
    assert whole[0] is not None
    assert whole[1] is not None
    for row in range(len(mask)):
        for i in range(n):
            for j in whole[1][row, 0, i, : whole[0][row, 0, i]].tolist():
                assert mask[row, 0, i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE].all()


def test_attention_is_that_of_each_document_alone() -> None:
    lengths = [3, 1, 8]
    q, k = torch.randn(2, 1, 4, 12, 16).unbind(0)
    v = torch.randn(1, 4, 12, 8)
    together = Packing.of(rows_of(lengths)).attend(q, k, v, 0.3)
    alone = [
        F.scaled_dot_product_attention(*parts, is_causal=True, scale=0.3)
        for parts in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=2))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own parts
def test_tiled_attention_equals_masked_attention_forward_and_backward() -> None:
    documents_BS = rows_of([100, 400, 12], [512, 0, 0], [1, 130, 381]).cuda()
    shapes = [(3, 4, 512, width) for width in (96, 96, 64)]
    results = []
    for tiled in (False, True):
        torch.manual_seed(0)
        leaves = [torch.randn(shape, device="cuda", requires_grad=True) for shape in shapes]
        attend = torch.compile(Packing.attend) if tiled else Packing.attend
        o = attend(Packing.of(documents_BS, tiled=tiled), *(leaf.bfloat16() for leaf in leaves), 0.1)
        o.float().square().sum().backward()
        results.append([o.float(), *(leaf.grad for leaf in leaves)])
    for masked, tiles in zip(*results, strict=True):
        assert (masked - tiles).norm() < 0.01 * masked.norm()
