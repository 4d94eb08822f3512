"""Several documents in one row, none of which sees another.

Training rows are cut from a stream of documents, so most rows hold a border and some hold many. A query may look at
keys of its own document only, at itself and back; what one book says must not be evidence in the next. Rotary positions
need no restart at a border: attention knows distances only, and all distances that remain are within a document.

On a GPU FlexAttention skips every 128 x 128 tile in which no pair of one document meets; elsewhere, and wherever
nothing is compiled, the rule is a mask of booleans. ``Packing`` is made once a step and shared by all layers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

TILE = 128
"""Side of the tiles that FlexAttention keeps or skips."""


@dataclass(frozen=True)
class Packing:
    """What the positions of packed rows may look at: ``mask`` is a boolean (B, 1, S, S), or its tiles."""

    mask: "Tensor | BlockMask"

    @staticmethod
    def of(documents_BS: Tensor, *, tiled: bool = False) -> "Packing":
        """From the documents that the tokens belong to: within a row, equal neighbours are of one document.

        tiled: for FlexAttention, whose kernels exist only where it is compiled for a GPU.
        """
        border_BS = F.pad(documents_BS[:, 1:] != documents_BS[:, :-1], (1, 0))
        number_BS = border_BS.cumsum(1, dtype=torch.int32)  # counts up within each row, so tiles can be compared
        if tiled:
            return Packing(_tiles(number_BS))
        same_BSS = number_BS.unsqueeze(2) == number_BS.unsqueeze(1)
        return Packing(same_BSS.tril().unsqueeze(1))

    def attend(self, q_BHSd: Tensor, k_BHSd: Tensor, v_BHSP: Tensor, scale: float) -> Tensor:
        """Softmax attention within documents -> (B, H, S, P)."""
        if isinstance(self.mask, Tensor):
            return F.scaled_dot_product_attention(q_BHSd, k_BHSd, v_BHSP, attn_mask=self.mask, scale=scale)
        from torch.nn.attention.flex_attention import flex_attention

        o_BHSP = flex_attention(q_BHSd, k_BHSd, v_BHSP, block_mask=self.mask, scale=scale)
        assert isinstance(o_BHSP, Tensor)
        return o_BHSP


def _tiles(number_BS: Tensor) -> "BlockMask":
    """The tiles of the causal document mask, found from each tile's first and last document alone."""
    from torch.nn.attention.flex_attention import BlockMask

    S = number_BS.shape[1]
    padded = torch.cat((number_BS, number_BS[:, -1:].expand(-1, -S % TILE)), dim=1)  # the last tile may reach beyond
    first_Bi, last_Bi = padded[:, ::TILE], padded[:, TILE - 1 :: TILE]
    n = first_Bi.shape[1]
    below_ij = torch.ones(n, n, dtype=torch.bool, device=number_BS.device).tril()
    # A query tile i meets a key tile j at or before it where j's last document is not over when i begins.
    meets_Bij = (last_Bi.unsqueeze(1) >= first_Bi.unsqueeze(2)) & below_ij
    # Nothing is hidden where all of both tiles is one document and j is wholly before i.
    whole_Bij = (first_Bi.unsqueeze(1) == last_Bi.unsqueeze(2)) & below_ij.tril(-1)

    def same_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (number_BS[b, q] == number_BS[b, k])

    return BlockMask.from_kv_blocks(
        *_listed(meets_Bij & ~whole_Bij),
        *_listed(whole_Bij),
        BLOCK_SIZE=TILE,
        mask_mod=same_document,
        seq_lengths=(S, S),
    )


def _listed(tiles_Bij: Tensor) -> tuple[Tensor, Tensor]:
    """How many key tiles each query tile has, and their numbers, those first: (B, 1, i) and (B, 1, i, j), int32."""
    count_Bi = tiles_Bij.sum(-1, dtype=torch.int32)
    order_Bij = tiles_Bij.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return count_Bi.unsqueeze(1), order_Bij.unsqueeze(1)
