"""Slicing weights for tensor parallelism by hand: the tests' own statement of which dimension belongs to which rank."""

import torch
from torch import Tensor, nn

from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Group, Parallel

ROWS = ("wq", "wq_b", "wkv_b", "w1", "w3", "embed", "head")
COLUMNS = ("wo", "w2")


def share(value: Tensor, dim: int, group: Group) -> Tensor:
    return value.chunk(group.size, dim)[group.rank]


def slice_of(name: str, value: Tensor, group: Group) -> Tensor:
    """This rank's part of the parameter ``name``: rows of what makes heads or hidden units, columns of what reads them.
    Routed experts, norms, gate and the projections to the latents are whole on every rank."""
    owner = name.split(".")[-2] if "." in name else ""
    if "experts.w" in name and "shared_experts" not in name:
        return value
    if owner in ROWS:
        return share(value, 0, group)
    if owner in COLUMNS:
        return share(value, 1, group)
    return value


@torch.no_grad()
def fill(part: nn.Module, whole: nn.Module, group: Group) -> None:
    """Copy this rank's slices of ``whole`` into ``part``."""
    tensors = dict(whole.named_parameters()) | dict(whole.named_buffers())
    for name, target in (dict(part.named_parameters()) | dict(part.named_buffers())).items():
        source = slice_of(name, tensors[name], group)
        assert source.shape == target.shape, (name, source.shape, target.shape)
        target.copy_(source)


def slice_for_rank(whole: Transformer, group: Group) -> Transformer:
    model = Transformer(whole.config, dtype=whole.dtype, parallel=Parallel(tp=group)).eval()
    fill(model, whole, group)
    return model
