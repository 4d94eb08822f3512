"""Tokens to experts and back. A dispatcher hides where the experts live; layers see rows sorted by expert.

``dispatch`` copies each token once for each of its K experts and sorts the copies by expert: M = T * K rows. The record
that it returns is all that ``combine`` needs to bring the results home. No token is ever dropped (V3 §2.1.2).
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Where the rows came from. home_M: row of the sorted copies for each (token, k) pair, flattened."""

    home_M: Tensor
    weights_TK: Tensor


class Dispatcher(Protocol):
    """The seam: local, all-to-all and faster transports are interchangeable behind it."""

    def dispatch(self, x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> tuple[Tensor, Tensor, Dispatched]:
        """-> rows_MD sorted by local expert, counts_e (rows of each local expert), the record for ``combine``."""
        ...

    def combine(self, rows_MD: Tensor, record: Dispatched) -> Tensor:
        """Weighted sum of each token's K results, always in the order of its experts -> (T, D)."""
        ...


@dataclass(frozen=True)
class LocalDispatcher:
    """All experts are in this process: dispatch is a sort, combine a gather. No host synchronisation."""

    n_experts: int

    def dispatch(self, x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> tuple[Tensor, Tensor, Dispatched]:
        K = indices_TK.shape[1]
        expert_M = indices_TK.flatten()
        order_M = expert_M.argsort(stable=True)
        home_M = torch.empty_like(order_M).scatter_(0, order_M, torch.arange(len(order_M), device=order_M.device))
        counts_E = count_experts(expert_M, self.n_experts)
        return _take(x_TD, order_M // K), counts_E, Dispatched(home_M, weights_TK)

    def combine(self, rows_MD: Tensor, record: Dispatched) -> Tensor:
        rows_TKD = _take(rows_MD, record.home_M).view(*record.weights_TK.shape, rows_MD.shape[-1])
        return torch.bmm(record.weights_TK.to(rows_MD.dtype).unsqueeze(1), rows_TKD).squeeze(1)


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index]. ``index_select`` is faster on a CPU, but its gradient adds up in no fixed order on CUDA."""
    if torch.is_grad_enabled() and rows.requires_grad:
        return rows[index]
    return rows.index_select(0, index)


def count_experts(indices: Tensor, n_experts: int) -> Tensor:
    """How often each expert occurs in ``indices`` (any shape) -> (E,) int64. ``bincount`` would synchronise on CUDA."""
    flat = indices.flatten()
    return torch.zeros(n_experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
