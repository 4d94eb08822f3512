"""A run small enough for a test: a model of some ten thousand weights and two languages that are easy to learn."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dsv3.config import TrainConfig
from dsv3.train.corpus import Documents, TokenStore

BOS, EOS = 0, 1


def counting_documents(first: int, n: int, seed: int) -> Documents:
    """Documents that count upwards within 30 ids from ``first``, by steps of 1 or 2, from a random place on."""
    rng = np.random.default_rng(seed)
    bodies = [first + (rng.integers(30) + rng.integers(1, 3) * np.arange(rng.integers(20, 60))) % 30 for _ in range(n)]
    pieces = [np.array([BOS, *body, EOS], dtype=np.uint16) for body in bodies]
    starts = np.cumsum([0, *map(len, pieces)], dtype=np.int64)
    return Documents(np.concatenate(pieces), starts, np.array([len(body) for body in bodies], dtype=np.int64))


@pytest.fixture
def micro_run(tmp_path: Path, small_config) -> Callable[..., TrainConfig]:
    """``micro_run(total_steps=4)``: a TrainConfig over data and model files in ``tmp_path``, some fields replaced."""
    model = small_config("v3", vocab_size=64, dim=32, inter_dim=64, moe_inter_dim=16, rope_factor=1.0, n_layers=2)
    (tmp_path / "model.json").write_text(json.dumps(model.to_dict()))
    for name, n, seed in (("train", 60, 0), ("val", 6, 1)):
        languages = {"low": counting_documents(2, n, seed), "high": counting_documents(33, n, seed + 10)}
        TokenStore(languages, "0" * 64, 64, BOS, EOS).save(tmp_path / f"{name}.npz")
    base = TrainConfig(
        model=str(tmp_path / "model.json"),
        data=str(tmp_path),
        out=str(tmp_path / "out"),
        device="cpu",
        dtype="fp32",
        export="fp32",
        seq_len=32,
        batch_tokens=256,
        micro_batch_tokens=128,
        total_steps=30,
        warmup_steps=5,
        lr=1e-2,
        init_std=0.1,
        loss_chunk=100,
        log_every=5,
        eval_every=1000,
        save_every=1000,
    )
    return lambda **changes: dataclasses.replace(base, **changes)
