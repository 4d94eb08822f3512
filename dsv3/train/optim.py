"""What turns gradients into steps, on FP32 master weights for a model that computes in BF16 (V3 §3.3, §4.2).

BF16 keeps 8 significant bits: a weight of 1 cannot take a step smaller than 1/256, and late in training nearly every
step is smaller. So the optimiser owns an FP32 copy of each parameter, adds the steps there, and hands the model the
rounded result. Gradients are summed over micro-batches in FP32 for the same reason. The moments may be kept in BF16,
which V3 found to cost nothing (§3.3.3); the arithmetic stays in FP32.

AdamW, V3's choice, scales each number by its own history. Muon (K. Jordan 2024; arXiv 2502.16982 for large models)
takes a matrix as a whole: the momentum's singular values are all set to about 1, so a step moves in every direction
that the gradient knows and not just in its few strongest. It serves hidden matrices; embedding, head, gates and norms,
whose rows stand for something each, stay with AdamW.

A step launches a fixed list of kernels and never asks the device for a value: the clipping factor is a tensor.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dsv3.parallel.group import Group


def learning_rate(
    progress: float, *, step: int, peak: float, warmup_steps: int, decay_fraction: float, min_ratio: float
) -> float:
    """Linear warm-up over ``warmup_steps``, constant, then a cosine from ``peak`` down to ``min_ratio * peak``.

    progress: share of the run that is done, 0 to 1. The cosine takes the last ``decay_fraction`` of it. Following the
    share and not the step lets a run that is bounded by time instead of steps finish its schedule.
    step: steps already taken; the warm-up counts steps because it waits for Adam's moments to fill.
    """
    warm = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    done = min(1.0, max(0.0, (progress - (1.0 - decay_fraction)) / decay_fraction)) if decay_fraction else 0.0
    return peak * warm * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * done)))


class MasterAdamW:
    """AdamW (decoupled decay on matrices only) over FP32 masters of a model's parameters.

    Call ``accumulate`` after each micro-batch's backward pass, then ``step`` once. A parameter that is FP32 already is
    its own master. Norm weights, being vectors, are not decayed.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        clip: float = 1.0,
        moments: torch.dtype = torch.float32,
        group: Group | None = None,
    ) -> None:
        named = [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self.masters = [parameter.detach().float() for parameter in self.parameters]
        self.grads = [torch.zeros_like(master) for master in self.masters]
        self.first = [torch.zeros_like(master, dtype=moments) for master in self.masters]
        self.second = [torch.zeros_like(master, dtype=moments) for master in self.masters]
        self.beta1, self.beta2, self.eps, self.weight_decay, self.clip = beta1, beta2, eps, weight_decay, clip
        self.group = group or Group()
        self.steps = 0

    def accumulate(self) -> None:
        """Move the parameters' gradients into the FP32 sums."""
        for grad, parameter in zip(self.grads, self.parameters, strict=True):
            if parameter.grad is not None:
                grad += parameter.grad
                parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, *, divisor: int = 1) -> Tensor:
        """One update from the accumulated gradients, which are cleared. Returns their norm before clipping, a scalar.

        divisor: number of micro-batches (of equal size, over all ranks) whose mean the gradient is.
        """
        for grad in self.grads:
            self.group.all_reduce(grad)
        if divisor != 1:
            torch._foreach_div_(self.grads, float(divisor))
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(self.grads)))
        torch._foreach_mul_(self.grads, (self.clip / (norm + 1e-6)).clamp(max=1.0))

        self.steps += 1
        torch._foreach_mul_([master for master in self.masters if master.ndim > 1], 1.0 - lr * self.weight_decay)
        self._update(lr)
        self.write_weights()
        torch._foreach_zero_(self.grads)
        return norm

    def _update(self, lr: float) -> None:
        """Move the masters, decayed already, by the gradients, clipped already."""
        self._adam(range(len(self.masters)), lr)

    def _adam(self, which: Iterable[int], lr: float) -> None:
        masters, grads, kept_first, kept_second = (
            [tensors[i] for i in which] for tensors in (self.masters, self.grads, self.first, self.second)
        )
        # .float() returns FP32 moments themselves, so that the in-place updates below are the moments' own.
        first, second = [m.float() for m in kept_first], [m.float() for m in kept_second]
        torch._foreach_lerp_(first, grads, 1.0 - self.beta1)
        torch._foreach_mul_(second, self.beta2)
        torch._foreach_addcmul_(second, grads, grads, 1.0 - self.beta2)
        denominators = torch._foreach_div(second, 1.0 - self.beta2**self.steps)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, self.eps)
        torch._foreach_addcdiv_(masters, first, denominators, -lr / (1.0 - self.beta1**self.steps))
        if first[0] is not kept_first[0]:
            torch._foreach_copy_(kept_first, first)
            torch._foreach_copy_(kept_second, second)

    @torch.no_grad()
    def write_weights(self) -> None:
        """Round the masters into the model's parameters."""
        torch._foreach_copy_(self.parameters, self.masters)

    def state_dict(self) -> dict[str, Any]:
        """Masters and moments by parameter name, and the number of steps. The tensors are not copied."""
        lists = (("masters", self.masters), ("first", self.first), ("second", self.second))
        return {"steps": self.steps} | {key: dict(zip(self.names, tensors, strict=True)) for key, tensors in lists}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over ``state_dict``'s values and write the model's parameters from the masters. Names must match."""
        for key, tensors in (("masters", self.masters), ("first", self.first), ("second", self.second)):
            torch._foreach_copy_(tensors, [state[key][name] for name in self.names])
        self.steps = int(state["steps"])
        self.write_weights()


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon serves this parameter: matrices between states, one by one or stacked by expert; not the gate's,
    whose rows are the experts' own vectors."""
    return name.startswith(("layers.", "mtp.")) and parameter.ndim > 1 and not name.endswith("gate.weight")


class MasterMuon(MasterAdamW):
    """Muon for the hidden matrices, AdamW for the rest; one learning rate and one decay serve both.

    A step of a matrix (m, n) is ``lr * 0.2 * sqrt(max(m, n))`` times its orthogonalised momentum: as large, element by
    element, as AdamW's steps commonly are (arXiv 2502.16982, Eq. 4). Momentum 0.95 with a look ahead (Nesterov).
    """

    momentum = 0.95

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], **options: Any) -> None:
        super().__init__(parameters, **options)
        self.hidden = [i for i, name in enumerate(self.names) if is_hidden_matrix(name, self.masters[i])]
        self.rest = sorted(set(range(len(self.names))) - set(self.hidden))
        for i in self.hidden:  # there is no second moment, and its memory is saved
            self.second[i] = self.second[i].new_empty(0)

    def _update(self, lr: float) -> None:
        self._adam(self.rest, lr)
        by_shape: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for i in self.hidden:
            momentum = self.first[i].float()
            momentum.lerp_(self.grads[i], 1.0 - self.momentum)
            if momentum is not self.first[i]:
                self.first[i].copy_(momentum)
            direction = torch.lerp(self.grads[i], momentum, self.momentum)
            direction, target = (t.view(-1, *t.shape[-2:]) for t in (direction, self.masters[i]))
            if direction.shape[1] > direction.shape[2]:
                direction, target = direction.mT, target.mT
            by_shape.setdefault((direction.shape[1], direction.shape[2]), []).append((direction, target))
        for (_, columns), pairs in by_shape.items():  # one chain of products for all matrices of a shape
            steps = orthogonalize(torch.cat([direction for direction, _ in pairs]))
            targets = [target for _, target in pairs]
            parts = steps.to(torch.float32).split([len(target) for target in targets])
            torch._foreach_add_(targets, list(parts), alpha=-lr * 0.2 * math.sqrt(columns))


def orthogonalize(matrices_BMN: Tensor) -> Tensor:
    """About U V^T of each matrix's U S V^T, M <= N, by five Newton-Schulz iterations of degree five.

    Their coefficients are chosen for speed: singular values end between 0.7 and 1.2 rather than at 1, which serves as
    well. On a GPU the products are in BF16.
    """
    x_BMN = matrices_BMN.bfloat16() if matrices_BMN.is_cuda else matrices_BMN
    x_BMN = x_BMN / (x_BMN.norm(dim=(1, 2), keepdim=True) + 1e-7)  # the largest singular value is at most 1
    for _ in range(5):
        square_BMM = torch.bmm(x_BMN, x_BMN.mT)
        polynomial_BMM = torch.baddbmm(square_BMM, square_BMM, square_BMM, beta=-4.7750, alpha=2.0315)
        x_BMN = torch.baddbmm(x_BMN, polynomial_BMM, x_BMN, beta=3.4445)
    return x_BMN
