"""A small random model that every engine test shares, and a tokenizer whose text is easy to predict."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from dsv3.config import ModelConfig
from dsv3.engine import LLM
from dsv3.model.transformer import Transformer

CONTEXT = 160
"""Context of the test model: long enough for several pages and chunks, short enough to reach."""


@pytest.fixture(scope="session")
def model() -> Transformer:
    """All of V3's features: compressed queries, sigmoid gate with bias and groups, a shared expert, an MTP module.

    Weights are large, so that logits differ by far more than rounding and a different order of sums changes no token.
    """
    config = ModelConfig(
        vocab_size=96,
        dim=48,
        inter_dim=64,
        moe_inter_dim=32,
        n_layers=3,
        n_dense_layers=1,
        n_heads=2,
        n_routed_experts=8,
        n_shared_experts=1,
        n_activated_experts=2,
        n_expert_groups=4,
        n_limited_groups=2,
        score_func="sigmoid",
        route_scale=1.5,
        q_lora_rank=24,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        original_seq_len=CONTEXT // 2,
        rope_factor=2.0,
        n_mtp_layers=1,
    )
    torch.manual_seed(7)
    model = Transformer(config, dtype=torch.float32)
    model.reset_parameters(std=0.15)
    for name, buffer in model.named_buffers():
        if name.endswith("gate.bias"):
            buffer.normal_(0.0, 0.1)
    return model.eval().prepare()


@pytest.fixture
def make_llm(model: Transformer) -> Callable[..., LLM]:
    """``make_llm(page_size=4, speculative=2)``: an engine of its own over the shared model; small pages by default."""

    def make(**options: Any) -> LLM:
        return LLM.from_model(model, **{"page_size": 8, "max_batch_size": 4, **options})

    return make


class LetterTokenizer:
    """Id i is a letter, two letters, or one byte of the two-byte character 'é': enough to cut text anywhere.

    Ids 0-25: a-z. 26-51: "aa".."zz" style pairs of the letter and the next. 52, 53: first and second byte of "é".
    Others: "#".
    """

    eos_id: int | None = None
    bos_id: int | None = None

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        stream = self.stream()
        return "".join([*(stream.push(i) for i in ids), stream.flush()])

    def stream(self) -> "LetterDetokenizer":
        return LetterDetokenizer()


class LetterDetokenizer:
    def __init__(self) -> None:
        self.half = False

    def push(self, token_id: int) -> str:
        if token_id == 52:
            lost, self.half = self.half, True
            return "\ufffd" if lost else ""
        half, self.half = self.half, False
        if token_id == 53:
            return "é" if half else "\ufffd"
        text = "#"
        if token_id < 52:
            text = chr(97 + token_id % 26) + (chr(97 + (token_id + 1) % 26) if token_id >= 26 else "")
        return "\ufffd" + text if half else text

    def flush(self) -> str:
        half, self.half = self.half, False
        return "\ufffd" if half else ""


@pytest.fixture
def letters() -> LetterTokenizer:
    return LetterTokenizer()
