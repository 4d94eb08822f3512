"""Pins of the official configurations, and the identities that hold for any."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dsv3 import Transformer, cost
from dsv3.config import ModelConfig
from dsv3.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
# Every field differs from every other, so that a swapped pair of sizes changes a figure.
SMALL = ModelConfig(
    vocab_size=300,
    dim=48,
    inter_dim=200,
    moe_inter_dim=20,
    n_layers=5,
    n_dense_layers=2,
    n_heads=3,
    n_routed_experts=12,
    n_shared_experts=2,
    n_activated_experts=4,
    q_lora_rank=28,
    kv_lora_rank=16,
    qk_nope_head_dim=14,
    qk_rope_head_dim=6,
    v_head_dim=10,
    n_mtp_layers=1,
)


def official(name: str) -> ModelConfig:
    return ModelConfig.from_json(CONFIGS / f"{name}.json")


def billions(value: float, digits: int) -> float:
    return round(value / 1e9, digits)


def test_parameters_of_16b() -> None:
    config = official("config_16B")
    assert cost.parameters(config) == 15_706_484_224
    assert billions(cost.activated_parameters(config), 2) == 2.66
    assert billions(cost.activated_parameters(config, embedding=False), 2) == 2.45


def test_parameters_of_236b() -> None:
    config = official("config_236B")
    assert cost.parameters(config) == 235_741_434_880
    assert billions(cost.activated_parameters(config), 1) == 21.4


@pytest.mark.parametrize("name", ["config_671B", "config_v3.1"])
def test_parameters_of_671b(name: str) -> None:
    config = official(name)
    assert cost.parameters(config) == 671_026_404_352
    assert billions(cost.activated_parameters(config), 1) == 37.6
    assert billions(cost.activated_parameters(config, embedding=False), 1) == 36.6
    assert cost.mtp_parameters(config) == 11_610_067_968


def test_cache_bytes_per_token() -> None:
    assert cost.cache_bytes_per_token(official("config_671B")) == 70_272
    assert cost.cache_bytes_per_token(official("config_16B")) == 31_104
    # 128 heads with keys of 192 and values of 128 in 61 layers: MLA caches 71 times less.
    assert cost.uncompressed_cache_bytes_per_token(official("config_671B")) == 61 * 128 * (192 + 128) * 2


@pytest.mark.parametrize("name", ["config_16B", "config_236B", "config_671B"])
def test_parts_add_up(name: str) -> None:
    config = official(name)
    assert sum(cost.parameters_by_part(config).values()) == cost.parameters(config)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        dataclasses.replace(SMALL, q_lora_rank=0),
        dataclasses.replace(SMALL, score_func="sigmoid", n_mtp_layers=2),
    ],
    ids=["compressed queries", "plain queries", "sigmoid, two MTP modules"],
)
def test_parameters_equal_those_of_the_built_model(config: ModelConfig) -> None:
    model = Transformer(config, device="meta")
    own = {name: p.numel() for name, p in model.named_parameters()}  # shared tensors are listed once
    mtp = sum(size for name, size in own.items() if name.startswith("mtp."))
    assert sum(own.values()) - mtp == cost.parameters(config)
    assert mtp == config.n_mtp_layers * cost.mtp_parameters(config)


def test_fp8_bytes_count_edge_blocks_and_keep_the_rest_in_bf16() -> None:
    config = dataclasses.replace(
        SMALL, dim=130, inter_dim=256, n_layers=1, n_dense_layers=1, q_lora_rank=0, kv_lora_rank=128, n_mtp_layers=0
    )
    # (rows, cols) of wq, wkv_a, wkv_b, wo, w1, w3, w2; scales by hand: a last block of 2 columns costs a whole scale.
    linear = [(60, 130), (134, 130), (72, 128), (130, 30), (256, 130), (256, 130), (130, 256)]
    scales = 2 + 4 + 1 + 2 + 4 + 4 + 4
    plain = 2 * 300 * 130 + 3 * 130 + 128  # embedding, head, three norms of the width, kv_norm
    assert cost.weight_bytes(config, "fp8") == sum(rows * cols for rows, cols in linear) + 4 * scales + 2 * plain


def test_weight_bytes_include_the_mtp_modules() -> None:
    none = dataclasses.replace(SMALL, n_mtp_layers=0)
    for dtype, width in (("bf16", 2), ("fp32", 4)):
        assert cost.weight_bytes(none, dtype) == width * cost.parameters(none)
        assert cost.weight_bytes(SMALL, dtype) == width * (cost.parameters(SMALL) + cost.mtp_parameters(SMALL))


def test_weight_bytes_of_an_unknown_dtype() -> None:
    with pytest.raises(ConfigError, match=r"int4.*fp8"):
        cost.weight_bytes(SMALL, "int4")


def test_flops_follow_from_the_parameters_and_the_attended_pairs() -> None:
    config = official("config_671B")
    per_token = 2 * (cost.activated_parameters(config, embedding=False) - cost.parameters_by_part(config)["norms"])
    # One token that sees itself: 128 heads x (192 + 128) expanded, 128 heads x (576 + 512) absorbed, 61 layers.
    assert cost.prefill_flops_per_token(config, 1) == per_token + 2 * 61 * 128 * 320
    assert cost.decode_flops_per_token(config, 1) == per_token + 2 * 61 * 128 * 1088
    # The mean over positions 1..n of a sum linear in the position.
    mean = sum(per_token + 2 * 61 * 128 * 320 * keys for keys in range(1, 101)) / 100
    assert cost.prefill_flops_per_token(config, 100) == pytest.approx(mean, rel=1e-12)
    assert cost.decode_flops_per_token(config, 100) == per_token + 2 * 61 * 128 * 1088 * 100


def test_a_context_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="context is 0"):
        cost.cost(SMALL, context=0)


def test_cost_needs_no_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import json, dataclasses; from dsv3.config import ModelConfig; from dsv3.cost import cost\n"
        f"print(json.dumps(dataclasses.asdict(cost(ModelConfig.from_json({str(CONFIGS / 'config_16B.json')!r})))))"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)["parameters"] == 15_706_484_224
