"""What training minimises: the next token, and through the MTP modules the tokens after it (V3 §2.2, Eq. 21-25).

The logits are the largest tensor of a small model's step: 65,536 tokens x 8,192 ids in FP32 are 2 GiB, and autograd
would keep several such copies. They are never needed as a whole. The gradient of cross entropy with respect to the
logits is ``softmax - one_hot``, known as soon as the logits are, so the forward pass takes a chunk of tokens, makes
its logits, loss and gradient, folds the gradient into those of ``x`` and of the head, and drops the logits. What is
kept for the backward pass has the size of ``x`` plus the head's weight, and the backward pass is one multiplication.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dsv3.layers.packing import Packing

if TYPE_CHECKING:
    from dsv3.model.transformer import Transformer

IGNORE = -1
"""Target of a position that has nothing to predict: padding, or a token beyond the end of its document."""

ChunkKernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def nll_and_gradient(logits_TV: Tensor, targets_T: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood ``nll_T`` (FP32, nats) and ``scale`` times its gradient, in the logits' dtype, one chunk.

    ``torch.compile`` makes one kernel of it, which reads the logits and writes the gradient, nothing in between.
    """
    dtype, logits_TV = logits_TV.dtype, logits_TV.float()
    total_T1 = logits_TV.logsumexp(dim=-1, keepdim=True)
    keep_T1 = (targets_T >= 0).unsqueeze(1)
    nll_T1 = (total_T1 - logits_TV.gather(1, targets_T.clamp(min=0).unsqueeze(1))) * keep_T1
    is_target_TV = torch.arange(logits_TV.shape[1], device=targets_T.device) == targets_T.unsqueeze(1)
    grad_TV = ((logits_TV - total_T1).exp() - is_target_TV.float()) * (keep_T1 * scale)
    return nll_T1.squeeze(1), grad_TV.to(dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, total: int | None, chunk: int, kernel: ChunkKernel
    ) -> tuple[Tensor, Tensor]:
        count = (targets_T >= 0).sum().clamp(min=1) if total is None else targets_T.new_full((), total)
        scale = count.float().reciprocal()
        nll_T = torch.empty(x_TD.shape[0], dtype=torch.float32, device=x_TD.device)
        grad_x_TD = torch.empty_like(x_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, x_TD.shape[0], chunk):
            part = slice(start, start + chunk)
            nll_T[part], grad_TV = kernel(x_TD[part] @ weight_VD.T, targets_T[part], scale)
            grad_x_TD[part] = grad_TV @ weight_VD
            grad_weight_VD += grad_TV.T @ x_TD[part]
        ctx.save_for_backward(grad_x_TD, grad_weight_VD.to(weight_VD.dtype))
        ctx.mark_non_differentiable(nll_T)
        return nll_T.sum() * scale, nll_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None, None]:
        grad_x_TD, grad_weight_VD = ctx.saved_tensors
        return grad_x_TD * grads[0], grad_weight_VD * grads[0], None, None, None, None


def linear_cross_entropy(
    x_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    total: int | None = None,
    chunk: int = 8192,
    kernel: ChunkKernel = nll_and_gradient,
) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of ``softmax(x @ weight.T)`` against ``targets_T``, both FP32: the loss, a scalar that is
    differentiable once, and ``nll_T`` by token, without a graph.

    The loss is the sum over ``total``; None: the mean over the positions that count. Those whose target is ``IGNORE``
    have 0 and do not. At most ``chunk`` rows of logits exist at a time. ``kernel`` is ``nll_and_gradient`` or its
    compiled form.
    """
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, total, chunk, kernel)  # type: ignore[no-any-return]


@torch.no_grad()
def score_tokens(x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int = 8192) -> tuple[Tensor, Tensor]:
    """For evaluation: ``nll_T`` (nats in FP32, 0 where the target is ``IGNORE``) and the greedy choice ``argmax_T``."""
    nll, best = [], []
    for rows, targets in zip(x_TD.split(chunk), targets_T.split(chunk), strict=True):
        logits_TV = (rows @ weight_VD.T).float()
        nll.append(F.cross_entropy(logits_TV, targets, ignore_index=IGNORE, reduction="none"))
        best.append(logits_TV.argmax(-1))
    return torch.cat(nll), torch.cat(best)


@dataclass(frozen=True)
class Losses:
    """In nats: ``main`` is the next-token loss, ``mtp`` the mean over the MTP modules (0 without any), both scalars.

    Both are sums over the number of *positions*. The positions that have no target, at the ends of documents, differ
    from batch to batch; dividing by those that have one would let a token weigh more in one micro-batch or rank than in
    another. ``nll_BS`` is the next-token loss by position and ``scored_BS`` says which have one; neither has a graph.
    """

    main: Tensor
    mtp: Tensor
    nll_BS: Tensor
    scored_BS: Tensor


def hidden_states(
    model: "Transformer", tokens_BS: Tensor, documents_BS: Tensor | None = None, *, tiled: bool = False
) -> list[Tensor]:
    """What the shared head reads, (B, S, D) each: the main model's states, then those of each MTP module (Eq. 21-23).

    ``tokens_BS`` is (B, S + n_mtp_layers): at position i the main model has read token i and predicts token i + 1;
    module k (from 0) joins the state below it with token i + k + 1 and predicts token i + k + 2. ``documents_BS``, of
    the same shape, keeps documents apart (``Packing``, as ``tiled`` says); without it each row is one.
    """
    S = tokens_BS.shape[1] - len(model.mtp)
    packing = None if documents_BS is None else Packing.of(documents_BS[:, :S], tiled=tiled)
    states = [model.hidden(tokens_BS[:, :S], packing)]
    for k in range(len(model.mtp)):
        states.append(model.predict_next(k, states[-1], tokens_BS[:, k + 1 : k + 1 + S], packing))
    return states


def shifted_targets(tokens_BS: Tensor, depth: int, n_mtp: int, documents_BS: Tensor | None = None) -> Tensor:
    """Targets of depth 0 (the main model) to ``n_mtp``: the tokens ``depth + 1`` places on, flattened.

    ``tokens_BS`` is (B, S + 1 + n_mtp), so that every depth has a target at each of its S positions. With
    ``documents_BS`` of that shape a target in another document is ``IGNORE``.
    """
    S = tokens_BS.shape[1] - 1 - n_mtp
    targets_BS = tokens_BS[:, depth + 1 : depth + 1 + S]
    if documents_BS is not None:
        beyond_BS = documents_BS[:, depth + 1 : depth + 1 + S] != documents_BS[:, :S]
        targets_BS = targets_BS.masked_fill(beyond_BS, IGNORE)
    return targets_BS.flatten()


def language_losses(
    model: "Transformer",
    tokens_BS: Tensor,
    documents_BS: Tensor | None = None,
    *,
    chunk: int = 8192,
    kernel: ChunkKernel = nll_and_gradient,
    tiled: bool = False,
) -> Losses:
    """Next-token and MTP loss (Eq. 24-25, before the weight lambda) of packed rows (B, S + 1 + n_mtp_layers).

    ``documents_BS``, of that shape, keeps documents apart in attention and targets; without it each row is one.
    """
    n_mtp = len(model.mtp)
    inputs_BS = None if documents_BS is None else documents_BS[:, :-1]
    depths, nll, scored = [], [], []
    for depth, x_BSD in enumerate(hidden_states(model, tokens_BS[:, :-1], inputs_BS, tiled=tiled)):
        targets_T = shifted_targets(tokens_BS, depth, n_mtp, documents_BS)
        loss, nll_T = linear_cross_entropy(
            x_BSD.flatten(0, 1), model.head.weight, targets_T, total=len(targets_T), chunk=chunk, kernel=kernel
        )
        depths.append(loss)
        nll.append(nll_T.view(x_BSD.shape[:2]))
        scored.append((targets_T >= 0).view(x_BSD.shape[:2]))
    main, *mtp = depths
    return Losses(main, torch.stack(mtp).mean() if mtp else torch.zeros_like(main), nll[0], scored[0])
