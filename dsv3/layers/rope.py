"""Rotary positions with YaRN (arXiv 2104.09864, 2309.00071; V3 §4.3).

Pair i of the R rotated dimensions turns by position * theta^(-2i/R). A trained model has seen angles of
``original_seq_len`` positions only. YaRN stretches the context by ``rope_factor``: slow pairs, which never finished a
turn in training, are slowed down by that factor so that no new angle appears; fast pairs, which carry short distances,
stay; a linear ramp joins them. ``beta_fast`` and ``beta_slow`` are the numbers of turns where the ramp begins and ends.
"""

import math

import torch
from torch import Tensor

from dsv3.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Angle per position of each pair, (R/2,) in FP32, YaRN applied where ``rope_factor`` > 1."""
    dim, base = config.qk_rope_head_dim, config.rope_theta
    freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim))
    if config.rope_factor == 1:
        return freqs

    def pair_turning(turns: float) -> float:
        """The (fractional) pair that makes ``turns`` turns within the original context."""
        return dim * math.log(config.original_seq_len / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_turning(config.beta_fast)), 0)
    high = min(math.ceil(pair_turning(config.beta_slow)), dim - 1)
    pairs = torch.arange(dim // 2, dtype=torch.float32, device="cpu")
    stretched = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
    return freqs / config.rope_factor * stretched + freqs * (1 - stretched)


def rotations(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """exp(i * position * frequency): positions (...) -> complex (..., R/2). Once a step, shared by all layers."""
    angles = positions.unsqueeze(-1).float() * inv_freq
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn neighbouring pairs of the last dimension. x (..., R), turns (..., R/2) -> as x, FP32 inside.

    The pairs are (0, 1), (2, 3), ...: the layout of the released weights ("interleaved"), not halves as in Llama.
    ``turns`` may also be real, (..., R/2, 2): more operations one by one, but torch.compile can fuse them to one.
    """
    if not turns.is_complex():
        even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cos, sin = turns.unbind(-1)
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)
