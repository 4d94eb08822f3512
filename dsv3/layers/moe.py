"""DeepSeekMoE (V3 Eq. 12): every token passes the shared experts, and K of E small routed ones.

    y = sum_k g_k Expert_k(x) + Shared(x)

The residual is added by the block. Routed experts are stored stacked, so that one grouped product serves them all:
w13 (E, 2, F, D) holds w1 and w3 of each expert, w2 (E, D, F). Checkpoints name them one by one; ``weights.names`` maps.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.config import BLOCK, ModelConfig
from dsv3.errors import ConfigError
from dsv3.layers.basic import MLP
from dsv3.layers.gate import Gate
from dsv3.layers.linear import FP8, blocks
from dsv3.parallel.dispatch import LocalDispatcher
from dsv3.parallel.group import Parallel
from dsv3.probe import Tap


class Experts(nn.Module):
    """The routed experts. rows_MD sorted by expert, counts_e rows for each -> (M, D)."""

    def __init__(self, n_experts: int, dim: int, inter_dim: int, *, dtype: torch.dtype, scale_fmt: str | None) -> None:
        super().__init__()
        E, D, F_ = n_experts, dim, inter_dim
        self.scale_fmt = scale_fmt
        trainable = dtype != FP8
        self.w13 = nn.Parameter(torch.empty(E, 2, F_, D, dtype=dtype), requires_grad=trainable)
        self.w2 = nn.Parameter(torch.empty(E, D, F_, dtype=dtype), requires_grad=trainable)
        self.w13_scale: nn.Parameter | None = None
        self.w2_scale: nn.Parameter | None = None
        if dtype == FP8:
            self.w13_scale = nn.Parameter(
                torch.empty(E, 2, blocks(F_), blocks(D), dtype=torch.float32), requires_grad=False
            )
            self.w2_scale = nn.Parameter(
                torch.empty(E, blocks(D), blocks(F_), dtype=torch.float32), requires_grad=False
            )

    def forward(self, rows_MD: Tensor, counts_e: Tensor) -> Tensor:
        if self.w13_scale is None or self.w2_scale is None:
            gate_MF, up_MF = kernels.grouped_linear(rows_MD, self.w13.flatten(1, 2), counts_e).chunk(2, dim=-1)
            return kernels.grouped_linear(F.silu(gate_MF) * up_MF, self.w2, counts_e)
        gate_MF, up_MF = self._fp8_gate_up(rows_MD, counts_e, self.w13_scale)
        return self._fp8(F.silu(gate_MF) * up_MF, self.w2, self.w2_scale, counts_e)

    def _fp8_gate_up(self, rows_MD: Tensor, counts_e: Tensor, scale: Tensor) -> Sequence[Tensor]:
        if self.w13.shape[2] % BLOCK == 0:  # as one matrix: x is quantised once, and no weight is copied
            return self._fp8(rows_MD, self.w13.flatten(1, 2), scale.flatten(1, 2), counts_e).chunk(2, dim=-1)
        return [self._fp8(rows_MD, self.w13[:, i], scale[:, i], counts_e) for i in range(2)]  # a block would hold both

    def _fp8(self, x_MD: Tensor, w_eFD: Tensor, scale: Tensor, counts_e: Tensor) -> Tensor:
        return kernels.fp8_grouped_linear(x_MD, w_eFD, scale, counts_e, self.scale_fmt, x_MD.dtype)


class MoE(nn.Module):
    """x (..., D) -> (..., D). Gate, dispatch, experts, combine, plus the shared experts (one MLP, n times as wide).

    Taps: routed_TD, shared_TD.
    """

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, parallel: Parallel) -> None:
        super().__init__()
        if parallel.ep.size > 1:
            raise ConfigError(
                f"expert parallelism over {parallel.ep.size} ranks needs a dispatcher that sends rows between them; "
                "only the local one exists: use an ep group of size 1"
            )
        self.tap = Tap("routed_TD", "shared_TD")
        self.gate = Gate(config)
        self.experts = Experts(
            config.n_routed_experts,
            config.dim,
            config.moe_inter_dim,
            dtype=dtype,
            scale_fmt=config.scale_fmt,
        )
        self.dispatcher = LocalDispatcher(config.n_routed_experts)
        self.shared_experts: MLP | None = None
        if config.n_shared_experts:
            width = config.n_shared_experts * config.moe_inter_dim
            self.shared_experts = MLP(config.dim, width, dtype=dtype, scale_fmt=config.scale_fmt, tp=parallel.tp)

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.flatten(0, -2)
        weights_TK, indices_TK = self.gate(x_TD)
        routed_TD = self.routed(x_TD, weights_TK, indices_TK)
        self.tap("routed_TD", routed_TD)
        if self.shared_experts is None:
            return routed_TD.view_as(x)
        shared_TD = self.shared_experts(x_TD)
        self.tap("shared_TD", shared_TD)
        return (routed_TD + shared_TD).view_as(x)

    def added_to(self, h_TD: Tensor, x_TD: Tensor) -> Tensor:
        """h + forward(x), for inference: where kernels do all of it in a few launches, and nobody listens, they do."""
        gate, experts, shared = self.gate, self.experts, self.shared_experts
        listened = self.tap.listeners or gate.tap.listeners
        whole = shared is None or shared.w2.tp.size == 1
        if listened or not whole or x_TD.dtype != torch.bfloat16 or not kernels.has_decode_kernels(x_TD.device):
            return h_TD + self(x_TD)
        routed = kernels.route(
            x_TD,
            gate.weight,
            gate.bias,
            top_k=gate.top_k,
            n_groups=gate.n_groups,
            n_limited=gate.n_limited,
            sigmoid=gate.sigmoid,
            route_scale=gate.route_scale,
        )
        weights = kernels.ExpertWeights(experts.w13, experts.w2, experts.w13_scale, experts.w2_scale)
        together = None
        if shared is not None:
            parts = shared.w1, shared.w3, shared.w2
            together = kernels.SharedWeights(*(part.weight for part in parts), *(part.scale for part in parts))
        return kernels.moe_experts(x_TD, routed, weights, together, h_TD, experts.scale_fmt)

    def routed(self, x_TD: Tensor, weights_TK: Tensor, indices_TK: Tensor) -> Tensor:
        """The sum over each token's K experts: to them, through them, and back."""
        rows_MD, counts_e, record = self.dispatcher.dispatch(x_TD, weights_TK, indices_TK)
        return self.dispatcher.combine(self.experts(rows_MD, counts_e), record)
