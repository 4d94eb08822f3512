"""A training step as few launches: fused kernels, and one CUDA graph of them all.

A step of a small model is some two thousand kernels of a few microseconds each, and the host needs longer to launch
them one by one than the device to run them. A graph is launched as a whole: the device runs what was recorded, on the
same memory. So what changes from call to call must be copied into tensors that stay where they are, results are read
from such tensors, and nothing recorded may ask the host.
"""

import dataclasses
from collections.abc import Callable
from typing import Generic, TypeVar

import torch

from dsv3.layers.moe import MoE
from dsv3.model.block import Block
from dsv3.model.mtp import MTP
from dsv3.model.transformer import Transformer

Inputs = TypeVar("Inputs")  # a dataclass of tensors


def compile_blocks(model: Transformer) -> None:
    """Compile what is worth fusing, block by block; not what the gates' listeners hear, which goes out between."""
    norms = [model.norm]
    for block in [*model.layers, *model.mtp]:
        assert isinstance(block, Block)
        norms.append(block.ffn_norm)
        if isinstance(block, MTP):
            norms += [block.enorm, block.hnorm, block.shared_head.norm]
        block.attend = torch.compile(block.attend, dynamic=False)
        if not isinstance(block.ffn, MoE):
            block.ffn.compile(dynamic=False)
            continue
        block.ffn.gate.choose = torch.compile(block.ffn.gate.choose, dynamic=False)
        block.ffn.routed = torch.compile(block.ffn.routed, dynamic=False)
        if block.ffn.shared_experts is not None:
            block.ffn.shared_experts.compile(dynamic=False)
    for norm in norms:
        norm.compile(dynamic=False)


class Recorded(Generic[Inputs]):
    """``function(inputs)``, which works on tensors in place and returns nothing, recorded and replayed.

    It runs twice first, to compile and to allocate; whoever makes this object undoes what that did. ``inputs`` gives
    the shapes: every later call must have the same.
    """

    def __init__(self, function: Callable[[Inputs], None], inputs: Inputs) -> None:
        names = [field.name for field in dataclasses.fields(inputs)]  # type: ignore[arg-type]
        self._tensors = {name: getattr(inputs, name).clone() for name in names}
        fixed = dataclasses.replace(inputs, **self._tensors)  # type: ignore[type-var]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # the warm-up belongs on a stream that is not the default one
            for _ in range(2):
                function(fixed)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            function(fixed)

    def __call__(self, inputs: Inputs) -> None:
        for name, tensor in self._tensors.items():
            tensor.copy_(getattr(inputs, name))
        self._graph.replay()
