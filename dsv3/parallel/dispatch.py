"""Tokens to experts and back. A dispatcher hides where the experts live; layers see rows sorted by expert.

``dispatch`` copies each token once for each of its K experts and sorts the copies by expert: M = T * K rows. The record
that it returns is all that ``combine`` needs to bring the results home. No token is ever dropped (V3 §2.1.2).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Where the rows came from: two permutations, inverse to each other.

    home_M: the row of each (token, k) pair, pairs flattened. order_M: the pair that each row is a copy for.
    """

    home_M: Tensor
    order_M: Tensor
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
        rows_MD = _take(x_TD, order_M // K, home_M.view(-1, K))
        return rows_MD, counts_E, Dispatched(home_M, order_M, weights_TK)

    def combine(self, rows_MD: Tensor, record: Dispatched) -> Tensor:
        weights_TK = record.weights_TK
        rows_TKD = _take(rows_MD, record.home_M, record.order_M.unsqueeze(1)).view(*weights_TK.shape, rows_MD.shape[-1])
        if torch.is_grad_enabled():  # one fused kernel where training is compiled, both ways
            return (rows_TKD * weights_TK.unsqueeze(-1)).sum(1).to(rows_MD.dtype)
        return torch.bmm(weights_TK.to(rows_MD.dtype).unsqueeze(1), rows_TKD).squeeze(1)


def _take(rows: Tensor, index_M: Tensor, readers_NK: Tensor) -> Tensor:
    """rows[index_M]. ``readers_NK`` says the same from the other side: which K results copy each of the N rows."""
    if torch.is_grad_enabled() and rows.requires_grad:
        return _Take.apply(rows, index_M, readers_NK)  # type: ignore[no-any-return]
    return rows.index_select(0, index_M)


class _Take(torch.autograd.Function):
    """index_select whose gradient gathers, too. Autograd's own would scatter: add rows up in whatever order they come
    (another result each time) or sort them first (slow). Each row's readers are known, so its gradient is their sum.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index_M: Tensor, readers_NK: Tensor) -> Tensor:
        ctx.save_for_backward(readers_NK)
        return rows.index_select(0, index_M)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (readers_NK,) = ctx.saved_tensors
        N, K = readers_NK.shape
        by_reader = grads[0].index_select(0, readers_NK.flatten())
        return (by_reader if K == 1 else by_reader.view(N, K, -1).sum(1)), None, None


def count_experts(indices: Tensor, n_experts: int) -> Tensor:
    """How often each expert occurs in ``indices`` (any shape) -> (E,) int64. ``bincount`` would synchronise on CUDA."""
    flat = indices.flatten()
    return torch.zeros(n_experts, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, torch.ones_like(flat))
