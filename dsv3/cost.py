"""What a model costs, from its configuration alone: parameters, bytes, cache and FLOPs. Needs no torch.

One inventory lists every matrix of the model with its shape, how many copies are stored and how many of them a token
passes through. Every figure is a sum over that list, so the parameters, the bytes and the FLOPs cannot disagree about
what the model consists of:

    parameters  = Σ rows · cols · stored           activated = Σ rows · cols · used
    FLOPs/token = Σ 2 · rows · cols · used  +  attention over the cached positions, which has no parameters

Two conventions decide the last digit. The gate's bias buffers (E values per MoE layer) are no parameters: no optimiser
moves them. An MTP module counts what it owns; the embedding and the output head belong to the main model, although
released checkpoints carry a second copy of both. Sections (§) are those of the report, arXiv 2412.19437.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from math import ceil
from typing import NamedTuple

from dsv3.config import BLOCK, ModelConfig
from dsv3.errors import ConfigError


class Kind(Enum):
    """What happens to a matrix: is it multiplied, and may it be stored in FP8 (§3.3.1)?"""

    LINEAR = "linear"  # multiplied; e4m3 with block scales in an FP8 checkpoint
    PLAIN = "plain"  # multiplied; kept in BF16 (output head, gate, eh_proj)
    TABLE = "table"  # looked up, never multiplied (embedding)
    VECTOR = "vector"  # elementwise (norms)


class Matrix(NamedTuple):
    """``stored`` equal matrices of ``rows`` x ``cols``, of which each token passes through ``used``."""

    part: str
    rows: int
    cols: int
    stored: int
    used: int
    kind: Kind = Kind.LINEAR

    @property
    def parameters(self) -> int:
        return self.rows * self.cols * self.stored

    @property
    def activated(self) -> int:
        return self.rows * self.cols * self.used


def matrices(config: ModelConfig) -> Iterator[Matrix]:
    """The main model, without MTP modules."""
    yield Matrix("embedding", config.vocab_size, config.dim, 1, 1, Kind.TABLE)
    for layer in range(config.n_layers):
        yield from _block(config, is_moe=config.is_moe(layer))
    yield Matrix("norms", config.dim, 1, 1, 1, Kind.VECTOR)
    yield Matrix("head", config.vocab_size, config.dim, 1, 1, Kind.PLAIN)


def mtp_matrices(config: ModelConfig) -> Iterator[Matrix]:
    """One MTP module (§2.2): ``eh_proj`` (2D -> D), norms ``enorm``, ``hnorm``, ``shared_head.norm``, one MoE block."""
    yield Matrix("eh_proj", config.dim, 2 * config.dim, 1, 1, Kind.PLAIN)
    yield Matrix("norms", config.dim, 1, 3, 3, Kind.VECTOR)
    yield from _block(config, is_moe=True)


def _block(config: ModelConfig, *, is_moe: bool) -> Iterator[Matrix]:
    c, heads = config, config.n_heads
    yield Matrix("norms", c.dim, 1, 2, 2, Kind.VECTOR)

    if c.q_lora_rank:
        yield Matrix("attention", c.q_lora_rank, c.dim, 1, 1)  # wq_a
        yield Matrix("norms", c.q_lora_rank, 1, 1, 1, Kind.VECTOR)  # q_norm
    yield Matrix("attention", heads * c.qk_head_dim, c.q_lora_rank or c.dim, 1, 1)  # wq_b, or wq
    yield Matrix("attention", c.latent_dim, c.dim, 1, 1)  # wkv_a
    yield Matrix("norms", c.kv_lora_rank, 1, 1, 1, Kind.VECTOR)  # kv_norm
    yield Matrix("attention", heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank, 1, 1)  # wkv_b
    yield Matrix("attention", c.dim, heads * c.v_head_dim, 1, 1)  # wo

    if not is_moe:
        yield from _mlp("dense FFN", c.dim, c.inter_dim, 1, 1)
        return
    yield Matrix("gate", c.n_routed_experts, c.dim, 1, 1, Kind.PLAIN)
    yield from _mlp("routed experts", c.dim, c.moe_inter_dim, c.n_routed_experts, c.n_activated_experts)
    # The checkpoint stores the shared experts as one MLP of n_shared times the width, so FP8 blocks span them.
    yield from _mlp("shared experts", c.dim, c.n_shared_experts * c.moe_inter_dim, 1, 1)


def _mlp(part: str, dim: int, inter_dim: int, stored: int, used: int) -> Iterator[Matrix]:
    yield Matrix(part, inter_dim, dim, 2 * stored, 2 * used)  # w1 (gate) and w3 (up)
    yield Matrix(part, dim, inter_dim, stored, used)  # w2 (down)


def parameters(config: ModelConfig) -> int:
    """Parameters of the main model: 671,026,404,352 for config_671B."""
    return sum(matrix.parameters for matrix in matrices(config))


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """The same, split into embedding, attention, dense FFN, routed experts, shared experts, gate, norms and head."""
    parts: dict[str, int] = {}
    for matrix in matrices(config):
        parts[matrix.part] = parts.get(matrix.part, 0) + matrix.parameters
    return parts


def activated_parameters(config: ModelConfig, *, embedding: bool = True) -> int:
    """Parameters that one token passes through: K of the E routed experts, everything else.

    With ``embedding`` the whole table counts, as in published figures (37.6B for config_671B), although a token reads
    one row of it; without, the figure is what the matrix products need (36.6B).
    """
    return sum(m.activated for m in matrices(config) if embedding or m.kind is not Kind.TABLE)


def mtp_parameters(config: ModelConfig) -> int:
    """Parameters that one MTP module owns, whether or not the configuration has one: 11,610,067,968 for config_671B."""
    return sum(matrix.parameters for matrix in mtp_matrices(config))


def weight_bytes(config: ModelConfig, dtype: str = "bf16") -> int:
    """Bytes of the weights with all ``config.n_mtp_layers`` MTP modules, as stored by ``save_model``.

    Args:
        dtype: ``"bf16"``, ``"fp32"``, or ``"fp8"``: e4m3 with one FP32 scale for each 128 x 128 block, edge blocks
            included, for every linear layer; embedding, head, gate, ``eh_proj`` and norms stay in BF16.
    """
    if dtype not in ("bf16", "fp8", "fp32"):
        raise ConfigError(f'weights cannot be stored as {dtype!r}; choose "bf16", "fp8" or "fp32"')
    stored = [*matrices(config), *(list(mtp_matrices(config)) * config.n_mtp_layers)]
    if dtype == "fp8":
        return sum(_fp8_bytes(matrix) if matrix.kind is Kind.LINEAR else 2 * matrix.parameters for matrix in stored)
    return (4 if dtype == "fp32" else 2) * sum(matrix.parameters for matrix in stored)


def _fp8_bytes(matrix: Matrix) -> int:
    scales = ceil(matrix.rows / BLOCK) * ceil(matrix.cols / BLOCK)
    return matrix.parameters + 4 * scales * matrix.stored


def cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """Bytes of latent cache that a token occupies in the layers of the main model: C + R values in each (§2.1.1)."""
    return config.n_layers * config.latent_dim * bytes_per_value


def uncompressed_cache_bytes_per_token(config: ModelConfig, bytes_per_value: int = 2) -> int:
    """The same for full keys and values of every head, which MLA replaces: H (N + R + P) values in each layer."""
    return config.n_layers * config.n_heads * (config.qk_head_dim + config.v_head_dim) * bytes_per_value


def prefill_flops_per_token(config: ModelConfig, context: int) -> float:
    """FLOPs per token of reading a prompt of ``context`` tokens, the mean over its tokens; a multiply-add counts as 2.

    Attention runs in its expanded form: each (query, key) pair costs N + R multiply-adds for the score and P for the
    value, per head. The query at position i meets i + 1 keys, on average (context + 1) / 2. The output head counts for
    every token, as when scoring or training; serving needs it for the last one only.
    """
    per_pair = config.n_layers * config.n_heads * (config.qk_head_dim + config.v_head_dim)
    return _matmul_flops(config) + 2 * per_pair * (_positive(context) + 1) / 2


def decode_flops_per_token(config: ModelConfig, context: int) -> float:
    """FLOPs of generating one token that attends to ``context`` cached positions, itself included.

    Attention runs absorbed: scores and values live in the latent space, C + R and C multiply-adds per head and
    position. The two absorbed products (q_nope into the latent, the latent out to v) cost what ``wkv_b`` would.
    """
    per_pair = config.n_layers * config.n_heads * (config.latent_dim + config.kv_lora_rank)
    return _matmul_flops(config) + 2 * per_pair * _positive(context)


def _matmul_flops(config: ModelConfig) -> float:
    return 2.0 * sum(m.activated for m in matrices(config) if m.kind in (Kind.LINEAR, Kind.PLAIN))


def _positive(context: int) -> int:
    if context < 1:
        raise ConfigError(f"the context is {context} tokens; it must be at least 1")
    return context


@dataclass(frozen=True)
class Cost:
    """All figures of one configuration at one context length, ready for a table or for JSON."""

    parameters: int
    parameters_by_part: dict[str, int]
    activated: int
    activated_without_embedding: int
    mtp_modules: int
    parameters_per_mtp_module: int
    weight_bytes_bf16: int
    weight_bytes_fp8: int
    cache_bytes_per_token: int
    uncompressed_cache_bytes_per_token: int
    context: int
    cache_bytes_at_context: int
    prefill_flops_per_token: float
    decode_flops_per_token: float


def cost(config: ModelConfig, context: int = 4096) -> Cost:
    """Every figure of this module for ``config``, with attention over ``context`` tokens and a BF16 cache."""
    return Cost(
        parameters=parameters(config),
        parameters_by_part=parameters_by_part(config),
        activated=activated_parameters(config),
        activated_without_embedding=activated_parameters(config, embedding=False),
        mtp_modules=config.n_mtp_layers,
        parameters_per_mtp_module=mtp_parameters(config),
        weight_bytes_bf16=weight_bytes(config, "bf16"),
        weight_bytes_fp8=weight_bytes(config, "fp8"),
        cache_bytes_per_token=cache_bytes_per_token(config),
        uncompressed_cache_bytes_per_token=uncompressed_cache_bytes_per_token(config),
        context=_positive(context),
        cache_bytes_at_context=cache_bytes_per_token(config) * context,
        prefill_flops_per_token=prefill_flops_per_token(config, context),
        decode_flops_per_token=decode_flops_per_token(config, context),
    )
