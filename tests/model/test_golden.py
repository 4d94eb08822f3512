"""The model against values of the official demo's own code (FP32, CPU): prefill, single steps, the gate alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dsv3.config import ModelConfig
from dsv3.layers.cache import AttnContext, LatentCache
from dsv3.model.transformer import Transformer

GOLDEN = Path(__file__).parents[2] / ".." / "shared" / "golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden values are not beside this checkout")


def load_demo_names(model: Transformer, weights: dict[str, torch.Tensor]) -> None:
    """Copy the demo's one-tensor-per-expert names into the stacked parameters. On purpose not dsv3.weights: an
    independent road, so that a mistake in the name table cannot hide one in the model."""
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    filled: dict[str, int] = {}
    for name, value in weights.items():
        if ".experts." in name:
            prefix, rest = name.split(".experts.")
            expert, matrix, _ = rest.split(".")
            stacked = f"{prefix}.experts.{'w2' if matrix == 'w2' else 'w13'}"
            target = own[stacked].data[int(expert)]
            target = target if matrix == "w2" else target[{"w1": 0, "w3": 1}[matrix]]
        else:
            stacked, target = name, own[name].data
        assert target.shape == value.shape, name
        target.copy_(value)
        filled[stacked] = filled.get(stacked, 0) + value.numel()
    assert filled == {name: tensor.numel() for name, tensor in own.items()}


@pytest.fixture(params=["v2lite", "v2", "v3"])
def case(request: pytest.FixtureRequest) -> tuple[Transformer, dict[str, torch.Tensor]]:
    config = ModelConfig.from_json(GOLDEN / f"{request.param}.json")
    model = Transformer(config, dtype=torch.float32).eval()
    load_demo_names(model, load_file(GOLDEN / f"{request.param}.weights.safetensors"))
    return model, load_file(GOLDEN / f"{request.param}.expected.safetensors")


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    relative = (ours - theirs).norm() / theirs.norm()
    assert relative < 1e-5, f"relative error {relative:.2e}"


@torch.inference_mode()
@pytest.mark.parametrize("expand_above", [0, None, 10**9], ids=["expanded", "as the model chooses", "absorbed"])
def test_steps(case: tuple[Transformer, dict[str, torch.Tensor]], expand_above: int | None) -> None:
    model, expected = case
    if expand_above is not None:
        for block in model.layers:
            block.attn.expand_above = expand_above
    tokens_BS = expected["tokens"]
    B = tokens_BS.shape[0]
    cache = LatentCache(model.config, n_pages=16, page_size=4, dtype=torch.float32)
    pages = [list(range(0, 16, 2)), list(range(15, 0, -2))]  # interleaved, and not in order
    start = 0
    for step, length in enumerate(expected["step_lengths"].tolist()):
        ctx = AttnContext.build(cache, pages, [start] * B, [length] * B)
        logits = model(tokens_BS[:, start : start + length].flatten(), ctx).view(B, length, -1)[:, -1]
        assert_close(logits, expected["logits"][step])
        start += length


@torch.inference_mode()
def test_whole_sequences(case: tuple[Transformer, dict[str, torch.Tensor]]) -> None:
    model, expected = case
    logits_BSV = model(expected["tokens"])
    ends = expected["step_lengths"].cumsum(0) - 1
    assert_close(logits_BSV[:, ends].transpose(0, 1), expected["logits"])


def test_gate(case: tuple[Transformer, dict[str, torch.Tensor]]) -> None:
    model, expected = case
    weights_TK, indices_TK = model.layers[-1].ffn.gate(expected["gate_input"])
    theirs, order = expected["gate_indices"].sort(dim=-1)
    ours, own_order = indices_TK.sort(dim=-1)
    assert torch.equal(ours, theirs)
    assert_close(weights_TK.gather(1, own_order), expected["gate_weights"].gather(1, order))
