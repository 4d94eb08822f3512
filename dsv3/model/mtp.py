"""Multi-token prediction (V3 §2.2, Eq. 21-25): one more block that sees the next token and predicts the one after.

At position i the main model has read tokens 0..i and predicts token i+1 from h_i. The module joins h_i with the
embedding of token i+1, runs one block, and predicts token i+2 with the main model's own output head. In training it
densifies the signal; in generation its guess is checked by the main model's next step, two tokens for one.
"""

import torch
from torch import Tensor, nn

from dsv3.config import ModelConfig
from dsv3.layers.basic import RMSNorm
from dsv3.layers.cache import AttnContext
from dsv3.layers.linear import Linear, act_dtype
from dsv3.layers.packing import Packing
from dsv3.model.block import Block
from dsv3.parallel.group import Parallel


class SharedHead(nn.Module):
    """The module's own final norm; the head matrix behind it is the main model's."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = RMSNorm(config.dim, config.norm_eps, dtype=dtype)


class MTP(Block):
    """Module ``k``: block ``n_layers + k`` with its three extra norms and the joining projection.

    Equation 21 writes [norm(h) ; norm(embedding)]; the released weights have the embedding first, and so have we. h is
    the *normalised* output of what comes before (``Transformer.hidden``, or module k - 1): this too is how the released
    weights were trained, and what every engine feeds.
    """

    def __init__(self, config: ModelConfig, k: int, *, dtype: torch.dtype, parallel: Parallel) -> None:
        super().__init__(config, config.n_layers + k, dtype=dtype, parallel=parallel)
        act = act_dtype(dtype)
        self.enorm = RMSNorm(config.dim, config.norm_eps, dtype=act)
        self.hnorm = RMSNorm(config.dim, config.norm_eps, dtype=act)
        self.eh_proj = Linear(2 * config.dim, config.dim, dtype=act)
        self.shared_head = SharedHead(config, dtype=act)

    def forward(  # type: ignore[override]
        self, h: Tensor, next_embedding: Tensor, turns: Tensor, ctx: AttnContext | Packing | None = None
    ) -> Tensor:
        """h and next_embedding (..., D): position i and token i+1 -> (..., D), normalised, ready for the head."""
        x = self.join(h, next_embedding)
        return self.shared_head.norm(super().forward(x, turns, ctx))

    def join(self, h: Tensor, next_embedding: Tensor) -> Tensor:
        """What the block starts from (Eq. 21)."""
        return self.eh_proj(torch.cat((self.enorm(next_embedding), self.hnorm(h)), dim=-1))
