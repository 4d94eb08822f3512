"""Who works together: frozen records that are passed to constructors. No layer asks for a rank by itself.

``Parallel()`` is the single-process case: every group has size 1 and every collective returns its input. A test builds
"rank 1 of 2" without starting a process: ``Parallel(tp=Group(rank=1, size=2))`` gives a layer its slice of the weights.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dsv3.errors import ConfigError


@dataclass(frozen=True)
class Group:
    """``size`` processes that run one collective, and which of them this one is.

    ``handle`` is the ``torch.distributed`` process group; at size 1 it is never looked at.
    """

    rank: int = 0
    size: int = 1
    handle: Any = None

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank {self.rank} is outside a group of {self.size}: ranks run from 0 to size - 1")

    def split(self, total: int, what: str) -> int:
        """Size of this rank's equal share of ``total``. Raises ConfigError where it does not divide."""
        if total % self.size:
            raise ConfigError(f"{what} = {total} does not divide by {self.size} ranks: choose a divisor of {total}")
        return total // self.size

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over the group, in place where there is more than one rank."""
        if self.size > 1:
            dist.all_reduce(x, group=self.handle)
        return x

    def all_gather(self, x: Tensor, dim: int = -1) -> Tensor:
        """Every rank's ``x`` (same shape everywhere), concatenated along ``dim`` in rank order."""
        if self.size == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.handle)
        return torch.cat(parts, dim=dim)


@dataclass(frozen=True)
class Parallel:
    """The groups that this process belongs to.

    tp: tensor parallel, heads and hidden columns. ep: expert parallel, routed experts. pp: pipeline, layers. dp: data.
    """

    tp: Group = field(default_factory=Group)
    ep: Group = field(default_factory=Group)
    pp: Group = field(default_factory=Group)
    dp: Group = field(default_factory=Group)

    @staticmethod
    def from_torchrun() -> "Parallel":
        """Data parallelism over the processes that torchrun started; ``Parallel()`` outside torchrun.

        Reads RANK and WORLD_SIZE, and starts the default process group (NCCL with CUDA, gloo without).
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return Parallel()
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ConfigError(
                f"WORLD_SIZE is {size} but {', '.join(missing)} is unset: start the program with torchrun"
            )
        if not dist.is_initialized():
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # before NCCL starts: it would take GPU 0 for all
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return Parallel(dp=Group(rank=dist.get_rank(), size=size, handle=dist.group.WORLD))
