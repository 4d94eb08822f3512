"""One Transformer block: attention and feed-forward, each behind a norm and beside a residual."""

import torch
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.config import ModelConfig
from dsv3.layers.basic import MLP, RMSNorm
from dsv3.layers.cache import AttnContext
from dsv3.layers.linear import act_dtype
from dsv3.layers.mla import MLA
from dsv3.layers.moe import MoE
from dsv3.layers.packing import Packing
from dsv3.parallel.group import Parallel
from dsv3.probe import Tap


class Block(nn.Module):
    """h -> h + attn(attn_norm(h)) -> h + ffn(ffn_norm(h)). The first ``n_dense_layers`` have an MLP, the others MoE."""

    def __init__(self, config: ModelConfig, layer: int, *, dtype: torch.dtype, parallel: Parallel) -> None:
        super().__init__()
        self.tap = Tap("h")
        act = act_dtype(dtype)
        self.attn_norm = RMSNorm(config.dim, config.norm_eps, dtype=act)
        self.attn = MLA(config, layer, dtype=dtype, parallel=parallel)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps, dtype=act)
        self.ffn: MoE | MLP
        if config.is_moe(layer):
            self.ffn = MoE(config, dtype=dtype, parallel=parallel)
        else:
            self.ffn = MLP(config.dim, config.inter_dim, dtype=dtype, scale_fmt=config.scale_fmt, tp=parallel.tp)

    def forward(self, h: Tensor, turns: Tensor, ctx: AttnContext | Packing | None = None) -> Tensor:
        if isinstance(ctx, AttnContext):  # inference: the residual and the norm behind it are one operation
            x = self.attn(self.attn_norm.rows(h), turns, ctx)
            h, y = kernels.add_rms_norm(h, x, self.ffn_norm.weight, self.ffn_norm.eps)
            h = self.ffn.added_to(h, y) if isinstance(self.ffn, MoE) else h + self.ffn(y)
        else:
            h = self.feed(self.attend(h, turns, ctx))
        self.tap("h", h)
        return h

    def attend(self, h: Tensor, turns: Tensor, ctx: AttnContext | Packing | None) -> Tensor:
        """The first half: h + attn(attn_norm(h))."""
        return h + self.attn(self.attn_norm(h), turns, ctx)

    def feed(self, h: Tensor) -> Tensor:
        """The second half: h + ffn(ffn_norm(h))."""
        return h + self.ffn(self.ffn_norm(h))
