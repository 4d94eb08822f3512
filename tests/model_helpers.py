"""Models for tests: small, with weights large enough that every part moves the result."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.config import BLOCK, ModelConfig
from dsv3.layers.cache import AttnContext, LatentCache
from dsv3.layers.linear import FP8
from dsv3.layers.mla import MLA
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Parallel


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Weights that keep activations near 1 (the model's own start, 0.006, leaves attention flat and hides mistakes),
    norms and gate biases away from their neutral values."""
    for name, parameter in module.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.5, 1.5)
        elif parameter.dtype == FP8:
            owner, leaf = name.rpartition(".")[::2]
            scale = getattr(module.get_submodule(owner), "scale" if leaf == "weight" else f"{leaf}_scale")
            codes, values = kernels.weight_quant(torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5)
            parameter.copy_(codes)
            scale.copy_(values)
        elif not name.endswith("scale"):
            parameter.normal_(0.0, parameter.shape[-1] ** -0.5)
    for name, buffer in module.named_buffers():
        if name.split(".")[-1] == "bias":
            buffer.normal_(0.0, 0.1)


def make_model(
    config: ModelConfig, dtype: torch.dtype = torch.float32, parallel: Parallel | None = None
) -> Transformer:
    model = Transformer(config, dtype=dtype, parallel=parallel or Parallel()).eval()
    randomise(model)
    return model


@torch.no_grad()
def quantise(model: Transformer, scale_fmt: str | None = None) -> Transformer:
    """The same model with FP8 weights, as a cast of its checkpoint would give it."""
    fp8 = Transformer(model.config, dtype=FP8).eval()
    own = dict(model.named_parameters())
    for name, parameter in fp8.named_parameters():
        if parameter.dtype == FP8:
            codes, scale = kernels.weight_quant(own[name], BLOCK, scale_fmt)
            parameter.copy_(codes)
            owner, leaf = name.rpartition(".")[::2]
            getattr(fp8.get_submodule(owner), "scale" if leaf == "weight" else f"{leaf}_scale").copy_(scale)
        elif not name.endswith("scale"):
            parameter.copy_(own[name])
    buffers = dict(model.named_buffers())
    for name, buffer in fp8.named_buffers():
        buffer.copy_(buffers[name])
    return fp8


def poisoned_cache(
    config: ModelConfig, n_pages: int, page_size: int, dtype: torch.dtype = torch.float32
) -> LatentCache:
    """Every slot that nobody wrote is NaN: whoever reads one is found out, even behind a mask."""
    cache = LatentCache(config, n_pages, page_size, dtype=dtype)
    cache.storage.fill_(float("nan"))
    return cache


@torch.no_grad()
def run_in_chunks(
    model: Transformer,
    cache: LatentCache,
    pages: Sequence[Sequence[int]],
    tokens: Sequence[Tensor],
    chunks: Sequence[Sequence[int]],
) -> list[Tensor]:
    """Feed sequence b in pieces of ``chunks[b]`` tokens, one of each sequence a step -> logits (S, V) of each sequence.

    Sequences with fewer chunks drop out of the batch, as finished requests do.
    """
    done = [0] * len(tokens)
    logits: list[list[Tensor]] = [[] for _ in tokens]
    for step in range(max(map(len, chunks))):
        alive = [b for b in range(len(tokens)) if step < len(chunks[b])]
        counts = [chunks[b][step] for b in alive]
        ctx = AttnContext.build(cache, [pages[b] for b in alive], [done[b] for b in alive], counts)
        fed = torch.cat([tokens[b][done[b] : done[b] + n] for b, n in zip(alive, counts)])
        for b, n, part in zip(alive, counts, model(fed, ctx).split(counts)):
            logits[b].append(part)
            done[b] += n
    return [torch.cat(parts) for parts in logits]


def set_expand_above(model: nn.Module, queries: float) -> None:
    """Attend expanded above this number of queries: 0 for always, infinity for never."""
    for module in model.modules():
        if isinstance(module, MLA):
            module.expand_above = queries


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """FP32 sums in another order differ by about 1e-6 of the norm here; a wrong formula by more than 1e-2."""
    error = relative_error(ours, theirs)
    assert error < tolerance, f"relative error {error:.2e}, allowed {tolerance:.0e}"  # NaN fails too
