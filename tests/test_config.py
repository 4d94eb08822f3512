"""Configurations: what loads, what is refused and with which words. Parameter counts are pinned in test_cost.py."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3.config import EngineConfig, ModelConfig, TrainConfig
from dsv3.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"

# The fields of the published config.json files, as far as any reader needs them.
V2_LITE: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "torch_dtype": "bfloat16",
}
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_nextn_predict_layers": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "torch_dtype": "bfloat16",
}


Reshape = Callable[[dict[str, Any]], dict[str, Any]]


def with_new_rope_fields(hf: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 writes them: one mapping that holds theta too."""
    new = {key: value for key, value in hf.items() if key not in ("rope_theta", "rope_scaling")}
    scaling = {key: value for key, value in hf["rope_scaling"].items() if key != "type"}
    return new | {"rope_parameters": scaling | {"rope_type": "yarn", "rope_theta": hf["rope_theta"]}}


# --- what loads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reshape", [dict, with_new_rope_fields], ids=["old rope fields", "new rope fields"])
def test_hugging_face_v2_lite_equals_the_official_16b_file(reshape: Reshape) -> None:
    assert ModelConfig.from_dict(reshape(V2_LITE)) == ModelConfig.from_json(CONFIGS / "config_16B.json")


@pytest.mark.parametrize("reshape", [dict, with_new_rope_fields], ids=["old rope fields", "new rope fields"])
@pytest.mark.parametrize(("scale_fmt", "name"), [(None, "config_671B"), ("ue8m0", "config_v3.1")])
def test_hugging_face_v3_equals_the_official_671b_files(scale_fmt: str | None, name: str, reshape: Reshape) -> None:
    hf = reshape(V3)
    hf["quantization_config"] = V3["quantization_config"] | ({"scale_fmt": scale_fmt} if scale_fmt else {})
    official = ModelConfig.from_json(CONFIGS / f"{name}.json")
    # The official demo has no multi-token prediction, so its files do not name it.
    assert ModelConfig.from_dict(hf) == dataclasses.replace(official, n_mtp_layers=1)


def test_official_limits_of_serving_are_not_the_models() -> None:
    values = json.loads((CONFIGS / "config_671B.json").read_text())
    served = ModelConfig.from_dict(values | {"max_seq_len": 2048, "max_batch_size": 4})
    assert served == ModelConfig.from_dict(values | {"max_seq_len": 131072})
    assert served.max_context == 163840
    # FACTS: the official demo's scale falls to 0.0722 where max_seq_len is at most 4096; the model's is 0.1352.
    assert served.softmax_scale == pytest.approx((0.1 * math.log(40) + 1) ** 2 / math.sqrt(192), rel=1e-12)
    assert served.softmax_scale == pytest.approx(0.1352, abs=5e-5)


def test_softmax_scale_without_yarn_and_with_a_smaller_mscale() -> None:
    config = ModelConfig(rope_factor=1)
    assert config.softmax_scale == pytest.approx(1 / math.sqrt(192))
    stretched = dataclasses.replace(config, rope_factor=40, mscale=0.707)
    assert stretched.softmax_scale == pytest.approx((0.0707 * math.log(40) + 1) ** 2 / math.sqrt(192))


def test_a_null_of_hugging_face_means_none() -> None:
    lite = ModelConfig.from_dict(V2_LITE | {"n_shared_experts": None, "n_group": None, "topk_group": None})
    assert (lite.n_shared_experts, lite.n_expert_groups, lite.q_lora_rank, lite.n_mtp_layers) == (0, 1, 0, 0)


def test_greedy_selection_ignores_the_groups_of_the_file() -> None:
    assert ModelConfig.from_dict(V2_LITE | {"n_group": 8, "topk_group": 3}).n_expert_groups == 1
    grouped = ModelConfig.from_dict(V2_LITE | {"n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy"})
    assert (grouped.n_expert_groups, grouped.n_limited_groups) == (8, 3)


def test_no_rope_scaling_is_no_yarn() -> None:
    config = ModelConfig.from_dict(V3 | {"rope_scaling": None, "max_position_embeddings": 8192})
    assert (config.rope_factor, config.max_context) == (1.0, 8192)


def test_numbers_of_json_fit_either_kind() -> None:
    config = ModelConfig.from_dict({"dim": 512.0, "route_scale": 1})
    assert isinstance(config.dim, int)
    assert isinstance(config.route_scale, float)


@pytest.mark.parametrize(
    ("score_func", "gate_bias", "expected"),
    [("sigmoid", None, True), ("softmax", None, False), ("sigmoid", False, False), ("softmax", True, True)],
)
def test_the_bias_follows_the_sigmoid_or_the_explicit_key(score_func: Any, gate_bias: Any, expected: bool) -> None:
    assert ModelConfig(score_func=score_func, gate_bias=gate_bias, dim=512).has_gate_bias is expected


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any valid model that Hugging Face's format can say."""
    limited = draw(st.integers(1, 4))
    groups = limited + draw(st.integers(0, 4))
    per_group = draw(st.integers(2, 8))
    layers = draw(st.integers(1, 9))
    size = st.integers(1, 300)
    return ModelConfig(
        vocab_size=draw(size),
        dim=draw(size),
        inter_dim=draw(size),
        moe_inter_dim=draw(size),
        n_layers=layers,
        n_dense_layers=draw(st.integers(0, layers)),
        n_heads=draw(size),
        n_routed_experts=groups * per_group,
        n_shared_experts=draw(st.integers(0, 3)),
        n_activated_experts=draw(st.integers(1, limited * per_group)),
        n_expert_groups=groups,
        n_limited_groups=limited,
        score_func=draw(st.sampled_from(["softmax", "sigmoid"])),
        route_scale=draw(st.floats(0.1, 20)),
        q_lora_rank=draw(st.sampled_from([0, 24])),
        kv_lora_rank=2 * draw(size),
        qk_nope_head_dim=2 * draw(size),
        qk_rope_head_dim=2 * draw(size),
        v_head_dim=draw(size),
        original_seq_len=draw(st.integers(1, 9000)),
        rope_theta=draw(st.floats(2, 1e7)),
        rope_factor=draw(st.one_of(st.just(1.0), st.floats(1.01, 100))),
        n_mtp_layers=draw(st.integers(0, 2)),
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
    )


@settings(deadline=None)
@given(configs())
def test_both_formats_read_back_what_they_wrote(config: ModelConfig) -> None:
    own = json.loads(json.dumps(config.to_dict()))
    assert ModelConfig.from_dict(own) == config
    hugging_face = json.loads(json.dumps(config.to_hf()))
    assert ModelConfig.from_dict(hugging_face) == config
    assert ModelConfig.from_dict(with_new_rope_fields(hugging_face) if config.rope_factor > 1 else own) == config


def test_export_refuses_a_gate_that_neither_v2_nor_v3_has() -> None:
    with pytest.raises(ConfigError, match="gate_bias = False exists neither as DeepSeek-V2 nor as V3"):
        ModelConfig(score_func="sigmoid", gate_bias=False).to_hf()


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("n_layer", "n_layers"), ("n_experts_groups", "n_expert_groups"), ("rope_facto", "rope_factor"), ("Dim", "dim")],
)
def test_an_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown configuration key '{key}'; did you mean '{nearest}'"):
        ModelConfig.from_dict({key: 3})


def test_an_unknown_key_unlike_all_lists_them() -> None:
    with pytest.raises(ConfigError, match="known keys: vocab_size, dim, "):
        ModelConfig.from_dict({"zzz": 3})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dim": "64"}, "'dim' is '64'; expected int"),
        ({"dim": 64.5}, "'dim' is 64.5; expected int"),
        ({"dim": True}, "'dim' is True; expected int"),
        ({"dim": None}, "'dim' is None; expected int"),
        ({"dim": math.inf}, "'dim' is inf; expected int"),
        ({"dim": math.nan}, "'dim' is nan; expected int"),
        ({"rope_factor": "40"}, "'rope_factor' is '40'; expected float"),
        ({"gate_bias": 1}, "'gate_bias' is 1; expected bool or NoneType"),
        ({"score_func": 3}, "'score_func' is 3; expected a string"),
    ],
)
def test_a_value_of_the_wrong_type_is_shown(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(values)
    assert expected in str(error.value)


CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    *(
        ({key: 0}, f"{key} is 0; it must be at least 1")
        for key in (
            "vocab_size dim inter_dim n_layers n_heads kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim "
            "original_seq_len"
        ).split()
    ),
    *(
        ({key: -1}, f"{key} is -1; it must not be negative")
        for key in ("n_dense_layers", "n_shared_experts", "q_lora_rank", "n_mtp_layers")
    ),
    ({"mscale": -1}, "mscale is -1.0; it must not be negative"),
    *(
        ({key: 0}, f"{key} is 0; a model with MoE layers needs at least 1")
        for key in "moe_inter_dim n_routed_experts n_expert_groups n_limited_groups n_activated_experts".split()
    ),
    *(({key: 7}, f"{key} is 7; ") for key in ("qk_rope_head_dim", "qk_nope_head_dim", "kv_lora_rank")),
    *(
        ({key: value}, f"{key} is {value}; it must be above 0")
        for key in ("route_scale", "beta_slow", "norm_eps")
        for value in (0.0, math.nan, math.inf)
    ),
    ({"score_func": "relu"}, "score_func is 'relu'; choose one of ('softmax', 'sigmoid')"),
    ({"dtype": "fp4"}, "dtype is 'fp4'; choose one of ('bf16', 'fp8')"),
    ({"scale_fmt": "e4m3"}, "scale_fmt is 'e4m3'; choose one of (None, 'ue8m0')"),
    ({"rope_factor": 0.5}, "rope_factor is 0.5; it stretches the context"),
    ({"rope_factor": math.nan}, "rope_factor is nan; it stretches the context"),
    ({"rope_theta": 1.0}, "rope_theta is 1.0; the base of the wavelengths must be above 1"),
    ({"beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast = 1.0 must be above beta_slow = 2.0"),
    ({"n_dense_layers": 28}, "n_dense_layers = 28 exceeds n_layers = 27: lower n_dense_layers"),
    ({"n_expert_groups": 3}, "n_routed_experts = 64 does not divide into n_expert_groups = 3"),
    ({"n_limited_groups": 2}, "n_limited_groups = 2 exceeds n_expert_groups = 1: lower n_limited_groups"),
    ({"n_expert_groups": 16}, "n_activated_experts = 6 exceeds the 4 experts of n_limited_groups = 1 groups"),
    (
        {"score_func": "sigmoid", "n_expert_groups": 64, "n_limited_groups": 8},
        "n_expert_groups = 64 leaves one expert a group",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), CONTRADICTIONS, ids=lambda value: str(value)[:40])
def test_validate_says_what_and_why(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(ModelConfig(), **changes)
    assert expected in str(error.value)


def test_one_expert_a_group_is_fine_where_the_best_one_counts() -> None:
    ModelConfig(n_expert_groups=64, n_limited_groups=8)


def test_experts_of_a_dense_model_are_not_looked_at() -> None:
    dense = ModelConfig(n_layers=2, n_dense_layers=2, n_routed_experts=0, n_activated_experts=0)
    with pytest.raises(ConfigError, match="n_routed_experts is 0"):
        dataclasses.replace(dense, n_mtp_layers=1)  # its block has experts


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "the architecture is 'llama'; supported are"),
        ({"model_type": None, "architectures": ["LlamaForCausalLM"]}, "the architecture is 'LlamaForCausalLM'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; deepseek_v3 here expects 'silu'"),
        ({"moe_layer_freq": 2}, "moe_layer_freq is 2"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False"),
        ({"rope_interleave": False}, "rope_interleave is False"),
        ({"rope_scaling": V3["rope_scaling"] | {"type": "linear"}}, "rope type 'linear' is not supported"),
        ({"rope_scaling": V3["rope_scaling"] | {"mscale": 0.5}}, "mscale = 0.5 and mscale_all_dim = 1.0; only equal"),
        (
            {"rope_scaling": V3["rope_scaling"] | {"mscale": 0, "mscale_all_dim": 0}},
            "mscale = 0 and mscale_all_dim = 0",
        ),
        ({"rope_scaling": V3["rope_scaling"] | {"factor": None}}, "its factor is missing"),
        ({"rope_scaling": "yarn"}, "the rope parameters are 'yarn'"),
        ({"routed_scaling_factor": None, "n_group": None}, "n_group, routed_scaling_factor missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method 'gptq'"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 128]}},
            "blocks [64, 128]; supported is fp8 with [128, 128]",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hugging_face_files_that_mean_another_model(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(V3 | changes)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("{", "is not valid JSON"), ("[1]", "holds a JSON list"), ('{"dimm": 3}', "did you mean 'dim'")],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.json") as error:
        ModelConfig.from_json(path)
    assert expected in str(error.value)


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file at"):
        ModelConfig.from_json(tmp_path / "absent.json")
    with pytest.raises(ConfigError, match="cannot read"):
        ModelConfig.from_json(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"dtype": "\xe9"}')
    with pytest.raises(ConfigError, match="cannot read"):
        ModelConfig.from_json(tmp_path / "latin.json")


# --- serving and training ------------------------------------------------------------------------------------------


def test_engine_fills_in_the_models_context_and_changes_nothing_else() -> None:
    config = EngineConfig(max_batch_size=2)
    assert config.for_model(ModelConfig()) == dataclasses.replace(config, max_seq_len=163840)
    assert EngineConfig(max_seq_len=99).for_model(ModelConfig()).max_seq_len == 99


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0; it must be at least 1"),
        ({"max_seq_len": 1}, "max_seq_len is 1; it must be at least 2"),
        ({"page_size": 0}, "page_size is 0"),
        ({"n_pages": 0}, "n_pages is 0"),
        ({"speculative": -1}, "speculative is -1"),
        ({"max_batch_size": 8, "speculative": 1, "max_step_tokens": 15}, "max_step_tokens = 15 is too small"),
        ({"max_batchsize": 8}, "did you mean 'max_batch_size'"),
    ],
)
def test_engine_refuses(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        EngineConfig.from_dict(values)
    assert expected in str(error.value)


def test_engine_refuses_what_the_model_cannot() -> None:
    with pytest.raises(ConfigError, match="max_seq_len = 163841 exceeds the model's context of 163840"):
        EngineConfig(max_seq_len=163841).for_model(ModelConfig())
    with pytest.raises(ConfigError, match="speculative = 1, but the model has no MTP module"):
        EngineConfig(speculative=1).for_model(ModelConfig())


def test_training_preset_points_at_a_model_beside_it() -> None:
    config = TrainConfig.from_json(CONFIGS / "train_tiny.json")
    assert ModelConfig.from_json(config.model) == ModelConfig.from_json(CONFIGS / "config_tiny.json")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"batch_tokens": 1000}, "batch_tokens = 1000 is no multiple of micro_batch_tokens"),
        ({"micro_batch_tokens": 64, "seq_len": 48}, "micro_batch_tokens = 64 is no multiple of seq_len = 48"),
        ({"lr": 0.0}, "lr is 0.0; it must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must not be negative"),
        ({"decay_fraction": 1.5}, "decay_fraction is 1.5; it is a share: 0 to 1"),
        ({"beta2": 1.0}, "beta2 is 1.0; a moving average"),
        ({"max_seconds": 0.0}, "max_seconds is 0.0; it must be above 0"),
        ({"export": "int4"}, "export is 'int4'; choose one of"),
        ({"total_steps": 0}, "total_steps is 0; it must be at least 1"),
    ],
)
def test_training_refuses(values: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        dataclasses.replace(TrainConfig(), **values)
    assert expected in str(error.value)


@pytest.mark.parametrize(("key", "value"), [("dim", "a"), ("n_heads", 1.5), ("n_layers", True), ("gate_bias", 1)])
def test_fields_of_a_wrong_type_are_refused_in_python_too(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        ModelConfig(**{key: value})
