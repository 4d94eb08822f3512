"""Checkpoints: read from Hugging Face's and the official demo's layouts, written in Hugging Face's.

``load_model`` and ``save_model`` are the whole interface; ``names`` is the table that both are derived from.
"""

from dsv3.weights.files import read_config, resolve
from dsv3.weights.load import load_model
from dsv3.weights.save import save_model

__all__ = ["load_model", "read_config", "resolve", "save_model"]
