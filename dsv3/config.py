"""Configurations as frozen records: what a model is, how it is served, how it is trained. Imports no torch.

``ModelConfig`` uses the keys of the official demo, so its files load unchanged; Hugging Face ``config.json`` files of
DeepSeek-V2 and V3 load too. Make a variant with ``dataclasses.replace(config, n_activated_experts=4)``. Nothing is
inferred from a coincidence: the gate has a bias because it scores with a sigmoid, not because ``dim`` is 7168, and YaRN
follows ``rope_factor``, never a serving limit.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from dsv3.errors import ConfigError

BLOCK = 128
"""Side of a quantisation block: weights are scaled in BLOCK x BLOCK blocks, activations in tiles of 1 x BLOCK."""


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ConfigError where the file is missing, is no JSON, or holds no object."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no configuration file at {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a JSON {type(value).__name__}; expected an object of configuration keys")
    return value


class _Record:
    """What the three configurations share: strict reading from a dict or a JSON file."""

    @classmethod
    def _from_keys(cls, values: Mapping[str, Any]) -> Self:
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in values:
            if key not in fields:
                near = difflib.get_close_matches(key, list(fields), n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(fields)}"
                raise ConfigError(f"unknown configuration key {key!r}{hint}")
        return cls(**{key: _coerce(key, value, fields[key].type) for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """All fields by their official names; ``from_dict`` reads them back."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]


def _coerce(key: str, value: Any, annotation: Any) -> Any:
    """A JSON value as the field's type. JSON has one kind of number: 1 may be a float, 1.0 an int, true neither."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    for kind in kinds:
        if kind is float and number:
            return float(value)
        if kind is int and number and math.isfinite(value) and value == int(value):
            return int(value)
        if get_origin(kind) is Literal and isinstance(value, str):
            return value  # validate() names the choices
        if kind in (bool, str, type(None)) and isinstance(value, kind):
            return value
    names = " or ".join("a string" if get_origin(k) is Literal else getattr(k, "__name__", str(k)) for k in kinds)
    raise ConfigError(f"configuration key {key!r} is {value!r}; expected {names}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(_Record):
    """The shape and the mathematics of one model. Defaults are those of the official demo (DeepSeek-V2-Lite's shape).

    Letters of docs/architecture.md: V vocab_size, D dim, F inter_dim or moe_inter_dim, H n_heads, E n_routed_experts,
    K n_activated_experts, G n_expert_groups, Q q_lora_rank, C kv_lora_rank, N qk_nope_head_dim, R qk_rope_head_dim,
    P v_head_dim. ``q_lora_rank`` 0 means that queries are not compressed. ``rope_factor`` 1 switches YaRN off.
    """

    vocab_size: int = 102400
    dim: int = 2048
    inter_dim: int = 10944
    moe_inter_dim: int = 1408
    n_layers: int = 27
    n_dense_layers: int = 1
    n_heads: int = 16
    n_routed_experts: int = 64
    n_shared_experts: int = 2
    n_activated_experts: int = 6
    n_expert_groups: int = 1
    n_limited_groups: int = 1
    score_func: Literal["softmax", "sigmoid"] = "softmax"
    route_scale: float = 1.0
    q_lora_rank: int = 0
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    original_seq_len: int = 4096
    rope_theta: float = 10000.0
    rope_factor: float = 40.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    dtype: Literal["bf16", "fp8"] = "bf16"
    scale_fmt: Literal["ue8m0"] | None = None
    # Keys of ours: the official demo has no multi-token prediction, ties the bias to dim == 7168 and fixes epsilon.
    gate_bias: bool | None = None
    n_mtp_layers: int = 0
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _coerce(field.name, getattr(self, field.name), field.type))
        self.validate()

    @property
    def has_gate_bias(self) -> bool:
        """Auxiliary-loss-free balancing (V3 §2.1.2): follows the sigmoid unless ``gate_bias`` says otherwise."""
        return self.score_func == "sigmoid" if self.gate_bias is None else self.gate_bias

    @property
    def qk_head_dim(self) -> int:
        """Width N + R of one head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Width C + R of what is cached for one token and layer: the latent and the shared rope key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def max_context(self) -> int:
        """Positions that the rotary embedding was extended to; a serving limit may be lower."""
        return int(self.original_seq_len * self.rope_factor)

    @property
    def softmax_scale(self) -> float:
        """(N + R)^-1/2, times YaRN's mscale squared where the context is extended (arXiv 2309.00071, Eq. 22)."""
        mscale = 0.1 * self.mscale * math.log(self.rope_factor) + 1.0 if self.rope_factor > 1 else 1.0
        return self.qk_head_dim**-0.5 * mscale * mscale

    def is_moe(self, layer: int) -> bool:
        """Whether block ``layer`` has experts; multi-token prediction blocks count from ``n_layers`` on."""
        return layer >= self.n_dense_layers

    def validate(self) -> None:
        """Raise ConfigError naming the two numbers that contradict each other, and the remedy."""
        at_least_one = "vocab_size dim inter_dim n_layers n_heads kv_lora_rank qk_nope_head_dim qk_rope_head_dim"
        for key in (at_least_one + " v_head_dim original_seq_len").split():
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("n_dense_layers", "n_shared_experts", "q_lora_rank", "n_mtp_layers"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must not be negative")
        for key, allowed in (
            ("score_func", ("softmax", "sigmoid")),
            ("dtype", ("bf16", "fp8")),
            ("scale_fmt", (None, "ue8m0")),
        ):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; choose one of {allowed}")
        if self.qk_rope_head_dim % 2:
            raise ConfigError(f"qk_rope_head_dim is {self.qk_rope_head_dim}; rotation works on pairs: make it even")
        for key in ("qk_nope_head_dim", "kv_lora_rank"):
            if getattr(self, key) % 2:  # complex numbers lie at even offsets only
                raise ConfigError(
                    f"{key} is {getattr(self, key)}; the rotated pairs stand behind it, aligned to 2: make it even"
                )
        # Each comparison is written so that NaN, which JSON readers accept, fails it.
        if not 1 <= self.rope_factor < math.inf:
            raise ConfigError(f"rope_factor is {self.rope_factor}; it stretches the context: 1 (no YaRN) or more")
        if not 1 < self.rope_theta < math.inf:
            raise ConfigError(f"rope_theta is {self.rope_theta}; the base of the wavelengths must be above 1")
        for key in ("route_scale", "beta_slow", "norm_eps"):
            if not 0 < getattr(self, key) < math.inf:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be above 0")
        if not 0 <= self.mscale < math.inf:
            raise ConfigError(f"mscale is {self.mscale}; it must not be negative")
        if not self.beta_slow < self.beta_fast < math.inf:
            raise ConfigError(
                f"beta_fast = {self.beta_fast} must be above beta_slow = {self.beta_slow}: YaRN's ramp runs between"
            )
        if self.n_dense_layers > self.n_layers:
            raise ConfigError(
                f"n_dense_layers = {self.n_dense_layers} exceeds n_layers = {self.n_layers}: lower n_dense_layers"
            )
        if self.n_dense_layers < self.n_layers or self.n_mtp_layers:
            self._validate_experts()

    def _validate_experts(self) -> None:
        experts, groups, limited, active = (
            self.n_routed_experts,
            self.n_expert_groups,
            self.n_limited_groups,
            self.n_activated_experts,
        )
        for key in ("moe_inter_dim", "n_routed_experts", "n_expert_groups", "n_limited_groups", "n_activated_experts"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; a model with MoE layers needs at least 1")
        if experts % groups:
            raise ConfigError(
                f"n_routed_experts = {experts} does not divide into n_expert_groups = {groups}: "
                "make the first a multiple of the second"
            )
        if limited > groups:
            raise ConfigError(
                f"n_limited_groups = {limited} exceeds n_expert_groups = {groups}: lower n_limited_groups"
            )
        if active > limited * (experts // groups):
            raise ConfigError(
                f"n_activated_experts = {active} exceeds the {limited * (experts // groups)} experts of "
                f"n_limited_groups = {limited} groups: lower the first or raise the second"
            )
        if groups > 1 and self.has_gate_bias and experts // groups < 2:
            raise ConfigError(
                f"n_expert_groups = {groups} leaves one expert a group; a group's score is the sum of its two best "
                "(V3 §2.1.2): use at least two experts a group"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From official keys, or from the keys of a Hugging Face ``config.json`` (recognised by ``model_type``)."""
        if "model_type" in values or "hidden_size" in values or "architectures" in values:
            return cls._from_keys(_from_hugging_face(values))
        # The demo's limits belong to the engine here (EngineConfig); its files may still name them.
        return cls._from_keys({k: v for k, v in values.items() if k not in ("max_batch_size", "max_seq_len")})

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """From a file of official or Hugging Face keys. Raises ConfigError with the file's name."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that ``transformers`` reads: DeepseekV3 for sigmoid gates, DeepseekV2 for softmax."""
        v3 = self.score_func == "sigmoid"
        if self.has_gate_bias != v3:
            raise ConfigError(
                f"score_func = {self.score_func!r} with gate_bias = {self.has_gate_bias} exists neither as DeepSeek-V2 "
                "nor as V3 in Hugging Face format: keep gate_bias at its default to export"
            )
        values: dict[str, Any] = {hf_key: getattr(self, key) for key, hf_key in _HF_KEYS.items()}
        values |= {
            "architectures": ["DeepseekV3ForCausalLM" if v3 else "DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v3" if v3 else "deepseek_v2",
            "q_lora_rank": self.q_lora_rank or None,
            "scoring_func": self.score_func,
            "topk_method": "noaux_tc" if v3 else ("greedy" if self.n_expert_groups == 1 else "group_limited_greedy"),
            "norm_topk_prob": v3,
            "moe_layer_freq": 1,
            "num_key_value_heads": self.n_heads,
            "max_position_embeddings": self.max_context,
            "head_dim": self.qk_rope_head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": False,
            "use_cache": True,
            "rope_theta": self.rope_theta,
            "rope_scaling": None,
        }
        if self.rope_factor > 1:
            values["rope_scaling"] = {
                "type": "yarn",
                "rope_type": "yarn",
                "rope_theta": self.rope_theta,
                "factor": self.rope_factor,
                "original_max_position_embeddings": self.original_seq_len,
                "beta_fast": self.beta_fast,
                "beta_slow": self.beta_slow,
                # transformers scales the softmax by the second and the rotation by their ratio: both, always.
                "mscale": self.mscale,
                "mscale_all_dim": self.mscale,
            }
        return values


_HF_KEYS = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace",
    "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts",
    "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok",
    "n_expert_groups": "n_group",
    "n_limited_groups": "topk_group",
    "route_scale": "routed_scaling_factor",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "n_mtp_layers": "num_nextn_predict_layers",
    "norm_eps": "rms_norm_eps",
}


def _from_hugging_face(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Official keys from a Hugging Face ``config.json``. Keys that change nothing for this model are passed over."""
    kind = str(hf.get("model_type") or "")
    if kind not in ("deepseek_v2", "deepseek_v3"):
        named = kind or ", ".join(hf.get("architectures") or ()) or "unnamed"
        absent = "" if kind else " and model_type is missing"
        raise ConfigError(f"the architecture is {named!r}{absent}; supported are deepseek_v2 and deepseek_v3")
    v3 = kind == "deepseek_v3"
    for key, expected, meaning in (
        ("hidden_act", "silu", "other activations"),
        ("moe_layer_freq", 1, "MoE layers with dense ones between"),
        ("attention_bias", False, "biases in attention"),
        ("tie_word_embeddings", False, "an output head tied to the embedding"),
        ("mlp_bias", False, "biases in the MLP"),
        ("rope_interleave", True, "weights permuted for half-split rotary pairs"),
        ("norm_topk_prob", v3, "this normalisation of the gate"),
    ):
        if hf.get(key, expected) != expected:
            raise ConfigError(f"{key} is {hf[key]!r}; {kind} here expects {expected!r}: {meaning} are not supported")
    score_func = hf.get("scoring_func", "sigmoid" if v3 else "softmax")
    # What a file leaves out or sets to null means "none of it"; every other key decides the mathematics, so no guess.
    absent = {"n_shared_experts": 0, "n_mtp_layers": 0, "norm_eps": 1e-6}
    if not v3:
        absent |= {"n_expert_groups": 1, "n_limited_groups": 1}
    values: dict[str, Any] = absent | {key: hf[k] for key, k in _HF_KEYS.items() if hf.get(k) is not None}
    missing = [hf_key for key, hf_key in _HF_KEYS.items() if key not in values]
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing; a {kind} config.json has to give them all")
    values |= {"score_func": score_func, "gate_bias": v3, "q_lora_rank": hf.get("q_lora_rank") or 0}
    if values["gate_bias"] == (score_func == "sigmoid"):
        del values["gate_bias"]
    if hf.get("topk_method") == "greedy":
        values |= {"n_expert_groups": 1, "n_limited_groups": 1}
    values |= _rope_from_hugging_face(hf)
    quantization = hf.get("quantization_config")
    if quantization:
        method, block = quantization.get("quant_method"), quantization.get("weight_block_size")
        if method != "fp8" or (block is not None and list(block) != [BLOCK, BLOCK]):
            raise ConfigError(
                f"quantization_config has quant_method {method!r} with blocks {block}; supported is fp8 with "
                f"[{BLOCK}, {BLOCK}]: cast the checkpoint to one of BF16, FP32 or FP8 first"
            )
        values |= {"dtype": "fp8", "scale_fmt": quantization.get("scale_fmt")}
    return values


def _rope_from_hugging_face(hf: Mapping[str, Any]) -> dict[str, Any]:
    # Old files: rope_theta beside rope_scaling {"type"}. New ones: rope_parameters {"rope_type", "rope_theta", ...}.
    rope: Any = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError(f"the rope parameters are {rope!r}; expected an object with rope_type and its values")
    theta = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": theta, "rope_factor": 1.0, "original_seq_len": hf.get("max_position_embeddings", 4096)}
    if kind != "yarn":
        raise ConfigError(f"rope type {kind!r} is not supported; DeepSeek-V2 and V3 use 'yarn' or 'default'")
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if not mscale or mscale != all_dim:
        raise ConfigError(
            f"rope mscale = {mscale} and mscale_all_dim = {all_dim}; only equal, non-zero values are supported "
            "(both scale the softmax; unequal ones would also scale the rotation)"
        )
    if not rope.get("factor"):
        raise ConfigError("the rope type is 'yarn', but its factor is missing: how much longer the context became")
    return {
        "rope_theta": theta,
        "rope_factor": rope["factor"],
        "original_seq_len": rope.get("original_max_position_embeddings", hf.get("max_position_embeddings", 4096)),
        "beta_fast": rope.get("beta_fast", 32.0),
        "beta_slow": rope.get("beta_slow", 1.0),
        "mscale": mscale,
    }


@dataclass(frozen=True, kw_only=True)
class EngineConfig(_Record):
    """How a model is served: limits and memory, nothing that changes its mathematics.

    max_batch_size: requests that run at once; more wait. max_seq_len: longest prompt plus output; None: the model's
    ``max_context``. page_size: tokens in a cache page. n_pages: pages in the cache; None: enough for ``max_batch_size``
    sequences of ``max_seq_len``, as far as memory goes. max_step_tokens: tokens fed in one step, so long prompts go in
    chunks. speculative: tokens drafted by MTP for each step, 0 for none.
    """

    max_batch_size: int = 32
    max_seq_len: int | None = None
    page_size: int = 64
    n_pages: int | None = None
    max_step_tokens: int = 2048
    speculative: int = 0

    def __post_init__(self) -> None:
        for key, least in (
            ("max_batch_size", 1),
            ("max_seq_len", 2),
            ("page_size", 1),
            ("n_pages", 1),
            ("max_step_tokens", 1),
            ("speculative", 0),
        ):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")
        needed = self.max_batch_size * (1 + self.speculative)
        if self.max_step_tokens < needed:
            raise ConfigError(
                f"max_step_tokens = {self.max_step_tokens} is too small: max_batch_size = {self.max_batch_size} "
                f"requests with speculative = {self.speculative} drafts each feed {needed} tokens in a step; raise the "
                "first or lower max_batch_size"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From a dict of the fields above; an unknown key is a ConfigError that names the nearest valid one."""
        return cls._from_keys(values)

    def for_model(self, model: ModelConfig) -> Self:
        """With ``max_seq_len`` filled in for this model. Raises ConfigError where the model cannot do what is asked."""
        context = model.max_context
        if self.max_seq_len is not None and self.max_seq_len > context:
            raise ConfigError(
                f"max_seq_len = {self.max_seq_len} exceeds the model's context of {context} tokens "
                f"(original_seq_len = {model.original_seq_len} times rope_factor = {model.rope_factor}): lower it"
            )
        if self.speculative and not model.n_mtp_layers:
            raise ConfigError(
                f"speculative = {self.speculative}, but the model has no MTP module (n_mtp_layers = 0) to draft with: "
                "use speculative = 0"
            )
        return dataclasses.replace(self, max_seq_len=self.max_seq_len or context)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Record):
    """One training run. Rates and losses follow V3 §4.2 in the names and are sized for the embedded model.

    Where: ``model`` is a file of ModelConfig keys, ``data`` a directory with train.npz and val.npz (dsv3.train.corpus),
    ``tokenizer`` the checkpoint whose tokenizer made them ("tiny": the embedded one; None: unchecked, and none is
    exported); ``out`` receives log, states and export.

    Batches: a step takes ``batch_tokens`` (over all ranks) as sequences of ``seq_len``, in micro-batches whose
    gradients are summed. Schedule: warm-up over ``warmup_steps``, constant, cosine over the last ``decay_fraction``
    down to ``min_lr_ratio`` x ``lr``. Losses: next token + ``mtp_weight`` x MTP + ``balance_weight`` x sequence-wise
    balance; ``bias_update`` is gamma, and zero for the last ``bias_freeze_fraction`` of the run.

    ``max_seconds`` bounds the whole run, resumed parts included: the schedule follows the larger of the shares of steps
    and of time, so it always reaches its end. ``stop_at_seconds`` bounds one process only, which then saves a state.
    ``eval_documents``: validate on this many documents of each language, None: all. ``patience``: end after so many
    evaluations without a better one, and export the best; None: train to the end and export that.
    """

    model: str = "configs/config_tiny.json"
    data: str = ".data"
    tokenizer: str | None = None
    out: str = "out/tiny"
    seed: int = 0
    init_std: float = 0.02
    seq_len: int = 1024
    batch_tokens: int = 65536
    micro_batch_tokens: int = 65536
    total_steps: int = 4000
    warmup_steps: int = 200
    decay_fraction: float = 0.5
    lr: float = 2e-3
    min_lr_ratio: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    moments: Literal["fp32", "bf16"] = "fp32"
    mtp_weight: float = 0.3
    bias_update: float = 0.001
    bias_freeze_fraction: float = 0.03
    balance_weight: float = 0.0001
    loss_chunk: int = 8192
    compile: Literal["no", "loss", "all", "graph"] = "no"
    recompute: bool = False
    device: str | None = None
    dtype: Literal["bf16", "fp32"] = "bf16"
    max_seconds: float | None = None
    stop_at_seconds: float | None = None
    log_every: int = 10
    eval_every: int = 250
    eval_documents: int | None = None
    patience: int | None = None
    save_every: int = 500
    keep: int = 2
    export: Literal["fp8", "bf16", "fp32"] = "fp8"

    def __post_init__(self) -> None:
        self.validate()

    @property
    def n_micro_batches(self) -> int:
        """Micro-batches in a step, over all ranks."""
        return self.batch_tokens // self.micro_batch_tokens

    @property
    def micro_batch_size(self) -> int:
        """Sequences in a micro-batch."""
        return self.micro_batch_tokens // self.seq_len

    def validate(self) -> None:
        """Raise ConfigError naming the values that cannot be, and the remedy."""
        positive = "seq_len batch_tokens micro_batch_tokens total_steps loss_chunk log_every eval_every"
        for key in (positive + " save_every keep").split():
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("init_std", "lr", "eps", "clip"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be above 0")
        for key in ("seed", "warmup_steps", "weight_decay", "mtp_weight", "bias_update", "balance_weight"):
            if getattr(self, key) < 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must not be negative")
        for key in ("decay_fraction", "min_lr_ratio", "bias_freeze_fraction"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it is a share: 0 to 1")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; a moving average needs 0 or more and less than 1")
        for key in ("max_seconds", "stop_at_seconds", "eval_documents", "patience"):
            value = getattr(self, key)
            if value is not None and value <= 0:
                raise ConfigError(f"{key} is {value}; it must be above 0, or unset for no limit")
        for key, allowed in (
            ("optimizer", ("adamw", "muon")),
            ("moments", ("fp32", "bf16")),
            ("compile", ("no", "loss", "all", "graph")),
            ("dtype", ("bf16", "fp32")),
            ("export", ("fp8", "bf16", "fp32")),
        ):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; choose one of {allowed}")
        for whole, part in (("batch_tokens", "micro_batch_tokens"), ("micro_batch_tokens", "seq_len")):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{whole} = {getattr(self, whole)} is no multiple of {part} = {getattr(self, part)}: change either"
                )

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """From a file of these keys; its ``model`` is relative to the file. Raises ConfigError with the file's name."""
        values = read_json(path)
        if isinstance(values.get("model"), str):
            values["model"] = str(Path(path).parent / values["model"])
        try:
            return cls._from_keys(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
