"""Chapter 09."""

from math import ceil

from dsv3.config import ModelConfig


def cost_1(config: ModelConfig) -> int:
    """Parameters of all routed experts of the main model, without gates and shared experts."""
    n_moe_layers = config.n_layers - config.n_dense_layers
    return n_moe_layers * config.n_routed_experts * 3 * config.dim * config.moe_inter_dim


def cost_2(rows: int, cols: int) -> int:
    """Bytes of one linear layer's weight in FP8: e4m3 values, and an FP32 scale for each 128 x 128 block begun."""
    return rows * cols + 4 * ceil(rows / 128) * ceil(cols / 128)


def cost_3(config: ModelConfig, context: int) -> float:
    """FLOPs of attention alone when one token is decoded in the absorbed form and sees context cached positions.

    The projections are not counted. A multiply-add counts as 2.
    """
    score = config.kv_lora_rank + config.qk_rope_head_dim
    value = config.kv_lora_rank
    return 2.0 * config.n_layers * config.n_heads * (score + value) * context


def bug_all_active(config: ModelConfig) -> int:
    n_moe_layers = config.n_layers - config.n_dense_layers
    one_expert = 3 * config.dim * config.moe_inter_dim
    return n_moe_layers * (config.n_activated_experts + config.n_shared_experts) * one_expert
