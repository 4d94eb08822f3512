"""Chapter 06."""

import math

import torch
from torch import Tensor

from dsv3.config import ModelConfig


def yarn_1(config: ModelConfig) -> Tensor:
    """Wavelength in tokens of each rotated pair, without YaRN -> (R / 2,)."""
    R = config.qk_rope_head_dim
    frequency = config.rope_theta ** (-torch.arange(0, R, 2) / R)
    return 2 * math.pi / frequency


def yarn_2(config: ModelConfig) -> Tensor:
    """YaRN's angle per position of each pair -> (R / 2,). config.rope_factor is above 1."""
    R, base = config.qk_rope_head_dim, config.rope_theta

    def pair_turning(turns: float) -> float:
        return R * math.log(config.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(config.beta_fast)), 0)
    high = min(math.ceil(pair_turning(config.beta_slow)), R - 1)
    freqs = base ** (-torch.arange(0, R, 2) / R)
    ramp = ((torch.arange(R // 2) - low) / (high - low)).clamp(0, 1)
    return freqs * (1 - ramp) + freqs / config.rope_factor * ramp


def yarn_3(x_SR: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair of x by its angle in radians, (S, R / 2), as the released weights expect it -> (S, R)."""
    even, odd = x_SR[:, 0::2], x_SR[:, 1::2]
    turned = torch.stack((even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()), dim=-1)
    return turned.flatten(1)


def bug_mscale(config: ModelConfig) -> float:
    mscale = 0.1 * config.mscale * math.log(config.rope_factor) + 1.0
    return (config.qk_nope_head_dim + config.qk_rope_head_dim) ** -0.5 * mscale**2
