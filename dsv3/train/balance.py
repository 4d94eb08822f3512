"""Keeping the experts equally busy: V3's bias update without an auxiliary loss, and its small sequence-wise loss.

Every gate chooses experts by ``score + bias`` but weighs them by ``score`` alone (V3 Eq. 16). After each optimiser step
the bias of an expert that got more than its share of tokens falls by ``speed``, that of an idler rises by as much
(arXiv 2408.15664, Alg. 1). No gradient is involved, so balance does not pull at what the experts learn. The load is
that of the step just taken, over all its micro-batches and data-parallel ranks: using the current batch's load to route
the current batch would leak the future into the past. The bias is not touched in evaluation.

Within one sequence the load may still pile up, which V3 discourages with a loss of weight 0.0001 (Eq. 17-20).

Nothing here waits for the device: loads are counted, summed and compared where they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dsv3.config import ModelConfig
from dsv3.layers.gate import Gate
from dsv3.parallel.dispatch import count_experts
from dsv3.parallel.group import Group


def count_by_sequence(indices_TK: Tensor, n_sequences: int, n_experts: int) -> Tensor:
    """How often each expert is chosen in each of ``n_sequences`` equal runs of tokens: (B, E), int64."""
    first_B1 = torch.arange(n_sequences, device=indices_TK.device)[:, None] * n_experts
    cells = indices_TK.reshape(n_sequences, -1) + first_B1
    return count_experts(cells, n_sequences * n_experts).view(n_sequences, n_experts)


def sequence_balance_loss(scores_TE: Tensor, n_sequences: int, n_activated: int) -> Tensor:
    """Sum over experts of f_i P_i, mean over sequences (V3 Eq. 17-20 without alpha); 1 when perfectly balanced.

    f_i is the share of tokens whose top K *unbiased* scores include expert i, times E / K; P_i the mean of the scores
    normalised to sum 1. f comes from counting and has no gradient: the loss pulls through P only, down where f is high.
    """
    T, E = scores_TE.shape
    top_TK = scores_TE.detach().topk(n_activated, dim=-1, sorted=False).indices
    f_BE = count_by_sequence(top_TK, n_sequences, E) * (E * n_sequences / (n_activated * T))
    share_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    p_BE = share_TE.view(n_sequences, -1, E).mean(1)
    return (f_BE * p_BE).sum(-1).mean()


@torch.no_grad()
def update_bias(bias_E: Tensor, load_E: Tensor, speed: float) -> None:
    """``b_i += speed * sign(mean load - load_i)`` in place: an expert exactly at the mean keeps its bias."""
    load_E = load_E.double()  # exact for counts; FP32 would round a load beyond 2^24 tokens
    bias_E.add_(torch.sign(load_E.mean() - load_E), alpha=speed)


@dataclass
class Heard:
    """What the gates said during one forward pass, in the order of ``Router.names``."""

    scores_TE: list[Tensor] = field(default_factory=list)
    indices_TK: list[Tensor] = field(default_factory=list)


class Router:
    """All gates of a model: listens to them, sums their loads over a step, moves their biases.

    ``load_GE`` (one row for each gate, int64; main layers first, MTP last) is the load of the step being taken.
    """

    def __init__(self, model: nn.Module, config: ModelConfig, *, group: Group | None = None) -> None:
        gates = {name: module for name, module in model.named_modules() if isinstance(module, Gate)}
        self.names = list(gates)
        self.gates = list(gates.values())
        self.n_experts, self.n_activated = config.n_routed_experts, config.n_activated_experts
        self.group = group or Group()
        device = self.gates[0].weight.device if self.gates else None
        self.load_GE = torch.zeros(len(gates), self.n_experts, dtype=torch.int64, device=device)
        self.sequence_loss = sequence_balance_loss  # or its compiled form

    @contextmanager
    def listen(self) -> Iterator[Heard]:
        """Record scores (with their graph) and choices of every gate that runs inside the block."""
        heard = Heard()

        def listener(name: str, tensor: Tensor) -> None:
            if name == "scores_TE":
                heard.scores_TE.append(tensor)
            elif name == "indices_TK":
                heard.indices_TK.append(tensor)

        for gate in self.gates:
            gate.tap.listeners += (listener,)
        try:
            yield heard
        finally:
            for gate in self.gates:
                gate.tap.listeners = tuple(other for other in gate.tap.listeners if other is not listener)

    def balance_loss(self, heard: Heard, n_sequences: int) -> Tensor:
        """Sequence-wise balance loss (before alpha), summed over the gates."""
        losses = [self.sequence_loss(scores_TE, n_sequences, self.n_activated) for scores_TE in heard.scores_TE]
        return torch.stack(losses).sum() if losses else torch.zeros((), device=self.load_GE.device)

    @torch.no_grad()
    def load(self, heard: Heard, n_sequences: int) -> Tensor:
        """How often each gate chose each expert: (G, E), int64."""
        loads = [count_by_sequence(indices_TK, n_sequences, self.n_experts).sum(0) for indices_TK in heard.indices_TK]
        return torch.stack(loads) if loads else torch.zeros_like(self.load_GE)

    def finish_step(self, speed: float) -> Tensor:
        """Sum the load over the data-parallel ranks, move the biases, start counting anew. Returns the load (G, E)."""
        load_GE = self.group.all_reduce(self.load_GE.clone())
        self.load_GE.zero_()  # in place: a recorded step goes on counting in this tensor
        if speed:
            for gate, load_E in zip(self.gates, load_GE, strict=True):
                if gate.bias is not None:
                    update_bias(gate.bias, load_E, speed)
        return load_GE
