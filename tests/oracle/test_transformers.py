"""transformers as an independent implementation: its checkpoints give equal logits here, ours give equal logits there.

Everything is random: weights, norms, gate biases. Fewer experts are active than there are, and fewer groups open, so
that routing decides something. All in FP32 and on the CPU.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dsv3.config import ModelConfig
from dsv3.model.transformer import Transformer
from dsv3.weights import load_model, read_config, resolve, save_model

transformers = pytest.importorskip("transformers", minversion="5.17")

pytestmark = pytest.mark.filterwarnings("default")  # transformers' own warnings are not ours to fix

TOLERANCE = 1e-4
"""Relative to the largest logit: different orders of FP32 sums, through three layers."""

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "max_position_embeddings": 640,
}


def yarn(**changes: float) -> dict[str, Any]:
    """YaRN from 16 positions: the sequences below leave the original context."""
    values = {"factor": 40.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}
    return {"rope_type": "yarn", "rope_theta": 10000.0, "mscale": 1.0, "mscale_all_dim": 1.0} | values | changes


V3 = {
    "yarn": {"rope_parameters": yarn()},
    "no yarn": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "one group": {"n_group": 1, "topk_group": 1, "rope_parameters": yarn(factor=4.0, mscale=0.5, mscale_all_dim=0.5)},
    "whole query": {"q_lora_rank": None, "rope_parameters": yarn()},
    "all dense but one": {"first_k_dense_replace": 2, "n_shared_experts": 2, "rope_parameters": yarn()},
    "unscaled, one expert": {"routed_scaling_factor": 1.0, "num_experts_per_tok": 1, "rope_parameters": yarn()},
}
V2 = {
    "greedy": {
        "topk_method": "greedy",
        "q_lora_rank": None,
        "n_group": None,
        "topk_group": None,
        "n_shared_experts": 2,
    },
    "greedy with yarn": {
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707),
    },
    "groups": {
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 16.0,
        "rope_parameters": yarn(mscale=0.707, mscale_all_dim=0.707),
    },
}
CASES = [("DeepseekV3", name, changes) for name, changes in V3.items()] + [
    ("DeepseekV2", name, changes) for name, changes in V2.items()
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def theirs(request: pytest.FixtureRequest) -> Any:
    family, _, changes = request.param
    mtp = {"num_mtp_layers": 0} if family == "DeepseekV3" else {}
    config = getattr(transformers, f"{family}Config")(**(SMALL | mtp | changes))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    randomise(model)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Normal weights, norms around 1, and gate biases wide enough to change who is chosen."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("norm.weight"):
            tensor.normal_(1.0, 0.2)
        elif name.endswith(("e_score_correction_bias", "gate.bias")):
            tensor.normal_(0.0, 0.3)
        elif name.endswith(("weight", "proj", "w13", "w2")):
            tensor.normal_(0.0, 0.1)


def tokens() -> Tensor:
    return torch.randint(0, SMALL["vocab_size"], (2, 40))


def assert_equal_logits(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert ours.dtype == torch.float32
    worst = (ours - reference).abs().max() / reference.abs().max()
    assert worst < TOLERANCE, f"largest difference is {worst:.1e} of the largest logit"


@torch.no_grad()
def test_their_checkpoint_here_and_back(theirs: Any, tmp_path: Path) -> None:
    tokens_BS = tokens()
    reference = theirs(tokens_BS).logits
    theirs.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs", dtype=torch.float32)
    assert_equal_logits(model(tokens_BS), reference)
    save_model(model, tmp_path / "ours", dtype="fp32", max_shard_bytes=100_000)
    back = type(theirs).from_pretrained(tmp_path / "ours", dtype=torch.float32)
    assert back.config.to_diff_dict()["model_type"] == theirs.config.model_type
    # The same numbers in the same code: nothing may have changed on the way.
    assert torch.equal(back(tokens_BS).logits, reference)


def test_the_comparison_sees_the_routing(theirs: Any, tmp_path: Path) -> None:
    """Were every expert's output alike, or the gate irrelevant, the test above would prove little."""
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32)
    tokens_BS = tokens()
    with torch.no_grad():
        before = model(tokens_BS)
        gate = model.layers[-1].ffn.gate  # type: ignore[union-attr]
        gate.weight.copy_(gate.weight.flip(0))
        assert (model(tokens_BS) - before).abs().max() / before.abs().max() > 100 * TOLERANCE


# --- multi-token prediction -----------------------------------------------------------------------------------------


@pytest.fixture
def with_mtp(small_config: Callable[..., ModelConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``with_mtp(n)``: a random model with n MTP modules, and transformers' copy of it."""

    def make(n_mtp_layers: int) -> tuple[Transformer, Any]:
        config = dataclasses.replace(small_config("v3"), n_mtp_layers=n_mtp_layers)
        model = Transformer(config, dtype=torch.float32).eval()
        randomise(model)
        save_model(model, tmp_path, dtype="fp32")
        # transformers finds the MTP layers by the pattern of keys that it ignores, which is written for 61 layers.
        pattern = rf"model\.layers\.({'|'.join(str(config.n_layers + k) for k in range(n_mtp_layers))})\..*"
        monkeypatch.setattr(
            transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [pattern], raising=True
        )
        return model, transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)

    return make


@torch.no_grad()
@pytest.mark.parametrize("n_mtp_layers", [1, 2])
def test_mtp_logits(n_mtp_layers: int, with_mtp: Callable[[int], tuple[Transformer, Any]]) -> None:
    """Hidden states of the main model in, each module's logits out, at every position."""
    cache_utils = pytest.importorskip("transformers.cache_utils")
    layers = pytest.importorskip("transformers.modeling_layers")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this transformers has no MTP modules")
    model, theirs = with_mtp(n_mtp_layers)
    modules = layers.MtpModel.from_pretrained(theirs).eval()
    cache = cache_utils.MtpCache(config=theirs.config.get_mtp_config())
    tokens_BS = tokens()[:1]
    their_h, our_h = theirs.model(tokens_BS).last_hidden_state, model.hidden(tokens_BS)
    for k in range(n_mtp_layers):
        following = tokens_BS[:, 1 + k :]
        positions = torch.arange(1 + k, tokens_BS.shape[1])[None]
        their_h = modules.forward_layer(k, their_h[:, :-1], positions, cache, input_ids=following)
        our_h = model.predict_next(k, our_h[:, :-1], following)
        assert_equal_logits(model.logits(our_h), modules._project_to_logits(their_h))


@torch.no_grad()
def test_mtp_generation(with_mtp: Callable[[int], tuple[Transformer, Any]]) -> None:
    """Their generation with our MTP weights as the drafter ends in the same greedy text as without."""
    _, theirs = with_mtp(1)
    prompt_BS = tokens()[:1, :10]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain = theirs.generate(prompt_BS, **options)
    assert torch.equal(theirs.generate(prompt_BS, use_mtp=True, **options), plain)


# --- FP8 ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_fp8_checkpoint(small_config: Callable[..., ModelConfig], tmp_path: Path) -> None:
    """Without a GPU transformers restores FP8 weights to BF16 at loading. So can we, and the numbers are the same."""
    pytest.importorskip("accelerate")
    if torch.cuda.is_available():
        pytest.skip("with CUDA, transformers keeps the weights in FP8")
    # A whole block followed by a partial one (here in wkv_a: 160 rows, and in the dense layer: 300) is read wrongly
    # there, since the size of a block is inferred from the number of scales. whole_blocks spares it those.
    config = small_config("v3", n_mtp_layers=0, dim=256, inter_dim=300, moe_inter_dim=72, kv_lora_rank=152)
    model = Transformer(config, dtype=torch.float32)
    randomise(model)
    save_model(model, tmp_path, dtype="fp8", whole_blocks=True)
    theirs = transformers.DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in theirs.parameters()} == {torch.bfloat16}
    ours = load_model(tmp_path, dtype=torch.bfloat16)
    tokens_BS = tokens()
    # Compared in FP32: in BF16 the order of sums would decide routes.
    assert_equal_logits(ours.float()(tokens_BS), theirs.float()(tokens_BS).logits)


@torch.no_grad()
def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint that the package carries gives there what it gives here."""
    pytest.importorskip("accelerate")
    if torch.cuda.is_available():
        pytest.skip("with CUDA, transformers keeps the weights in FP8")
    layer = read_config("tiny").n_layers  # the MTP layer, which only their generation looks at
    monkeypatch.setattr(
        transformers.DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [rf"model\.layers\.{layer}\..*"]
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(resolve("tiny"), dtype=torch.bfloat16)
    ours = load_model("tiny", dtype=torch.bfloat16)
    tokens_BS = torch.randint(64, 8192, (2, 40))
    assert_equal_logits(ours.float()(tokens_BS), theirs.float()(tokens_BS).logits)
