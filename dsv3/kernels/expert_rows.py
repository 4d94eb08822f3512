"""Which rows an expert's program multiplies: by place for a decode step, by order for a prefill.

**By place.** A program reads its expert's row of places_ET (`moe_reference`), counts the tokens that chose the expert,
and takes those of rank 0 to BLOCK_M - 1 as its rows, then the next BLOCK_M if there are so many. An expert that nobody
chose costs one short load. Nothing is sorted, and the number of programs does not depend on who goes where.

**By order.** With thousands of tokens most of a row is zero, and several programs should share an expert. So the pairs
(t, k) are sorted by expert (in two small launches: count, then every expert writes its own stretch), and each expert's
stretch is cut into tiles of BLOCK_M. How many tiles there are is known on the device only: there are programs for as
many as could be needed at worst, and the surplus finds no rows.

Either way a row is addressed by its pair t * K + k, wherever it is read or written: the K results of a token stand in K
consecutive rows, and nothing is moved to stand beside its neighbours.

Everyone visits the shared experts: their programs come first, one for each BLOCK_M tokens and BLOCK_N columns.
"""

# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl

from dsv3.kernels.chain import can_overlap, follow
from dsv3.kernels.moe_reference import Routed

BY_PLACE = 256
"""Up to so many tokens rows are found by place."""

Where = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""places_ET; or, where the pairs are sorted, order_M and the tiles."""


def where_rows(routed: Routed, n_experts: int, block_m: int, by_place: bool) -> tuple[Where, int]:
    """How a program finds its rows, and for how many (expert, row tile) the launch must have programs."""
    if by_place:
        return (routed.places_ET.contiguous(), None, None), n_experts
    order_M, tiles_X3 = sorted_tiles(routed, block_m)
    return (routed.places_ET, order_M, tiles_X3), len(tiles_X3)


def sorted_tiles(routed: Routed, block_m: int) -> tuple[torch.Tensor, torch.Tensor]:
    """order_M: the pairs sorted by expert, and those of an expert by token. tiles_X3: expert, first row and end row of
    every tile of at most block_m rows; as many as could be needed at worst, the unneeded with end = first."""
    places_ET = routed.places_ET.contiguous()
    (E, T), K = places_ET.shape, routed.indices_TK.shape[1]
    n_tiles = T * K // block_m + min(E, T * K)  # each expert with rows wastes less than one tile
    counts_E, order_M, tiles_X3 = (
        torch.empty(shape, dtype=torch.int32, device=places_ET.device) for shape in (E, T * K, (n_tiles, 3))
    )
    overlap = can_overlap(places_ET)
    flags = {"CHUNK": min(1024, triton.next_power_of_2(T)), "OVERLAP": overlap, "launch_pdl": overlap}
    with torch.cuda.device_of(places_ET):
        _count_kernel[(E,)](places_ET, counts_E, T, **flags)
        _sort_kernel[(E + 1,)](
            places_ET, counts_E, order_M, tiles_X3, T, K, E, n_tiles,
            E_POW2=triton.next_power_of_2(E), BLOCK_M=block_m, **flags,
        )  # fmt: skip
    return order_M, tiles_X3


@triton.jit(do_not_specialize=["n_tokens"])
def _count_kernel(places_ptr, counts_ptr, n_tokens, CHUNK: tl.constexpr, OVERLAP: tl.constexpr):
    """How many tokens chose each expert."""
    follow(OVERLAP)
    places_ptr += tl.program_id(0).to(tl.int64) * n_tokens
    counts = tl.zeros((CHUNK,), dtype=tl.int32)
    for start in range(0, n_tokens, CHUNK):
        tokens = start + tl.arange(0, CHUNK)
        counts += (tl.load(places_ptr + tokens, mask=tokens < n_tokens, other=0) > 0).to(tl.int32)
    tl.store(counts_ptr + tl.program_id(0), tl.sum(counts, axis=0))


@triton.jit(do_not_specialize=["n_tokens", "top_k", "n_tiles"])
def _sort_kernel(
    places_ptr, counts_ptr, order_ptr, tiles_ptr, n_tokens, top_k, n_experts, n_tiles,
    E_POW2: tl.constexpr, BLOCK_M: tl.constexpr, CHUNK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One expert's tiles and its stretch of the order; the program behind the last expert blanks the surplus tiles."""
    follow(OVERLAP)
    expert = tl.program_id(0)
    experts = tl.arange(0, E_POW2)
    counts = tl.load(counts_ptr + experts, mask=experts < n_experts, other=0)
    first = tl.sum(tl.where(experts < expert, counts, 0), axis=0)
    first_tile = tl.sum(tl.where(experts < expert, tl.cdiv(counts, BLOCK_M), 0), axis=0)
    end = first + tl.sum(tl.where(experts == expert, counts, 0), axis=0)
    end_tile = tl.where(expert < n_experts, first_tile + tl.cdiv(end - first, BLOCK_M), n_tiles)
    for start in range(first_tile, end_tile, 128):
        tiles = start + tl.arange(0, 128)
        rows = first + (tiles - first_tile) * BLOCK_M
        to = tiles_ptr + tiles * 3
        tl.store(to, tl.minimum(expert, n_experts - 1) + tl.zeros_like(tiles), mask=tiles < end_tile)
        tl.store(to + 1, tl.minimum(rows, end), mask=tiles < end_tile)
        tl.store(to + 2, tl.minimum(rows + BLOCK_M, end), mask=tiles < end_tile)
    if expert < n_experts:
        places_ptr += expert.to(tl.int64) * n_tokens
        for start in range(0, n_tokens, CHUNK):
            tokens = start + tl.arange(0, CHUNK)
            places = tl.load(places_ptr + tokens, mask=tokens < n_tokens, other=0).to(tl.int32)
            chosen = (places > 0).to(tl.int32)
            rows = first + tl.cumsum(chosen, axis=0) - 1
            tl.store(order_ptr + rows, tokens * top_k + places - 1, mask=places > 0)
            first += tl.sum(chosen, axis=0)


@triton.jit
def place(program, shared_programs, n_tokens, columns, columns_shared, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """-> (unit, column tile): the unit is an expert (or a sorted row tile), or a row tile of the shared experts.

    The column tiles of a unit follow each other, since they share rows; those of the shared experts share weights."""
    if program < shared_programs:
        row_tiles = tl.cdiv(n_tokens, BLOCK_M)
        unit, tile = program % row_tiles, program // row_tiles
    else:
        n_tiles = tl.cdiv(columns, BLOCK_N)
        unit, tile = (program - shared_programs) // n_tiles, (program - shared_programs) % n_tiles
    return unit, tile


@triton.jit
def pairs_by_rank(places, tokens, top_k, row_tile, BLOCK_M: tl.constexpr):
    """The pairs t * K + k of ranks row_tile * BLOCK_M and following among the tokens whose place is not 0; -1: none."""
    chosen = places > 0
    rank = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    wanted = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    mine = chosen[None, :] & (rank[None, :] == wanted[:, None])
    return tl.sum(tl.where(mine, (tokens * top_k + places)[None, :], 0), axis=1) - 1


@triton.jit
def pairs_by_order(order_ptr, first, end, top_k, is_shared, BLOCK_M: tl.constexpr):
    """The same from the sorted pairs first to end; the shared experts take the tokens in their own order."""
    rows = first + tl.arange(0, BLOCK_M)
    pairs = tl.load(order_ptr + rows, mask=(rows < end) & (is_shared == 0), other=0)
    return tl.where(rows < end, tl.where(is_shared, rows * top_k, pairs), -1)


@triton.jit
def find_unit(
    places_ptr, tiles_ptr, unit, is_shared, n_tokens, TOKENS: tl.constexpr, BLOCK_M: tl.constexpr
):  # fmt: skip
    """-> expert, first row, end row, tokens, places: the rows are ranks among `places`, or sorted pairs."""
    if TOKENS:
        tokens = tl.arange(0, TOKENS)
        # Everyone visits the shared experts: as if each token had chosen them first.
        mask = (tokens < n_tokens) & (is_shared == 0)
        places = tl.load(places_ptr + unit * n_tokens + tokens, mask=mask, other=0).to(tl.int32)
        places = tl.where(is_shared, (tokens < n_tokens).to(tl.int32), places)
        count = tl.sum((places > 0).to(tl.int32), axis=0)
        first = tl.where(is_shared, unit * BLOCK_M, 0)
        end = tl.where(is_shared, tl.minimum(first + BLOCK_M, n_tokens), count)
        expert = tl.where(is_shared, 0, unit)
    else:
        tokens = tl.arange(0, 1)
        places = tokens
        tile = tiles_ptr + tl.where(is_shared, 0, unit) * 3
        expert = tl.where(is_shared, 0, tl.load(tile))
        first = tl.where(is_shared, unit * BLOCK_M, tl.load(tile + 1))
        end = tl.where(is_shared, tl.minimum(first + BLOCK_M, n_tokens), tl.load(tile + 2))
    return expert, first, end, tokens, places
