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

if TYPE_CHECKING:
    from dsv3.model.transformer import Transformer

IGNORE = -1
"""Target of a position that has nothing to predict: padding, or a token beyond the end of its document."""

ChunkKernel = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def nll_and_gradient(logits_TV: Tensor, targets_T: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood (FP32, nats) and ``scale`` times its gradient, in the logits' dtype, one chunk.

    Three passes over the FP32 values, in place after the first; ``torch.compile`` can fuse them further.
    """
    log_probs_TV = F.log_softmax(logits_TV, dim=-1, dtype=torch.float32)
    keep_T1 = (targets_T >= 0)[:, None]
    index_T1 = targets_T.clamp(min=0)[:, None]
    nll = -(log_probs_TV.gather(1, index_T1) * keep_T1).sum()
    grad_TV = log_probs_TV.exp_()
    grad_TV.scatter_add_(1, index_T1, grad_TV.new_full(index_T1.shape, -1.0))
    return nll, grad_TV.mul_(keep_T1 * scale).to(logits_TV.dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, chunk: int, kernel: ChunkKernel
    ) -> Tensor:
        scale = (targets_T >= 0).sum().clamp(min=1).float().reciprocal()
        loss = torch.zeros((), dtype=torch.float32, device=x_TD.device)
        grad_x_TD = torch.empty_like(x_TD)
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
        for start in range(0, x_TD.shape[0], chunk):
            part = slice(start, start + chunk)
            nll, grad_TV = kernel(x_TD[part] @ weight_VD.T, targets_T[part], scale)
            loss += nll
            grad_x_TD[part] = grad_TV @ weight_VD
            grad_weight_VD += grad_TV.T @ x_TD[part]
        ctx.save_for_backward(grad_x_TD, grad_weight_VD.to(weight_VD.dtype))
        return loss * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_x_TD, grad_weight_VD = ctx.saved_tensors
        return grad_x_TD * grads[0], grad_weight_VD * grads[0], None, None, None


def linear_cross_entropy(
    x_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, *, chunk: int = 8192, kernel: ChunkKernel = nll_and_gradient
) -> Tensor:
    """Mean cross entropy in nats of ``softmax(x @ weight.T)`` against ``targets_T``; FP32 scalar, differentiable once.

    Positions whose target is ``IGNORE`` count neither in the loss nor in the mean. At most ``chunk`` rows of logits
    exist at a time. ``kernel`` is ``nll_and_gradient`` or its compiled form.
    """
    return _LinearCrossEntropy.apply(x_TD, weight_VD, targets_T, chunk, kernel)  # type: ignore[no-any-return]


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
    """Scalars in nats: ``main`` is the next-token loss, ``mtp`` the mean over the MTP modules (0 without any)."""

    main: Tensor
    mtp: Tensor


def hidden_states(model: "Transformer", tokens_BS: Tensor) -> list[Tensor]:
    """What the shared head reads, (B, S, D) each: the main model's states, then those of each MTP module (Eq. 21-23).

    ``tokens_BS`` is (B, S + n_mtp_layers): at position i the main model has read token i and predicts token i + 1;
    module k (from 0) joins the state below it with token i + k + 1 and predicts token i + k + 2.
    """
    S = tokens_BS.shape[1] - len(model.mtp)
    states = [model.hidden(tokens_BS[:, :S])]
    for k in range(len(model.mtp)):
        states.append(model.predict_next(k, states[-1], tokens_BS[:, k + 1 : k + 1 + S]))
    return states


def shifted_targets(tokens_BS: Tensor, depth: int, n_mtp: int) -> Tensor:
    """Targets of depth 0 (the main model) to ``n_mtp``: the tokens ``depth + 1`` places on, flattened.

    ``tokens_BS`` is (B, S + 1 + n_mtp), so that every depth has a target at each of its S positions.
    """
    S = tokens_BS.shape[1] - 1 - n_mtp
    return tokens_BS[:, depth + 1 : depth + 1 + S].flatten()


def language_losses(
    model: "Transformer", tokens_BS: Tensor, *, chunk: int = 8192, kernel: ChunkKernel = nll_and_gradient
) -> Losses:
    """Next-token and MTP loss (Eq. 24-25, before the weight lambda) of whole sequences (B, S + 1 + n_mtp_layers)."""
    n_mtp = len(model.mtp)
    depths = []
    for depth, x_BSD in enumerate(hidden_states(model, tokens_BS[:, :-1])):
        targets_T = shifted_targets(tokens_BS, depth, n_mtp)
        depths.append(
            linear_cross_entropy(x_BSD.flatten(0, 1), model.head.weight, targets_T, chunk=chunk, kernel=kernel)
        )
    main, *mtp = depths
    return Losses(main, torch.stack(mtp).mean() if mtp else torch.zeros_like(main))
