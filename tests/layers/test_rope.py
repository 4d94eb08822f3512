"""Rotary positions: against transformers' YaRN, and by the properties that make them rotations."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.config import ModelConfig
from dsv3.layers.rope import inverse_frequencies, rotate, rotations

TINY = ModelConfig(rope_factor=4, original_seq_len=64, qk_rope_head_dim=16)


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(mscale=0.707, beta_fast=16, beta_slow=2),
        ModelConfig(rope_factor=4, original_seq_len=1024, qk_rope_head_dim=32),
        ModelConfig(rope_theta=1e6, rope_factor=8.5),
        ModelConfig(original_seq_len=40, qk_rope_head_dim=8),  # even the fastest pair turns fewer than 32 times
        ModelConfig(rope_factor=1),
    ],
    ids=["official", "other betas", "tiny", "theta", "short", "off"],
)
def test_equals_transformers(config: ModelConfig) -> None:
    pytest.importorskip("transformers")
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

    hf = dataclasses.replace(config, score_func="sigmoid").to_hf()
    theirs = DeepseekV3RotaryEmbedding(DeepseekV3Config(**hf))
    torch.testing.assert_close(inverse_frequencies(config), theirs.inv_freq, rtol=1e-6, atol=0)
    assert theirs.attention_scaling == 1  # the cosines are not scaled: YaRN's factor is all in the softmax


def test_without_yarn_the_frequencies_are_ropes() -> None:
    freqs = inverse_frequencies(ModelConfig(rope_factor=1, qk_rope_head_dim=8, rope_theta=10000))
    torch.testing.assert_close(freqs, torch.tensor([1.0, 0.1, 0.01, 0.001]))


def test_yarn_keeps_the_fast_pairs_and_stretches_the_slow_ones() -> None:
    config = ModelConfig()
    plain = inverse_frequencies(dataclasses.replace(config, rope_factor=1))
    ratio = plain / inverse_frequencies(config)
    turns = config.original_seq_len * plain / (2 * torch.pi)
    assert torch.equal(ratio[turns > config.beta_fast], torch.ones(int((turns > config.beta_fast).sum())))
    torch.testing.assert_close(ratio[-1], torch.tensor(config.rope_factor))
    assert (ratio.diff() >= 0).all()
    assert 1 < ratio[16] < config.rope_factor  # between: on the ramp


@pytest.mark.parametrize("R", [2, 8, 64])
def test_rotation_is_the_matrix_of_each_pair(R: int) -> None:
    x, position = torch.randn(R), 7
    freqs = inverse_frequencies(dataclasses.replace(TINY, qk_rope_head_dim=R))
    turned = rotate(x, rotations(torch.tensor(position), freqs))
    for i, frequency in enumerate(freqs.double()):
        cos, sin = (position * frequency).cos(), (position * frequency).sin()
        a, b = x[2 * i].double(), x[2 * i + 1].double()
        expected = torch.stack((a * cos - b * sin, a * sin + b * cos))
        torch.testing.assert_close(turned[2 * i : 2 * i + 2].double(), expected, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 200_000), st.integers(0, 2**31))
def test_norms_are_kept(position: int, seed: int) -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    turned = rotate(x, rotations(torch.tensor(position), inverse_frequencies(TINY)))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 500), st.integers(0, 500), st.integers(0, 1000), st.integers(0, 2**31))
def test_products_depend_on_the_distance_alone(a: int, b: int, shift: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 16, generator=generator)
    freqs = inverse_frequencies(TINY)

    def product(i: int, j: int) -> torch.Tensor:
        return rotate(q, rotations(torch.tensor(i), freqs)) @ rotate(k, rotations(torch.tensor(j), freqs))

    torch.testing.assert_close(product(a + shift, b + shift), product(a, b), rtol=1e-3, atol=2e-3)


def test_position_zero_turns_nothing() -> None:
    x = torch.randn(4, 16)
    assert torch.equal(rotate(x, rotations(torch.zeros(4, dtype=torch.int64), inverse_frequencies(TINY))), x)


def test_bf16_is_turned_in_fp32_and_rounded_once() -> None:
    x = torch.randn(5, 16, dtype=torch.bfloat16)
    turns = rotations(torch.arange(100_000, 100_005), inverse_frequencies(TINY))
    turned = rotate(x, turns)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotate(x.float(), turns).bfloat16())


def test_a_default_device_does_not_move_the_frequencies() -> None:
    with torch.device("meta"):
        assert inverse_frequencies(TINY).device.type == "cpu"
