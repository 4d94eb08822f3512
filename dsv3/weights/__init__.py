"""Checkpoints: read from Hugging Face's and the official demo's layouts, written in Hugging Face's.

    model = load_model("path/to/DeepSeek-V2-Lite", dtype=torch.bfloat16)
    save_model(model, "out", dtype="fp8")
"""

from dsv3.weights.files import read_config, resolve
from dsv3.weights.load import load_model
from dsv3.weights.save import save_model

__all__ = ["load_model", "read_config", "resolve", "save_model"]
