"""A checkpoint that tests load in a moment: random weights in the embedded model's shape, narrower, its tokenizer."""

import dataclasses
import shutil
from pathlib import Path

import torch

from dsv3 import ModelConfig, Transformer
from dsv3.weights import save_model

ROOT = Path(__file__).resolve().parent.parent


def write_small_checkpoint(directory: Path) -> Path:
    """A V3-shaped FP32 model with an MTP module, 128 tokens of context and no chat template."""
    config = dataclasses.replace(
        ModelConfig.from_json(ROOT / "configs" / "config_tiny.json"),
        dim=32,
        inter_dim=64,
        moe_inter_dim=16,
        n_layers=2,
        n_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        original_seq_len=128,
        rope_factor=1.0,
    )
    torch.manual_seed(0)
    save_model(Transformer(config, dtype=torch.float32), directory, dtype="fp32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "dsv3" / "assets" / "tiny" / name, directory)
    return directory
