"""One table of every tensor: its official and Hugging Face names, its shape, how ranks divide it, its precision.

Three naming schemes meet here:

  official      layers.3.ffn.experts.7.w1.weight                      the demo's converted checkpoints, and this package
  Hugging Face  model.layers.3.mlp.experts.7.gate_proj.weight         the released weights, transformers
  in the model  parameter layers.3.ffn.experts.w13, entry [7, 0]      all experts of a layer are one tensor

Both directions of the translation, the list of tensors that a checkpoint must hold, and each tensor's place in a
``Transformer`` are derived from the rows below, so they cannot disagree. The multi-token prediction (MTP) modules are
``mtp.{k}`` here and ``model.layers.{n_layers + k}`` in the released weights, which also repeat the embedding and the
output head there (``embed_tokens``, ``shared_head.head``): the report shares both with the main model (arXiv 2412.19437
§2.2), so these two copies have a name but no place of their own.

An FP8 linear has a second tensor, the scales of its 128x128 blocks: ``scale`` officially, ``weight_scale_inv`` in the
released weights (despite the name it is the factor that restores the weight: w = q * scale).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from dsv3.config import BLOCK, ModelConfig

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One kind of module.

    split: the dimension that tensor parallelism divides. fp8: e4m3 with block scales in an FP8 release. shape: of the
    whole weight, (out, in).
    """

    official: str
    hf: str
    split: int | None
    fp8: bool
    shape: Callable[[ModelConfig], Shape]


# Column-parallel linears divide their outputs (dimension 0), row-parallel ones their inputs (dimension 1).
TOP = (
    Row("embed", "model.embed_tokens", 0, False, lambda c: (c.vocab_size, c.dim)),
    Row("norm", "model.norm", None, False, lambda c: (c.dim,)),
    Row("head", "lm_head", 0, False, lambda c: (c.vocab_size, c.dim)),
)
QUERY_FULL = (Row("attn.wq", "self_attn.q_proj", 0, True, lambda c: (c.n_heads * c.qk_head_dim, c.dim)),)
QUERY_COMPRESSED = (
    Row("attn.wq_a", "self_attn.q_a_proj", None, True, lambda c: (c.q_lora_rank, c.dim)),
    Row("attn.q_norm", "self_attn.q_a_layernorm", None, False, lambda c: (c.q_lora_rank,)),
    Row("attn.wq_b", "self_attn.q_b_proj", 0, True, lambda c: (c.n_heads * c.qk_head_dim, c.q_lora_rank)),
)
ATTENTION = (
    Row("attn_norm", "input_layernorm", None, False, lambda c: (c.dim,)),
    Row("attn.wkv_a", "self_attn.kv_a_proj_with_mqa", None, True, lambda c: (c.latent_dim, c.dim)),
    Row("attn.kv_norm", "self_attn.kv_a_layernorm", None, False, lambda c: (c.kv_lora_rank,)),
    Row(
        "attn.wkv_b",
        "self_attn.kv_b_proj",
        0,
        True,
        lambda c: (c.n_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank),
    ),
    Row("attn.wo", "self_attn.o_proj", 1, True, lambda c: (c.dim, c.n_heads * c.v_head_dim)),
    Row("ffn_norm", "post_attention_layernorm", None, False, lambda c: (c.dim,)),
)
DENSE = (
    Row("ffn.w1", "mlp.gate_proj", 0, True, lambda c: (c.inter_dim, c.dim)),
    Row("ffn.w2", "mlp.down_proj", 1, True, lambda c: (c.dim, c.inter_dim)),
    Row("ffn.w3", "mlp.up_proj", 0, True, lambda c: (c.inter_dim, c.dim)),
)
GATE = (Row("ffn.gate", "mlp.gate", None, False, lambda c: (c.n_routed_experts, c.dim)),)
# {j} is the number of a routed expert. An expert belongs to one expert-parallel rank and is not divided further.
EXPERT = (
    Row("ffn.experts.{j}.w1", "mlp.experts.{j}.gate_proj", None, True, lambda c: (c.moe_inter_dim, c.dim)),
    Row("ffn.experts.{j}.w2", "mlp.experts.{j}.down_proj", None, True, lambda c: (c.dim, c.moe_inter_dim)),
    Row("ffn.experts.{j}.w3", "mlp.experts.{j}.up_proj", None, True, lambda c: (c.moe_inter_dim, c.dim)),
)
SHARED_EXPERTS = tuple(
    Row(f"ffn.shared_experts.{ours}", f"mlp.shared_experts.{theirs}", split, True, shape)
    for ours, theirs, split, shape in (
        ("w1", "gate_proj", 0, lambda c: (c.n_shared_experts * c.moe_inter_dim, c.dim)),
        ("w2", "down_proj", 1, lambda c: (c.dim, c.n_shared_experts * c.moe_inter_dim)),
        ("w3", "up_proj", 0, lambda c: (c.n_shared_experts * c.moe_inter_dim, c.dim)),
    )
)
MTP = (
    Row("enorm", "enorm", None, False, lambda c: (c.dim,)),
    Row("hnorm", "hnorm", None, False, lambda c: (c.dim,)),
    Row("eh_proj", "eh_proj", None, False, lambda c: (c.dim, 2 * c.dim)),
    Row("shared_head.norm", "shared_head.norm", None, False, lambda c: (c.dim,)),
)
# The released MTP layer repeats these two; the value is the module of the main model that they repeat.
MTP_COPIES = {"embed": "embed", "shared_head.head": "head"}
_MTP_COPY_NAMES = {"embed": "embed_tokens", "shared_head.head": "shared_head.head"}

_LEAVES = {"weight": "weight", "scale": "weight_scale_inv", "bias": "e_score_correction_bias"}
_BLOCK_ROWS = (*QUERY_FULL, *QUERY_COMPRESSED, *ATTENTION, *DENSE, *GATE, *EXPERT, *SHARED_EXPERTS)
_SPLITS = {row.official: row.split for row in (*TOP, *_BLOCK_ROWS)}
_FP8_MODULES = {row.official for row in _BLOCK_ROWS if row.fp8}
_TOP_TO_HF = {row.official: row.hf for row in TOP}
_BLOCK_TO_HF = {row.official: row.hf for row in _BLOCK_ROWS}
_MTP_TO_HF = {row.official: row.hf for row in MTP} | _MTP_COPY_NAMES
_TOP_FROM_HF = {hf: ours for ours, hf in _TOP_TO_HF.items()}
_BLOCK_FROM_HF = {hf: ours for ours, hf in _BLOCK_TO_HF.items()}
_MTP_FROM_HF = {hf: ours for ours, hf in _MTP_TO_HF.items()}
_LEAVES_FROM_HF = {hf: ours for ours, hf in _LEAVES.items()}

# Numbers without leading zeros: "layers.07" is no name of anything, and must not pass for layer 7.
_NUMBER = r"(0|[1-9]\d*)"
_OFFICIAL_PREFIX = re.compile(rf"(layers|mtp)\.{_NUMBER}\.(.+)")
_HF_PREFIX = re.compile(rf"model\.layers\.{_NUMBER}\.(.+)")
_EXPERT_NUMBER = re.compile(rf"(?<=experts\.){_NUMBER}(?=\.)")


def to_hf(name: str, n_layers: int) -> str | None:
    """The Hugging Face name of an official one in a model of ``n_layers`` main layers; None if the table lacks it."""
    module, _, leaf = name.rpartition(".")
    match = _OFFICIAL_PREFIX.fullmatch(module)
    if match is None:
        return _join(_TOP_TO_HF.get(module), leaf) if leaf == "weight" else None
    kind, number, rest = match[1], int(match[2]), match[3]
    if kind == "layers" and number >= n_layers:
        return None
    hf = _translate(rest, _BLOCK_TO_HF)
    if hf is None and kind == "mtp":
        hf = _MTP_TO_HF.get(rest)
    if hf is None or not _has_leaf(rest, leaf):
        return None
    layer = number + (n_layers if kind == "mtp" else 0)
    return f"model.layers.{layer}.{hf}.{_LEAVES[leaf]}"


def from_hf(name: str, n_layers: int) -> str | None:
    """The official name of a Hugging Face one: the inverse of ``to_hf``; None if the table lacks it."""
    module, _, hf_leaf = name.rpartition(".")
    leaf = _LEAVES_FROM_HF.get(hf_leaf)
    match = _HF_PREFIX.fullmatch(module)
    if match is None:
        return _join(_TOP_FROM_HF.get(module), "weight") if leaf == "weight" else None
    layer, rest = int(match[1]), match[2]
    ours = _translate(rest, _BLOCK_FROM_HF)
    if ours is None and layer >= n_layers:
        ours = _MTP_FROM_HF.get(rest)
    if ours is None or leaf is None or not _has_leaf(ours, leaf):
        return None
    prefix = f"layers.{layer}" if layer < n_layers else f"mtp.{layer - n_layers}"
    return f"{prefix}.{ours}.{leaf}"


def _join(module: str | None, leaf: str) -> str | None:
    return None if module is None else f"{module}.{leaf}"


def _translate(rest: str, table: dict[str, str]) -> str | None:
    number = _EXPERT_NUMBER.search(rest)
    if number is None:
        return table.get(rest)
    found = table.get(_EXPERT_NUMBER.sub("{j}", rest))
    return None if found is None else found.replace("{j}", number[0])


def _has_leaf(module: str, leaf: str) -> bool:
    if leaf == "scale":
        return _EXPERT_NUMBER.sub("{j}", module) in _FP8_MODULES
    return leaf == "weight" or (leaf == "bias" and module == "ffn.gate")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor that a checkpoint of some config holds.

    name, hf: its official and Hugging Face names. shape: of the whole tensor. split: dimension that tensor parallelism
    divides. expert: number of the routed expert it belongs to. fp8: e4m3 with a scale in an FP8 release. fp32: kept in
    FP32 by every release. parameter, index: where it lives in ``Transformer``: ``state_dict()[parameter][index]``.
    """

    name: str
    hf: str
    shape: Shape
    split: int | None = None
    expert: int | None = None
    fp8: bool = False
    fp32: bool = False
    parameter: str = ""
    index: tuple[int, ...] = ()

    @property
    def scale_name(self) -> str:
        """Official name of its block scales."""
        return self.name.removesuffix("weight") + "scale"

    @property
    def hf_scale(self) -> str:
        """Hugging Face name of its block scales."""
        return self.hf + "_scale_inv"

    @property
    def scale_shape(self) -> Shape:
        """One scale for each started 128x128 block."""
        return tuple(-(-size // BLOCK) for size in self.shape)

    @property
    def scale_parameter(self) -> str:
        """Where its scales live: beside a linear's ``weight`` as ``scale``, beside stacked experts as ``w13_scale``."""
        if self.expert is None:
            return self.parameter.removesuffix("weight") + "scale"
        return self.parameter + "_scale"


@lru_cache(maxsize=8)
def specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of ``config`` except block scales and the MTP copies: main model first, in order of execution."""
    return tuple(_specs(config))


def _specs(config: ModelConfig) -> Iterator[TensorSpec]:
    embed, norm, head = TOP
    yield _spec(config, embed, "", "")
    for layer in range(config.n_layers):
        yield from _block(config, f"layers.{layer}.", f"model.layers.{layer}.", config.is_moe(layer))
    yield _spec(config, norm, "", "")
    yield _spec(config, head, "", "")
    for k in range(config.n_mtp_layers):
        layer = config.n_layers + k
        for row in MTP:
            yield _spec(config, row, f"mtp.{k}.", f"model.layers.{layer}.")
        yield from _block(config, f"mtp.{k}.", f"model.layers.{layer}.", config.is_moe(layer))


def _block(config: ModelConfig, prefix: str, hf_prefix: str, moe: bool) -> Iterator[TensorSpec]:
    query = QUERY_COMPRESSED if config.q_lora_rank else QUERY_FULL
    for row in (*query, *ATTENTION, *(GATE if moe else DENSE)):
        yield _spec(config, row, prefix, hf_prefix)
    if not moe:
        return
    if config.has_gate_bias:
        name, hf = f"{prefix}{GATE[0].official}.bias", f"{hf_prefix}{GATE[0].hf}.{_LEAVES['bias']}"
        yield TensorSpec(name, hf, (config.n_routed_experts,), fp32=True, parameter=name)
    if config.n_shared_experts:
        for row in SHARED_EXPERTS:
            yield _spec(config, row, prefix, hf_prefix)
    places = (("w13", 0), ("w2",), ("w13", 1))
    shapes = [row.shape(config) for row in EXPERT]
    for j in range(config.n_routed_experts):
        for row, shape, (stack, *index) in zip(EXPERT, shapes, places):
            name = f"{prefix}{row.official}.weight".replace("{j}", str(j))
            hf = f"{hf_prefix}{row.hf}.weight".replace("{j}", str(j))
            parameter = f"{prefix}ffn.experts.{stack}"
            yield TensorSpec(name, hf, shape, expert=j, fp8=True, parameter=parameter, index=(j, *index))


def _spec(config: ModelConfig, row: Row, prefix: str, hf_prefix: str) -> TensorSpec:
    name = f"{prefix}{row.official}.weight"
    return TensorSpec(name, f"{hf_prefix}{row.hf}.weight", row.shape(config), row.split, fp8=row.fp8, parameter=name)


def mtp_copies(config: ModelConfig) -> dict[str, str]:
    """Official name of each MTP copy of a shared tensor -> official name of the main model's tensor."""
    return {
        f"mtp.{k}.{copy}.weight": f"{original}.weight"
        for k in range(config.n_mtp_layers)
        for copy, original in MTP_COPIES.items()
    }


def skipped(hf_name: str, config: ModelConfig) -> bool:
    """Whether a checkpoint may hold this tensor although the model has no place for it.

    Rotary frequencies are computed from the config (old exports store them), and the MTP layers are left out of a model
    that is configured without them (``n_mtp_layers`` 0).
    """
    if hf_name.endswith("rotary_emb.inv_freq"):
        return True
    name = from_hf(hf_name, config.n_layers)
    match = _OFFICIAL_PREFIX.fullmatch(name) if name else None
    return match is not None and match[1] == "mtp" and int(match[2]) >= config.n_mtp_layers


def split_dimension(name: str) -> int | None:
    """The dimension of an official tensor, or of its scales, that tensor parallelism divides; None: none is divided."""
    module, _, leaf = name.rpartition(".")
    match = _OFFICIAL_PREFIX.fullmatch(module)
    return None if leaf == "bias" else _SPLITS.get(match[3] if match else module)
