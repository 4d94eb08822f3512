"""Multi-head latent attention (V3 §2.1.1, Eq. 1-11).

Keys and values of all heads are rebuilt from one small vector per token, the latent c_kv (C wide), plus one rotated key
k_pe (R wide) that all heads share. Only these C + R values are cached. Two ways to attend, equal in exact arithmetic:

expanded   k_h = [W_uk_h c_kv ; k_pe],  v_h = W_uv_h c_kv,  then ordinary attention with H heads.
           Each cached token is expanded once; cheap per query: right for long chunks and for training.
absorbed   q_h . W_uk_h c_kv = (W_uk_h^T q_h) . c_kv: move W_uk to the query and W_uv behind the softmax. Every head
           then reads the same cache, as in multi-query attention, and nothing is expanded: right for decoding.

Rotation cannot move across W_uk, which is why position lives in separate dimensions (the "decoupled" rope).
"""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.config import BLOCK, ModelConfig
from dsv3.layers.basic import RMSNorm
from dsv3.layers.cache import AttnContext, PagedQueries, SequenceGroup
from dsv3.layers.linear import Linear, RowParallelLinear, act_dtype, column_parallel, linear, side_by_side
from dsv3.layers.packing import Packing
from dsv3.layers.rope import rotate
from dsv3.parallel.group import Parallel
from dsv3.probe import Tap


class MLA(nn.Module):
    """x (B, S, D) for whole sequences, or (T, D) with an ``AttnContext`` (new tokens of a paged batch).

    A whole sequence is causal throughout without a context, within each document with a ``Packing``. ``layer`` is this
    layer's row in the cache. Taps: q_nope, q_pe, c_kv, k_pe; attention probabilities as probs_BSHL (absorbed form only:
    not of a prompt that starts with more than ``BATCHED_QUERIES`` tokens in one step).
    """

    def __init__(self, config: ModelConfig, layer: int, *, dtype: torch.dtype, parallel: Parallel) -> None:
        super().__init__()
        self.tap = Tap("q_nope", "q_pe", "c_kv", "k_pe", "probs_BSHL")
        self.layer = layer
        self.H = parallel.tp.split(config.n_heads, "n_heads")
        self.C, self.N, self.R, self.P = (
            config.kv_lora_rank,
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.softmax_scale = config.softmax_scale
        # Multiply-adds per head: absorbed S L (2C + R), expanded S L (N + R + P) + L C (N + P). They cross at this S.
        saved = (2 * self.C + self.R) - (self.N + self.R + self.P)
        self.expand_above = self.C * (self.N + self.P) / saved if saved > 0 else float("inf")
        D, Q, act = config.dim, config.q_lora_rank, act_dtype(dtype)
        options: dict[str, Any] = {"dtype": dtype, "scale_fmt": config.scale_fmt}
        self.wq: Linear | None = None
        if Q:
            self.wq_a = Linear(D, Q, **options)
            self.q_norm = RMSNorm(Q, config.norm_eps, dtype=act)
            self.wq_b = column_parallel(Q, config.n_heads * config.qk_head_dim, **options, tp=parallel.tp)
        else:
            self.wq = column_parallel(D, config.n_heads * config.qk_head_dim, **options, tp=parallel.tp)
        self.wkv_a = Linear(D, config.latent_dim, **options)
        self.kv_norm = RMSNorm(self.C, config.norm_eps, dtype=act)
        self.wkv_b = column_parallel(self.C, config.n_heads * (self.N + self.P), **options, tp=parallel.tp)
        self.wo = RowParallelLinear(config.n_heads * self.P, D, **options, tp=parallel.tp)
        self._absorbed: tuple[Tensor, Tensor] | None = None
        self._joined: tuple[Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor, turns: Tensor, ctx: AttnContext | Packing | None = None) -> Tensor:
        """turns: rotations of the tokens' positions for ``rotate``; complex they are (S, R/2), (T, R/2) when paged."""
        q, kv = self._project(x)
        if isinstance(ctx, AttnContext) and ctx.paged is not None:
            return self.wo(self._decode(q, kv, turns, ctx, ctx.paged).flatten(-2))
        q_nope, q_pe = q.split((self.N, self.R), dim=-1)
        q_pe = rotate(q_pe, turns.unsqueeze(1))
        c_kv, k_pe = kv.split((self.C, self.R), dim=-1)
        c_kv = self.kv_norm(c_kv)
        k_pe = rotate(k_pe, turns)
        if self.tap.listeners:
            for name, tensor in (("q_nope", q_nope), ("q_pe", q_pe), ("c_kv", c_kv), ("k_pe", k_pe)):
                self.tap(name, tensor)
        if not isinstance(ctx, AttnContext):
            o = self._expanded(q_nope, q_pe, c_kv, k_pe, causal=ctx is None, packing=ctx)
        else:
            ctx.cache.write(self.layer, ctx.slots_T, c_kv, k_pe)
            parts = [self._attend(q_nope[g.rows], q_pe[g.rows], g, ctx) for g in ctx.groups]
            o = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.wo(o.flatten(-2))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (..., D) -> queries (..., H, N+R), and latent with key (..., C+R), neither normed nor rotated."""
        first = self.wq if self.wq is not None else self.wq_a
        if self._joined is None:
            q, kv = first(x), self.wkv_a(x)
        else:
            both = linear(x, *self._joined, first.scale_fmt)
            q, kv = both.split((first.out_features, self.wkv_a.out_features), dim=-1)
        if self.wq is None:
            joined_rows = self._joined is not None and q.dim() == 2
            q = self.wq_b(self.q_norm.rows(q) if joined_rows else self.q_norm(q))
        return q.unflatten(-1, (self.H, -1)), kv

    def _decode(self, q_THX: Tensor, kv_Tc: Tensor, turns: Tensor, ctx: AttnContext, paged: PagedQueries) -> Tensor:
        """The absorbed form in four launches: the cache is read where it lies, and nothing waits for the host."""
        w_uk_HNC, w_uv_HCP = self._absorbed or self.prepare()
        latents_Xc, norm = ctx.cache.data[self.layer], self.kv_norm
        q_pe_THR = kernels.rotate_and_cache(
            q_THX, kv_Tc, norm.weight, norm.eps, torch.view_as_real(turns), latents_Xc, ctx.slots_T
        )
        q_latent_HTC = torch.bmm(q_THX[..., : self.N].transpose(0, 1), w_uk_HNC)
        o_THC = kernels.latent_attention(
            q_latent_HTC.transpose(0, 1),
            q_pe_THR,
            latents_Xc,
            paged.page_table_BP,
            paged.kv_lens_B,
            page_size=ctx.cache.page_size,
            scale=self.softmax_scale,
        )
        return torch.bmm(o_THC.transpose(0, 1), w_uv_HCP).transpose(0, 1)

    def _attend(self, q_nope: Tensor, q_pe: Tensor, group: SequenceGroup, ctx: AttnContext) -> Tensor:
        """Queries (B*S, H, .) of one group against its cached tokens -> (B*S, H, P)."""
        latent_BLc = ctx.cache.read(self.layer, group.slots).to(q_nope.dtype)
        if group.causal or self.expand_above < group.S:
            c_kv_BLC, k_pe_BLR = latent_BLc.split((self.C, self.R), dim=-1)
            q_nope, q_pe = (q.unflatten(0, (group.B, group.S)) for q in (q_nope, q_pe))
            o = self._expanded(q_nope, q_pe, c_kv_BLC, k_pe_BLR, causal=group.causal, mask_BSL=group.mask_BSL)
            return o.flatten(0, 1)
        return self._absorb(q_nope, q_pe, latent_BLc, group)

    def _expanded(
        self,
        q_nope: Tensor,
        q_pe: Tensor,
        c_kv: Tensor,
        k_pe: Tensor,
        *,
        causal: bool = False,
        mask_BSL: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """q_nope (B,S,H,N), q_pe (B,S,H,R), c_kv (B,L,C), k_pe (B,L,R) -> (B,S,H,P). causal: S = L, no look ahead."""
        k_nope, v = self.wkv_b(c_kv).unflatten(-1, (self.H, -1)).split((self.N, self.P), dim=-1)
        k = torch.cat((k_nope, k_pe.unsqueeze(-2).expand(-1, -1, self.H, -1)), dim=-1)
        q = torch.cat((q_nope, q_pe), dim=-1)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if packing is not None:
            return packing.attend(q, k, v, self.softmax_scale).transpose(1, 2)
        mask = None if mask_BSL is None else mask_BSL.unsqueeze(1).to(q.dtype)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=self.softmax_scale)
        return o.transpose(1, 2)

    def _absorb(self, q_nope: Tensor, q_pe: Tensor, latent_BLc: Tensor, group: SequenceGroup) -> Tensor:
        """As one-key, many-query attention in the latent space. q (T, H, .) with T = B*S -> (T, H, P)."""
        w_uk_HNC, w_uv_HCP = self._absorbed or self.prepare()
        q_latent = torch.bmm(q_nope.transpose(0, 1), w_uk_HNC).transpose(0, 1)
        q_BXc = torch.cat((q_latent, q_pe), dim=-1).view(group.B, -1, self.C + self.R)  # X = S * H
        scores_BXL = torch.bmm(q_BXc, latent_BLc.transpose(1, 2)).float() * self.softmax_scale
        if group.mask_BSL is not None:
            scores_BXL = scores_BXL.view(group.B, group.S, self.H, -1) + group.mask_BSL.unsqueeze(2)
        probs_BXL = scores_BXL.softmax(dim=-1).view(group.B, group.S * self.H, -1)
        if self.tap.listeners:
            self.tap("probs_BSHL", probs_BXL.view(group.B, group.S, self.H, -1))
        o_BXC = torch.bmm(probs_BXL.to(q_nope.dtype), latent_BLc[..., : self.C])
        return torch.bmm(o_BXC.view(-1, self.H, self.C).transpose(0, 1), w_uv_HCP).transpose(0, 1)

    def prepare(self) -> tuple[Tensor, Tensor]:
        """Cut wkv_b into W_uk (H, N, C) and W_uv (H, C, P): views of a plain weight, dequantised once from FP8."""
        weight = self.wkv_b.dequantised(self.kv_norm.weight.dtype).detach()
        w_uk_HNC, w_uv_HPC = weight.view(self.H, -1, self.C).split((self.N, self.P), dim=1)
        self._absorbed = w_uk_HNC, w_uv_HPC.transpose(1, 2)
        return self._absorbed

    def join(self) -> None:
        """Make one product of the two that read x: their weights are moved side by side. For inference on a GPU."""
        first, second = self.wq if self.wq is not None else self.wq_a, self.wkv_a
        if first.scale is None or second.scale is None:
            self._joined = side_by_side(first.weight, second.weight), None
        elif first.out_features % BLOCK == 0:  # else a scale block would hold rows of both
            self._joined = side_by_side(first.weight, second.weight), side_by_side(first.scale, second.scale)

    # What prepare() and join() derived is thrown away wherever a weight may become another tensor, and made anew when
    # needed.

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # .to(), .cuda(), .to_empty()
        self._absorbed = self._joined = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # load_state_dict(assign=True), FP8 weights
        self._absorbed = self._joined = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:  # copy.deepcopy and pickle would copy views apart from their weight
        return {**self.__dict__, "_absorbed": None, "_joined": None}
