"""The decoding step once more, for few tokens on a CPU: the same equations in as few operations as they allow.

A step of one token through the embedded model multiplies 7 million weights, 27 MB. Two things keep it from running at
the memory's speed. Saying it layer by layer takes 2,500 calls into torch, a microsecond each. And a product with one
row, ``x W^T``, reaches a third of the bandwidth: it runs as a matrix-vector product, on one core. So here a step is one
flat function over tensors that were looked up once: matrices that multiply the same input lie side by side, scale and
mask ride along in the product of the scores, no module is called; and every product is written ``W x^T`` for at least
two rows, a lone token being carried twice (measured: 8192 x 256 in 0.45 ms instead of 1.1 on one core, 0.28 on two).

What is computed is what ``Transformer`` computes, up to FP32 rounding; tests hold the two equal. To understand the
model read ``layers`` instead. Nothing is copied: every tensor in the plan is a view of a living parameter, so weights
changed in place are seen, and a model that was moved or cast takes the ordinary way. What is put in the place of a
single parameter or module is not seen, and hooks on modules are not called: make a new plan, and listen with taps.
"""

from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.layers.basic import MLP, RMSNorm
from dsv3.layers.cache import AttnContext, SequenceGroup
from dsv3.layers.gate import Gate
from dsv3.layers.linear import side_by_side
from dsv3.layers.mla import MLA
from dsv3.layers.moe import MoE
from dsv3.layers.rope import rotations
from dsv3.model.block import Block
from dsv3.model.mtp import MTP
from dsv3.model.transformer import Transformer
from dsv3.probe import Tap, taps

MAX_TOKENS = 64
"""Steps with more tokens than this compute longer than they dispatch, and take the ordinary way."""


class _Norm(NamedTuple):
    """RMSNorm as x * (sqrt(D) / hypot(|x|, sqrt(D eps))) * weight: a norm that torch computes in one operation."""

    weight_D: Tensor
    root: Tensor
    floor: Tensor


class _FFN(NamedTuple):
    """SwiGLU with w1 and w3 as one matrix: w13 (2F, D), w2 (D, F)."""

    w13: Tensor
    w2: Tensor


class _Block(NamedTuple):
    """One block's tensors. w_in (Q+C+R, D) makes latents and rope key, or whole queries in place of Q where they are
    not compressed (then q_norm and wq_b are None). dense is the MLP or the shared experts."""

    layer: int
    widths: tuple[int, int, int]
    heads: tuple[int, int, int]
    scale: float
    attn_norm: _Norm
    w_in: Tensor
    q_norm: _Norm | None
    wq_b: Tensor | None
    kv_norm: _Norm
    w_uk_HNC: Tensor
    w_uv_HPC: Tensor
    wo: Tensor
    ffn_norm: _Norm
    dense: _FFN | None
    gate: Gate | None
    experts: tuple[_FFN, ...]


class _MTP(NamedTuple):
    """What a multi-token prediction module has around its block; eh_proj is (D, 2D)."""

    enorm: _Norm
    hnorm: _Norm
    eh_proj: Tensor
    block: _Block
    norm: _Norm


class LeanStep:
    """Runs the new tokens of a paged batch through ``model``. Build it after the weights are in place.

    ``fits`` says whether a step may come here; where it says no, ``Transformer`` does the work.
    """

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.blocks = [_plan(block) for block in model.layers if isinstance(block, Block)]
        self.mtp = [_plan_mtp(module) for module in model.mtp if isinstance(module, MTP)]
        self.norm = _norm(model.norm)
        # The gates are called as they are, so whoever listens to them only (expert load) is heard here too.
        gates = {id(module.tap) for module in model.modules() if isinstance(module, Gate)}
        self.taps: list[Tap] = [tap for _, tap in taps(model) if id(tap) not in gates]
        self.expand_above = min(
            (module.expand_above for module in model.modules() if isinstance(module, MLA)), default=0.0
        )
        # Where the weights were. Held as a view, not as an address, which a model cast to and fro could get back.
        self.embed_VD = model.embed.weight.detach()

    @staticmethod
    def supports(model: Transformer) -> bool:
        """A whole Transformer (no stand-in, not cut over ranks) with FP32 weights on a CPU."""
        if not isinstance(model, Transformer):
            return False
        weight, config = model.embed.weight, model.config
        plain = model.dtype == torch.float32 and weight.device.type == "cpu"
        # Rotation reads pairs as complex numbers, so the rope key must begin at an even column.
        return plain and weight.shape[0] == config.vocab_size and config.q_lora_rank % 2 == 0

    def fits_rows(self, rows: int) -> bool:
        """Some rows but few, and the weights still where they were."""
        return 0 < rows <= MAX_TOKENS and self.model.embed.weight.data_ptr() == self.embed_VD.data_ptr()

    def fits(self, ctx: AttnContext) -> bool:
        """Few tokens, all attended to in the absorbed form, and nobody listening to anything but the gates."""
        return (
            self.fits_rows(len(ctx.positions_T))
            and max(ctx.q_lens) <= self.expand_above
            and not any(group.causal for group in ctx.groups)
            and not any(tap.listeners for tap in self.taps)
        )

    def hidden(self, tokens_T: Tensor, ctx: AttnContext) -> Tensor:
        """As ``Transformer.hidden``: (T,) -> (T, D)."""
        h_UD = self._blocks(self.blocks, _at_least_two(self._embed(tokens_T)), ctx)
        return _norm_of(h_UD, self.norm)[: len(tokens_T)]

    def predict_next(self, k: int, h_TD: Tensor, next_tokens_T: Tensor, ctx: AttnContext) -> Tensor:
        """As ``Transformer.predict_next``: module k on h (T, D) and the next tokens (T,) -> (T, D)."""
        mtp = self.mtp[k]
        pair_TD2 = torch.cat((_norm_of(self._embed(next_tokens_T), mtp.enorm), _norm_of(h_TD, mtp.hnorm)), 1)
        h_UD = self._blocks([mtp.block], _times(_at_least_two(pair_TD2), mtp.eh_proj), ctx)
        return _norm_of(h_UD, mtp.norm)[: len(h_TD)]

    def logits(self, h_MD: Tensor) -> Tensor:
        """As ``Transformer.logits``: (M, D) -> (M, V)."""
        return _product(_at_least_two(h_MD), self.model.head.weight)[: len(h_MD)].contiguous()

    def _embed(self, tokens_T: Tensor) -> Tensor:
        return F.embedding(tokens_T, self.model.embed.weight)

    def _blocks(self, blocks: list[_Block], h_UD: Tensor, ctx: AttnContext) -> Tensor:
        """U is the number of rows carried: that of tokens, or 2 for a lone one. Rows beyond T are never read back."""
        T = len(ctx.positions_T)
        turns_Tr = rotations(ctx.positions_T, self.model.inv_freq)
        turns_T1r = turns_Tr.unsqueeze(1)
        masks = [_mask(group, blocks[0].heads[0]) for group in ctx.groups]
        for block in blocks:
            h_UD = _attend(block, h_UD, turns_Tr, turns_T1r, ctx, masks)
            x_UD = _norm_of(h_UD, block.ffn_norm)
            if block.dense is not None:
                h_UD = h_UD + _product(_swiglu(_times(x_UD, block.dense.w13)), block.dense.w2)
            if block.gate is not None:
                h_UD = _route(block.experts, x_UD, h_UD, *block.gate.forward(x_UD[:T]))
        return h_UD


def _at_least_two(x: Tensor) -> Tensor:
    return torch.cat((x, x)) if len(x) == 1 else x


def _product(x_UD: Tensor, w_ND: Tensor) -> Tensor:
    """x W^T for at least two rows, as a transposed view: fit to be added to something."""
    return torch.mm(w_ND, x_UD.t()).t()


def _times(x_UD: Tensor, w_ND: Tensor) -> Tensor:
    """x W^T for at least two rows, fit to be multiplied again."""
    return _product(x_UD, w_ND).contiguous()


def _attend(
    block: _Block, h_UD: Tensor, turns_Tr: Tensor, turns_T1r: Tensor, ctx: AttnContext, masks: list[Tensor]
) -> Tensor:
    """h + attention(norm(h)), absorbed (see ``layers.mla``)."""
    H, N, R = block.heads
    C, T = block.widths[1], len(turns_Tr)
    parts_U = torch.split_with_sizes(_times(_norm_of(h_UD, block.attn_norm), block.w_in), block.widths, 1)
    q_U, c_kv_UC, k_pe_UR = parts_U
    if block.q_norm is not None and block.wq_b is not None:
        q_U = _times(_norm_of(q_U, block.q_norm), block.wq_b)
    q_nope_THN, q_pe_THR = torch.split_with_sizes(q_U[:T].unflatten(1, (H, N + R)), (N, R), 2)
    q_pe_THR = (q_pe_THR.view(torch.complex64) * turns_T1r).view(torch.float32)
    k_pe_TR = (k_pe_UR[:T].view(torch.complex64) * turns_Tr).view(torch.float32)
    ctx.cache.write(block.layer, ctx.slots_T, _norm_of(c_kv_UC[:T], block.kv_norm), k_pe_TR)
    q_THc = torch.cat((torch.bmm(q_nope_THN.transpose(0, 1), block.w_uk_HNC).transpose(0, 1), q_pe_THR), 2)
    attended: list[Tensor] = []
    for group, mask in zip(ctx.groups, masks):
        latent_BLc = ctx.cache.read(block.layer, group.slots)
        q_BXc = q_THc[group.rows].view(group.B, group.S * H, -1)  # X = S * H
        scores_BXL = torch.baddbmm(mask, q_BXc, latent_BLc.transpose(1, 2), alpha=block.scale)
        attended.append(torch.bmm(scores_BXL.softmax(2), latent_BLc.narrow(2, 0, C)).view(-1, H, C))
    o_THC = attended[0] if len(attended) == 1 else torch.cat(attended)
    o_THP = torch.bmm(block.w_uv_HPC, o_THC.permute(1, 2, 0)).permute(2, 0, 1)
    return h_UD + _product(_at_least_two(o_THP.flatten(1)), block.wo)


def _mask(group: SequenceGroup, H: int) -> Tensor:
    """What is added to scores (B, S * H, L): the group's mask, each query's row repeated for its heads, or one zero."""
    if group.mask_BSL is None:
        return torch.zeros(1, 1, 1)
    return group.mask_BSL if group.S == 1 else group.mask_BSL.repeat_interleave(H, dim=1)


def _route(experts: tuple[_FFN, ...], x_UD: Tensor, h_UD: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
    """h + the weighted results of each token's experts: every expert with work multiplies all its rows at once."""
    chosen: list[list[int]] = indices_TK.tolist()
    K = len(chosen[0])
    if len(chosen) == 1:
        gate_up = torch.cat([_product(x_UD, experts[e].w13) for e in chosen[0]])
        act_KUF = _swiglu(gate_up).view(K, 2, -1) * weights_TK.view(K, 1, 1)
        for e, act_UF in zip(chosen[0], act_KUF.unbind()):
            h_UD = h_UD + _product(act_UF, experts[e].w2)
        return h_UD
    rows_of: dict[int, list[int]] = {}
    for row, e in enumerate(chain.from_iterable(chosen)):
        rows_of.setdefault(e, []).append(row)
    no_row = len(chosen) * K  # a lone row is carried twice, the second time with this row's weight, zero
    token_rows, weight_rows, sizes = [], [], []
    for rows in rows_of.values():
        token_rows += rows if len(rows) > 1 else rows * 2
        weight_rows += rows if len(rows) > 1 else [rows[0], no_row]
        sizes.append(max(len(rows), 2))
    token_M = torch.tensor(token_rows) // K
    weight_M1 = F.pad(weights_TK.flatten(), (0, 1)).index_select(0, torch.tensor(weight_rows)).unsqueeze(1)
    x_parts = torch.split_with_sizes(x_UD.index_select(0, token_M), sizes)
    gate_up_MF = torch.cat([_product(x, experts[e].w13) for e, x in zip(rows_of, x_parts)])
    act_parts = torch.split_with_sizes(_swiglu(gate_up_MF) * weight_M1, sizes)
    y_MD = torch.cat([_product(act, experts[e].w2) for e, act in zip(rows_of, act_parts)])
    return h_UD.index_add(0, token_M, y_MD)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, 1)
    return F.silu(gate) * up


def _norm_of(x: Tensor, norm: _Norm) -> Tensor:
    length = torch.linalg.vector_norm(x, 2, -1, True)
    return x * (norm.root / torch.hypot(length, norm.floor)) * norm.weight_D


# --- the plan ---------------------------------------------------------------------------------------------------------


def _plan(block: Block) -> _Block:
    attn, ffn = block.attn, block.ffn
    w_uk_HNC, w_uv_HCP = attn.prepare()
    q_in = attn.wq if attn.wq is not None else attn.wq_a
    dense, gate, experts = ffn, None, ()
    if isinstance(ffn, MoE):
        dense, gate = ffn.shared_experts, ffn.gate
        w13_EFD, w2_EDF = ffn.experts.w13.detach().flatten(1, 2), ffn.experts.w2.detach()
        experts = tuple(_FFN(w13, w2) for w13, w2 in zip(w13_EFD.unbind(), w2_EDF.unbind()))
    assert dense is None or isinstance(dense, MLP)
    return _Block(
        layer=attn.layer,
        widths=(q_in.out_features, attn.C, attn.R),
        heads=(attn.H, attn.N, attn.R),
        scale=attn.softmax_scale,
        attn_norm=_norm(block.attn_norm),
        w_in=side_by_side(q_in.weight, attn.wkv_a.weight),
        q_norm=_norm(attn.q_norm) if attn.wq is None else None,
        wq_b=attn.wq_b.weight.detach() if attn.wq is None else None,
        kv_norm=_norm(attn.kv_norm),
        w_uk_HNC=w_uk_HNC,
        w_uv_HPC=w_uv_HCP.transpose(1, 2),
        wo=attn.wo.weight.detach(),
        ffn_norm=_norm(block.ffn_norm),
        dense=None if dense is None else _FFN(side_by_side(dense.w1.weight, dense.w3.weight), dense.w2.weight.detach()),
        gate=gate,
        experts=experts,
    )


def _plan_mtp(module: MTP) -> _MTP:
    return _MTP(
        enorm=_norm(module.enorm),
        hnorm=_norm(module.hnorm),
        eh_proj=module.eh_proj.weight.detach(),
        block=_plan(module),
        norm=_norm(module.shared_head.norm),
    )


def _norm(norm: RMSNorm) -> _Norm:
    size = float(norm.weight.numel())
    return _Norm(norm.weight.detach(), torch.tensor(size**0.5), torch.tensor((size * norm.eps) ** 0.5))
