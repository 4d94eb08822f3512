"""Models with every parameter random (norms and gate biases too), and checkpoints of them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsv3.config import ModelConfig
from dsv3.model.transformer import Transformer
from dsv3.weights import save_model

RandomModel = Callable[..., Transformer]


@pytest.fixture
def random_model() -> RandomModel:
    """``random_model(config, dtype)``: nothing in it is a constant that a wrong load could hit by luck."""

    def make(config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
        model = Transformer(config, dtype=dtype)
        with torch.no_grad():
            model.reset_parameters(std=0.1)
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if name.endswith(("norm.weight", "gate.bias")):
                    tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
        return model.eval()

    return make


@pytest.fixture
def saved(tmp_path: Path, random_model: RandomModel) -> Callable[..., tuple[Path, Transformer]]:
    """``saved(config, dtype="fp8", max_shard_bytes=...)``: the directory of a checkpoint, and the model in it."""

    def make(config: ModelConfig, **options: object) -> tuple[Path, Transformer]:
        model = random_model(config)
        path = tmp_path / "checkpoint"
        save_model(model, path, **({"dtype": "fp32"} | options))  # type: ignore[arg-type]
        return path, model

    return make
