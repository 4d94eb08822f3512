"""The table of names: both directions, every official config, and the model that it describes."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.config import ModelConfig
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Group, Parallel
from dsv3.weights.names import from_hf, mtp_copies, skipped, specs, split_dimension, to_hf

CONFIGS = {
    name: ModelConfig.from_json(Path(__file__).parents[2] / "configs" / f"config_{name}.json")
    for name in ("16B", "236B", "671B", "v3.1")
}
WITH_MTP = {name: dataclasses.replace(config, n_mtp_layers=2) for name, config in CONFIGS.items()}


@st.composite
def names(draw: st.DrawFn) -> tuple[ModelConfig, str]:
    """A config and the official name of one of its tensors, of one of its scales or of an MTP copy."""
    config = draw(st.sampled_from(list(WITH_MTP.values())))
    every = specs(config)
    spec = every[draw(st.integers(0, len(every) - 1))]
    candidates = [spec.name, *mtp_copies(config)] + ([spec.scale_name] if spec.fp8 else [])
    return config, draw(st.sampled_from(candidates))


@settings(deadline=None)  # the first draw of a config lists its tensors: 47,000 for 671B
@given(names())
def test_there_and_back(case: tuple[ModelConfig, str]) -> None:
    config, name = case
    hf = to_hf(name, config.n_layers)
    assert hf is not None
    assert hf != name
    assert from_hf(hf, config.n_layers) == name


@settings(deadline=None)
@given(names(), st.text("0123456789abwxlayers._", min_size=1, max_size=4), st.data())
def test_no_two_names_meet(case: tuple[ModelConfig, str], noise: str, data: st.DataObject) -> None:
    """A damaged name is either unknown or, if it happens to be a name, not the same as the one it was made from."""
    config, name = case
    hf = to_hf(name, config.n_layers)
    assert hf is not None
    at = data.draw(st.integers(0, len(hf)))
    damaged = hf[:at] + noise + hf[at:]
    back = from_hf(damaged, config.n_layers)
    assert back != name
    assert back is None or to_hf(back, config.n_layers) == damaged


@pytest.mark.parametrize("config", WITH_MTP.values(), ids=WITH_MTP)
def test_every_tensor_has_names_of_its_own(config: ModelConfig) -> None:
    every = specs(config)
    assert all(to_hf(s.name, config.n_layers) == s.hf for s in every)
    assert all(to_hf(s.scale_name, config.n_layers) == s.hf_scale for s in every if s.fp8)
    assert len({s.name for s in every}) == len({s.hf for s in every}) == len(every)
    assert len({(s.parameter, s.index) for s in every}) == len(every)
    copies = [to_hf(name, config.n_layers) for name in mtp_copies(config)]
    assert len({*copies} | {s.hf for s in every} | {s.hf_scale for s in every if s.fp8}) == (
        len(copies) + len(every) + sum(s.fp8 for s in every)
    )


@pytest.mark.parametrize(("name", "count"), [("16B", 15_706_484_224), ("671B", 671_026_404_352)])
def test_counts(name: str, count: int) -> None:
    """The shapes add up to the published models, gate biases aside."""
    main, mtp = 0, 0
    for spec in specs(dataclasses.replace(CONFIGS[name], n_mtp_layers=1)):
        size = math.prod(spec.shape) if not spec.fp32 else 0
        main, mtp = (main, mtp + size) if spec.name.startswith("mtp.") else (main + size, mtp)
    assert main == count
    if name == "671B":
        assert mtp == 11_610_067_968


def test_the_released_names() -> None:
    """Spot checks against names as they stand in the released V3 index."""
    pairs = {
        "embed.weight": "model.embed_tokens.weight",
        "head.weight": "lm_head.weight",
        "norm.weight": "model.norm.weight",
        "layers.0.ffn.w2.scale": "model.layers.0.mlp.down_proj.weight_scale_inv",
        "layers.3.ffn.gate.bias": "model.layers.3.mlp.gate.e_score_correction_bias",
        "layers.60.ffn.experts.255.w1.weight": "model.layers.60.mlp.experts.255.gate_proj.weight",
        "layers.60.attn.wkv_a.scale": "model.layers.60.self_attn.kv_a_proj_with_mqa.weight_scale_inv",
        "mtp.0.enorm.weight": "model.layers.61.enorm.weight",
        "mtp.0.eh_proj.weight": "model.layers.61.eh_proj.weight",
        "mtp.0.embed.weight": "model.layers.61.embed_tokens.weight",
        "mtp.0.shared_head.head.weight": "model.layers.61.shared_head.head.weight",
        "mtp.0.shared_head.norm.weight": "model.layers.61.shared_head.norm.weight",
        "mtp.0.ffn.shared_experts.w3.weight": "model.layers.61.mlp.shared_experts.up_proj.weight",
    }
    for official, hf in pairs.items():
        assert to_hf(official, 61) == hf
        assert from_hf(hf, 61) == official


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.07.input_layernorm.weight",  # no number is written so
        "model.layers.3.mlp.gate.weight_scale_inv",  # the gate is never quantised
        "model.layers.3.input_layernorm.e_score_correction_bias",
        "model.layers.3.enorm.weight",  # belongs to MTP layers only
        "model.layers.3.self_attn.q_proj.bias",
        "model.layers.3.mlp.experts.x.gate_proj.weight",
        "transformer.h.0.attn.weight",
        "lm_head.weight_scale_inv",
        "weight",
        "",
    ],
)
def test_unknown_names(name: str) -> None:
    assert from_hf(name, 61) is None


@pytest.mark.parametrize("name", ["layers.61.attn_norm.weight", "mtp.0.head.weight", "embed.scale", "layers.0.attn"])
def test_unknown_official_names(name: str) -> None:
    assert to_hf(name, 61) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_the_table_is_the_model(any_small_config: ModelConfig, dtype: torch.dtype) -> None:
    """Each parameter and buffer of the model is described exactly once, with its shape."""
    model = Transformer(any_small_config, dtype=dtype, device="meta")
    state = model.state_dict()
    described: dict[str, int] = {}
    for spec in specs(any_small_config):
        part = state[spec.parameter][spec.index]
        assert tuple(part.shape) == spec.shape, spec.name
        described[spec.parameter] = described.get(spec.parameter, 0) + part.numel()
        assert (part.dtype == torch.float8_e4m3fn) == (spec.fp8 and dtype == torch.float8_e4m3fn)
        if part.dtype == torch.float8_e4m3fn:
            scales = state[spec.scale_parameter][spec.index]
            assert tuple(scales.shape) == spec.scale_shape, spec.scale_name
            described[spec.scale_parameter] = described.get(spec.scale_parameter, 0) + scales.numel()
    assert described == {name: tensor.numel() for name, tensor in state.items()}


def test_splits_are_those_of_the_layers(any_small_config: ModelConfig) -> None:
    """The rank 1 of 2 of every layer is as large as the table says that its share is."""
    parallel = Parallel(tp=Group(rank=1, size=2))
    whole = Transformer(any_small_config, dtype=torch.float32, device="meta").state_dict()
    share = Transformer(any_small_config, dtype=torch.float32, device="meta", parallel=parallel).state_dict()
    for spec in specs(any_small_config):
        expected = list(whole[spec.parameter].shape)
        if spec.split is not None:
            expected[spec.split] //= 2
        assert list(share[spec.parameter].shape) == expected, spec.name
        assert split_dimension(spec.name) == spec.split


def test_what_a_checkpoint_may_hold_without_being_loaded() -> None:
    without = CONFIGS["671B"]
    one = dataclasses.replace(without, n_mtp_layers=1)
    assert skipped("model.layers.0.self_attn.rotary_emb.inv_freq", one)
    for name in ("model.layers.61.enorm.weight", "model.layers.61.mlp.experts.0.up_proj.weight_scale_inv"):
        assert skipped(name, without)
        assert not skipped(name, one)
    assert not skipped("model.layers.61.nonsense.weight", without)
    assert not skipped("model.layers.60.input_layernorm.weight", without)
