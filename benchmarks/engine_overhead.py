"""What one decode step costs beside the model: scheduling, batch building, sampling, bookkeeping.

The model is replaced by one that returns ready logits, so nearly all of the time is the engine's. On a quiet machine:

    OMP_NUM_THREADS=1 python benchmarks/engine_overhead.py
"""

import argparse
import time
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from dsv3.config import ModelConfig
from dsv3.engine import LLM, SamplingParams
from dsv3.engine.batch import Batch
from dsv3.engine.speculative import Drafter
from dsv3.layers.cache import AttnContext
from dsv3.model.transformer import Transformer


class ReadyModel:
    """Answers every step with the same random logits."""

    def __init__(self, config: ModelConfig, max_rows: int = 64) -> None:
        self.config = config
        self.embed = SimpleNamespace(weight=torch.zeros(1))
        self.h_TD = torch.zeros(4096, config.dim)
        self.logits_MV = torch.randn(max_rows, config.vocab_size)

    def eval(self) -> "ReadyModel":
        return self

    def prepare(self) -> "ReadyModel":
        return self

    def hidden(self, tokens: Tensor, ctx: AttnContext) -> Tensor:
        return self.h_TD[: len(tokens)]

    def logits(self, h: Tensor) -> Tensor:
        return self.logits_MV[: len(h)]


class RightDrafter:
    """Drafts what ReadyModel chooses in row j after j drafts, so every draft of a lone request is accepted."""

    n_drafts = 1

    def __init__(self, model: ReadyModel) -> None:
        self.favourite = int(model.logits_MV[0].argmax())

    def draft(self, batch: Batch, h_TD: Tensor) -> None:
        for seq in batch.seqs:
            seq.drafts = [self.favourite] if seq.max_len - len(seq.token_ids) > 1 else []


def microseconds_per_step(
    batch_size: int, params: SamplingParams, config: ModelConfig, *, draft: bool = False
) -> float:
    model = ReadyModel(config)
    llm = LLM.from_model(
        cast(Transformer, cast(Any, model)),
        max_batch_size=batch_size,
        drafter=cast(Drafter, RightDrafter(model)) if draft else None,
    )
    llm.generate([[1, 2, 3]] * batch_size, params)  # warm up
    steps, started = llm.stats.steps, time.perf_counter()
    llm.generate([[1, 2, 3]] * batch_size, params)
    return (time.perf_counter() - started) / (llm.stats.steps - steps) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500)
    tokens = parser.parse_args().tokens
    config = ModelConfig(vocab_size=8192, dim=256, kv_lora_rank=128, qk_rope_head_dim=32, n_layers=6, rope_factor=1)
    kinds = {
        "greedy": SamplingParams(max_tokens=tokens),
        "temperature": SamplingParams(max_tokens=tokens, temperature=0.8, seed=1),
        "top-k 50, top-p 0.9": SamplingParams(max_tokens=tokens, temperature=0.8, top_k=50, top_p=0.9, seed=1),
        "top-p 0.9": SamplingParams(max_tokens=tokens, temperature=0.8, top_p=0.9, seed=1),
        "log-probabilities": SamplingParams(max_tokens=tokens, logprobs=5),
    }
    print(f"microseconds per step, vocabulary {config.vocab_size}, {torch.get_num_threads()} thread(s)")
    print(f"{'':24}{'batch 1':>10}{'batch 8':>10}")
    for name, params in kinds.items():
        one, eight = (microseconds_per_step(b, params, config) for b in (1, 8))
        print(f"{name:24}{one:10.0f}{eight:10.0f}")
    one, eight = (microseconds_per_step(b, kinds["greedy"], config, draft=True) for b in (1, 8))
    print(f"{'greedy, one draft':24}{one:10.0f}{eight:10.0f}")


if __name__ == "__main__":
    main()
