"""Chapter 02."""

import torch
from torch import Tensor

from dsv3.config import ModelConfig
from dsv3.layers.mla import MLA
from dsv3.layers.rope import rotate


def mla_1(config: ModelConfig) -> float:
    """How many times smaller the latent cache is than full keys and values of every head."""
    full = config.n_heads * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim)
    return full / (config.kv_lora_rank + config.qk_rope_head_dim)


def mla_2(mla: MLA, q_nope_SHN: Tensor, c_kv_LC: Tensor) -> Tensor:
    """q . k of every head from the latents alone -> (S, H, L). mla.prepare() gives w_uk (H, N, C), w_uv (H, C, P)."""
    w_uk_HNC, _ = mla.prepare()
    q_latent_SHC = torch.einsum("shn,hnc->shc", q_nope_SHN, w_uk_HNC)
    return torch.einsum("shc,lc->shl", q_latent_SHC, c_kv_LC)


def mla_3(mla: MLA, q_nope_SHN: Tensor, q_pe_SHR: Tensor, c_kv_LC: Tensor, k_pe_LR: Tensor) -> Tensor:
    """Attention in the absorbed form, every query sees every key -> (S, H, P). mla.softmax_scale is the scale."""
    w_uk_HNC, w_uv_HCP = mla.prepare()
    q_latent_SHC = torch.einsum("shn,hnc->shc", q_nope_SHN, w_uk_HNC)
    scores_SHL = torch.einsum("shc,lc->shl", q_latent_SHC, c_kv_LC) + torch.einsum("shr,lr->shl", q_pe_SHR, k_pe_LR)
    probs_SHL = (scores_SHL * mla.softmax_scale).softmax(-1)
    o_SHC = torch.einsum("shl,lc->shc", probs_SHL, c_kv_LC)
    return torch.einsum("shc,hcp->shp", o_SHC, w_uv_HCP)


def bug_rope_on_latent(mla: MLA, x_SD: Tensor, turns: Tensor) -> Tensor:
    c_kv, k_pe = mla.wkv_a(x_SD).split((mla.C, mla.R), dim=-1)
    return torch.cat((mla.kv_norm(c_kv), rotate(k_pe, turns)), dim=-1)


def bug_full_cache(config: ModelConfig, budget_bytes: int) -> int:
    values_per_token = config.n_layers * (config.kv_lora_rank + config.qk_rope_head_dim)
    return budget_bytes // (2 * values_per_token)
