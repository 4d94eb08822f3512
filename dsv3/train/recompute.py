"""Memory for arithmetic: what is cheap to compute is not kept for the backward pass (V3 §3.2.3).

Training keeps what the backward pass will read. Two kinds of it are large and cheap to compute again: the output of
every RMSNorm, and in MLA the queries, keys and values of all heads, which grow from narrow latents by one product each
(``wq_b``, ``wkv_b``). V3 keeps neither. Kept are the inputs of the norms, the latents, the other products and what
attention returns: softmax(q k) v is never computed twice.

A block is treated in two ways, since its halves differ:

attend      Norm, projections, rotation, attention: recorded by ``torch.utils.checkpoint``, whose policy says what is
            kept, by the kind of operation. torch.compile reads the same policy, so wrap first and compile then.
feed, join  Here one tensor is dropped, the norm's output, and nothing else runs twice: whoever would keep the tensor
            keeps a recipe for it. The gate is such a reader. It runs once and is heard once, so no load counts double.

The results are the same to the last bit: the same operations run on the same numbers.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from dsv3.config import ModelConfig
from dsv3.layers.moe import MoE
from dsv3.model.block import Block
from dsv3.model.mtp import MTP
from dsv3.model.transformer import Transformer

_aten = torch.ops.aten
_PRODUCTS = frozenset((_aten.mm.default, _aten.addmm.default, _aten.bmm.default))
_ATTENTION = frozenset(
    (
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
        _aten._scaled_dot_product_fused_attention_overrideable.default,
        torch.ops.higher_order.flex_attention,
    )
)


def recompute(model: Transformer) -> None:
    """Let every block of ``model`` recompute norms and up-projections, from now on. To be called before compiling.

    Only the graph's memory changes. MLA's taps speak once more in the backward pass, to whoever still listens then.
    """
    contexts = functools.partial(
        create_selective_checkpoint_contexts, functools.partial(_policy, latents(model.config))
    )
    for block in [*model.layers, *model.mtp]:
        assert isinstance(block, Block)
        block.attend = _checkpointed(block.attend, contexts)
        block.feed = functools.partial(_feed, block)
        if isinstance(block, MTP):
            block.join = functools.partial(_join, block)


def latents(config: ModelConfig) -> frozenset[int]:
    """Widths of the latents. A product over one of these is an up-projection; its weight is not known to the policy.

    A model with ``dim`` as wide as a latent recomputes its down-projections too: slower, and as right.
    """
    return frozenset((config.q_lora_rank, config.kv_lora_rank))


def _policy(latents: frozenset[int], _ctx: Any, op: Any, *args: Any, **_kwargs: Any) -> CheckpointPolicy:
    if op in _ATTENTION or (op in _PRODUCTS and args[-2].shape[-1] not in latents):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def _checkpointed(attend: Callable[..., Tensor], contexts: Callable[[], Any]) -> Callable[..., Tensor]:
    def attend_again(*args: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return attend(*args)
        result = checkpoint(attend, *args, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        assert isinstance(result, Tensor)
        return result

    return attend_again


def _feed(block: Block, h: Tensor) -> Tensor:
    x, h_kept = block.ffn_norm(h), h.detach()
    recipes = Recipes()
    recipes.add(x, lambda: block.ffn_norm(h_kept))
    with recipes:
        if not isinstance(block.ffn, MoE):
            return h + block.ffn(x)
        with _gate_reading_fp32(block.ffn.gate, recipes, lambda: block.ffn_norm(h_kept).flatten(0, -2).float()):
            return h + block.ffn(x)


@contextmanager
def _gate_reading_fp32(gate: nn.Module, recipes: "Recipes", again: Callable[[], Tensor]) -> Iterator[None]:
    """The gate works on an FP32 copy of its input, twice as large as a BF16 one: that copy gets its own recipe."""

    def widened(_gate: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        (x_TD,) = args
        if x_TD.dtype == torch.float32:
            return (x_TD,)
        wide_TD = x_TD.float()
        recipes.add(wide_TD, again)
        return (wide_TD,)

    handle = gate.register_forward_pre_hook(widened)
    try:
        yield
    finally:
        handle.remove()


def _join(module: MTP, h: Tensor, next_embedding: Tensor) -> Tensor:
    h_kept, next_kept = h.detach(), next_embedding.detach()

    def both(h: Tensor, next_embedding: Tensor) -> Tensor:
        return torch.cat((module.enorm(next_embedding), module.hnorm(h)), dim=-1)

    x, recipes = both(h, next_embedding), Recipes()
    recipes.add(x, lambda: both(h_kept, next_kept))
    with recipes:
        return module.eh_proj(x)


@dataclass
class _Recipe:
    """How to make a tensor again, who waits for it, and the tensor itself from the first of them to the last."""

    tensor: Tensor | None  # held until the block ends, so that no other can take its place in memory
    again: Callable[[], Tensor]
    readers: int = 0
    served: int = 0
    made: Tensor | None = None


@dataclass
class _Reference:
    """What autograd keeps instead of a tensor: its recipe, and which view of the tensor it was."""

    recipe: _Recipe
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        recipe = self.recipe
        if recipe.made is None:
            with torch.no_grad():
                recipe.made = recipe.again()
        made = recipe.made.as_strided(self.size, self.stride, self.offset)
        recipe.served += 1
        if recipe.served % recipe.readers == 0:
            recipe.made = None
        return made


@dataclass
class Recipes:
    """Within ``with recipes:``, autograd keeps recipes in place of the tensors that were added, or of views of them."""

    by_address: dict[int, _Recipe] = field(default_factory=dict)

    def add(self, tensor: Tensor, again: Callable[[], Tensor]) -> None:
        """again: makes an equal tensor, of the same strides; it runs in the backward pass, without a graph."""
        self.by_address[tensor.untyped_storage().data_ptr()] = _Recipe(tensor, again)

    def __enter__(self) -> None:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        for recipe in self.by_address.values():
            recipe.tensor = None
        self.by_address.clear()

    def _pack(self, tensor: Tensor) -> "Tensor | _Reference":
        recipe = self.by_address.get(tensor.untyped_storage().data_ptr())
        if recipe is None or recipe.tensor is None or recipe.tensor.dtype != tensor.dtype:
            return tensor
        recipe.readers += 1
        return _Reference(recipe, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

    @staticmethod
    def _unpack(kept: "Tensor | _Reference") -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.tensor()
