"""The paged latent cache and the record that says where a step's tokens stand in it.

MLA caches C + R values for a token and layer, nothing per head (V3 Eq. 1, 3: the boxed vectors). The cache is cut into
pages of ``page_size`` tokens; a sequence owns a list of pages, in order, so its memory grows with its length and
returns page by page. A *slot* is one token's place: page * page_size + offset.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.config import ModelConfig

BATCHED_QUERIES = 16
"""Sequences that feed the same number of tokens, up to this many, attend together; longer chunks go one by one."""


class LatentCache:
    """Pages for every layer, MTP modules last: module k is layer ``n_layers + k``.

    One tensor (layers, n_pages * page_size, C + R): columns up to C hold the normalised latent c_kv, the rest the
    rotated key k_pe. 671B in BF16: 70,272 bytes a token.
    """

    def __init__(
        self,
        config: ModelConfig,
        n_pages: int,
        page_size: int = 64,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        self.n_pages, self.page_size = n_pages, page_size
        self.latent_rank = config.kv_lora_rank
        layers = config.n_layers + config.n_mtp_layers
        self.storage = torch.zeros(layers, n_pages * page_size, config.latent_dim, dtype=dtype, device=device)
        self.data = self.storage.unbind(0)

    def write(self, layer: int, slots_T: Tensor, c_kv_TC: Tensor, k_pe_TR: Tensor) -> None:
        self.data[layer].index_copy_(0, slots_T, torch.cat((c_kv_TC, k_pe_TR), dim=-1).to(self.storage.dtype))

    def read(self, layer: int, slots: Tensor | slice) -> Tensor:
        """Latents of slots (B, L) -> (B, L, C+R); of a slice (one sequence, adjacent pages) -> a view (1, L, C+R)."""
        if isinstance(slots, slice):
            return self.data[layer][slots].unsqueeze(0)
        return F.embedding(slots, self.data[layer])  # the same rows as data[slots], gathered several times faster


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """Neighbouring sequences of a step that feed the same number S of tokens, and so attend in one batch of B.

    rows: their tokens within the step. slots: where their L cached tokens lie; rows shorter than L repeat the
    sequence's first slot, which the mask hides. mask_BSL: 0 where a query may look, -inf elsewhere; None: everywhere,
    or, in a ``causal`` group, at itself and back: one long sequence from its first token on, where S = L.
    """

    rows: slice
    B: int
    S: int
    slots: Tensor | slice
    mask_BSL: Tensor | None
    causal: bool = False


@dataclass(frozen=True, slots=True)
class PagedQueries:
    """A whole step of B sequences that feed S tokens each, for a kernel that reads pages where they lie.

    page_table_BP and kv_lens_B are int32 tensors on the device: nothing of them is known to the host, so that a step
    can be recorded once and replayed with other pages and lengths.
    """

    page_table_BP: Tensor
    kv_lens_B: Tensor


@dataclass(frozen=True, slots=True)
class AttnContext:
    """All that attention needs to know of a step; the engine builds one for each step, layers only read it.

    ``groups`` say where queries look, and tensors gather it; with ``paged`` there are none, and a kernel does.
    """

    cache: LatentCache
    positions_T: Tensor
    slots_T: Tensor
    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    groups: tuple[SequenceGroup, ...]
    paged: PagedQueries | None = None

    @staticmethod
    def build(
        cache: LatentCache, page_table: Sequence[Sequence[int]], starts: Sequence[int], q_lens: Sequence[int]
    ) -> "AttnContext":
        """For a ragged batch: sequence b feeds ``q_lens[b]`` tokens at positions ``starts[b]``, ``starts[b] + 1``, ...

        ``page_table[b]`` lists the pages of sequence b; they must cover starts[b] + q_lens[b] tokens. Put sequences
        that feed one token beside each other: each run of equal ``q_lens`` is one batched attention.
        """
        size, device = cache.page_size, cache.storage.device
        positions: list[int] = []
        slots: list[int] = []
        for pages, start, count in zip(page_table, starts, q_lens, strict=True):
            assert 1 <= count <= len(pages) * size - start, (pages, start, count, size)
            for position in range(start, start + count):
                positions.append(position)
                slots.append(pages[position // size] * size + position % size)
        kv_lens = tuple(start + count for start, count in zip(starts, q_lens, strict=True))
        positions_T = torch.tensor(positions, device=device)
        groups: list[SequenceGroup] = []
        first, row = 0, 0
        while first < len(q_lens):
            count, last = q_lens[first], first + 1
            while count <= BATCHED_QUERIES and last < len(q_lens) and q_lens[last] == count:
                last += 1
            rows = slice(row, row + count * (last - first))
            groups.append(_group(cache, page_table[first:last], kv_lens[first:last], rows, count, positions_T))
            first, row = last, rows.stop
        return AttnContext(
            cache, positions_T, torch.tensor(slots, device=device), tuple(q_lens), kv_lens, tuple(groups)
        )


def _group(
    cache: LatentCache,
    page_table: Sequence[Sequence[int]],
    kv_lens: Sequence[int],
    rows: slice,
    S: int,
    positions_T: Tensor,
) -> SequenceGroup:
    size, device, L = cache.page_size, cache.storage.device, max(kv_lens)
    offsets_L = torch.arange(L, device=device)
    B = len(kv_lens)
    uniform = min(kv_lens) == L
    slots: Tensor | slice
    n_pages = -(-L // size)
    if B == 1 and _adjacent(pages := page_table[0][:n_pages]):
        slots = slice(pages[0] * size, pages[0] * size + L)
    else:
        pages_BP = torch.tensor([[*p[:n_pages], *[p[0]] * (n_pages - len(p))] for p in page_table], device=device)
        slots_BL = (pages_BP.unsqueeze(-1) * size + torch.arange(size, device=device)).flatten(1)[:, :L]
        if not uniform:
            # A slot behind the end may hold anything, NaN included, and 0 * NaN is NaN: never read one.
            behind = offsets_L >= torch.tensor(kv_lens, device=device).unsqueeze(-1)
            slots_BL = torch.where(behind, slots_BL[:, :1], slots_BL)
        slots = slots_BL
    causal = S == L and S > BATCHED_QUERIES  # attention has a form of its own for that, without S x L mask values
    mask_BSL = None
    if not causal and (S > 1 or not uniform):
        hidden = offsets_L > positions_T[rows].view(B, S, 1)
        mask_BSL = torch.zeros(B, S, L, dtype=torch.float32, device=device).masked_fill_(hidden, float("-inf"))
    return SequenceGroup(rows, B, S, slots, mask_BSL, causal)


def _adjacent(pages: Sequence[int]) -> bool:
    return all(b == a + 1 for a, b in pairwise(pages))
