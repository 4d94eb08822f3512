"""The MoE layer in plain torch: the contract of `router.py` and `experts.py`, which do the same in few launches.

    s = sigmoid(W x), choose K of E by s + b, g = s / sum of the chosen s                  (V3 Eq. 13-16)
    y = sum_k g_k Expert_k(x) + Shared(x) (+ residual)                                     (V3 Eq. 12)

**Where numbers are rounded.** The router is FP32 throughout. An expert's gate and up products, SiLU and their product
are FP32; h = silu(gate) * up is rounded to the type of x, since the down product multiplies in that type (or quantises
it 1x128 where the weights are FP8). Its output is rounded to the type of x once more; the sum over experts, shared
experts and residual is FP32 and rounded once.

**Who is where.** A router that says "token t goes to experts 5, 9, 2" has to be turned round for the experts, who ask
"which tokens are mine?". The answer is a table of bytes, places_ET: k + 1 where expert e is token t's k-th choice, 0
elsewhere. A row of it is all that one expert needs: at 256 tokens it has 256 bytes, which a program reads and counts in
less time than a sort would take to start.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from dsv3.kernels import grouped_gemm, reference


class Routed(NamedTuple):
    """What `route` finds. weights_TK FP32, indices_TK int64, places_ET uint8 (see above)."""

    weights_TK: torch.Tensor
    indices_TK: torch.Tensor
    places_ET: torch.Tensor


class ExpertWeights(NamedTuple):
    """w13 (E, 2, F, D), w2 (E, D, F), and their block scales where they are e4m3 codes."""

    w13: torch.Tensor
    w2: torch.Tensor
    w13_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None


class SharedWeights(NamedTuple):
    """The shared experts as one MLP: w1 and w3 (Fs, D), w2 (D, Fs), and their block scales."""

    w1: torch.Tensor
    w3: torch.Tensor
    w2: torch.Tensor
    w1_scale: torch.Tensor | None = None
    w3_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None


def route(
    x_TD: torch.Tensor,
    weight_ED: torch.Tensor,
    bias_E: torch.Tensor | None = None,
    *,
    top_k: int,
    n_groups: int = 1,
    n_limited: int = 1,
    sigmoid: bool = True,
    route_scale: float = 1.0,
) -> Routed:
    """A token's experts in descending order of s + b; of equal ones, the expert (or group) of lower number first."""
    logits_TE = F.linear(x_TD.float(), weight_ED.float())
    scores_TE = logits_TE.sigmoid() if sigmoid else logits_TE.softmax(dim=-1)
    choice_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if n_groups > 1:
        choice_TGe = choice_TE.unflatten(-1, (n_groups, -1))
        worth_TG = _best(choice_TGe, 1 if bias_E is None else 2)[0].sum(-1)
        closed_TG = torch.ones_like(worth_TG, dtype=torch.bool).scatter_(1, _best(worth_TG, n_limited)[1], False)
        choice_TE = choice_TGe.masked_fill(closed_TG.unsqueeze(-1), float("-inf")).flatten(1)
    indices_TK = _best(choice_TE, top_k)[1]
    weights_TK = scores_TE.gather(1, indices_TK)
    if sigmoid:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return Routed(weights_TK * route_scale, indices_TK, places(indices_TK, weight_ED.shape[0]))


def _best(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, indices = x.sort(dim=-1, descending=True, stable=True)
    return values[..., :k], indices[..., :k]


def places(indices_TK: torch.Tensor, n_experts: int) -> torch.Tensor:
    """places_ET of indices that come from elsewhere."""
    (T, K), device = indices_TK.shape, indices_TK.device
    choice_KT = torch.arange(1, K + 1, dtype=torch.uint8, device=device).unsqueeze(1).expand(K, T)
    return torch.zeros(n_experts, T, dtype=torch.uint8, device=device).scatter_(0, indices_TK.T, choice_KT)


def moe_experts(
    x_TD: torch.Tensor,
    routed: Routed,
    experts: ExpertWeights,
    shared: SharedWeights | None = None,
    residual_TD: torch.Tensor | None = None,
    scale_fmt: str | None = None,
) -> torch.Tensor:
    """y_TD = sum_k g_k Expert_k(x) + Shared(x) + residual. Inference only."""
    check_experts(x_TD, routed, experts, shared, residual_TD)
    (T, D), K = x_TD.shape, routed.indices_TK.shape[1]
    order_M = routed.indices_TK.flatten().argsort(stable=True)
    counts_E = (routed.places_ET > 0).sum(1)
    y_MD = _mlp(x_TD[order_M // K], counts_E, experts, scale_fmt)
    y_TKD = torch.empty_like(y_MD).index_copy_(0, order_M, y_MD).view(T, K, D)
    y_TD = torch.einsum("tk,tkd->td", routed.weights_TK, y_TKD.float())
    if shared is not None:
        w1, w3, w2, *scales = shared
        s1, s3, s2 = (None if s is None else s.unsqueeze(0) for s in scales)
        everyone = torch.tensor([T], device=x_TD.device)
        h_TF = _hidden(x_TD, [w1.unsqueeze(0), w3.unsqueeze(0)], [s1, s3], everyone, scale_fmt)
        y_TD += _product(h_TF, w2.unsqueeze(0), s2, everyone, scale_fmt, x_TD.dtype).float()
    if residual_TD is not None:
        y_TD += residual_TD.float()
    return y_TD.to(x_TD.dtype)


def _mlp(x_MD: torch.Tensor, counts_E: torch.Tensor, experts: ExpertWeights, scale_fmt: str | None) -> torch.Tensor:
    w13, w2, s13, s2 = experts
    scales = [None, None] if s13 is None else [s13[:, 0], s13[:, 1]]
    h_MF = _hidden(x_MD, [w13[:, 0], w13[:, 1]], scales, counts_E, scale_fmt)
    return _product(h_MF, w2, s2, counts_E, scale_fmt, x_MD.dtype)


def _hidden(
    x_MD: torch.Tensor,
    weights: list[torch.Tensor],
    scales: Sequence[torch.Tensor | None],
    counts_E: torch.Tensor,
    scale_fmt: str | None,
) -> torch.Tensor:
    gate_MF, up_MF = (
        _product(x_MD, w, s, counts_E, scale_fmt, torch.float32) for w, s in zip(weights, scales, strict=True)
    )
    return (F.silu(gate_MF) * up_MF).to(x_MD.dtype)


def _product(
    x_MD: torch.Tensor,
    w_EFD: torch.Tensor,
    scale: torch.Tensor | None,
    counts_E: torch.Tensor,
    scale_fmt: str | None,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    if scale is None:
        return grouped_gemm.grouped_linear(x_MD.float(), w_EFD.float(), counts_E).to(out_dtype)
    return grouped_gemm.fp8_grouped_linear(x_MD, w_EFD, scale, counts_E, scale_fmt, out_dtype)


# --- argument checks, shared with the Triton kernels ------------------------------------------------------------------


def check_experts(
    x_TD: torch.Tensor,
    routed: Routed,
    experts: ExpertWeights,
    shared: SharedWeights | None,
    residual_TD: torch.Tensor | None,
) -> None:
    w13, w2 = experts.w13, experts.w2
    if x_TD.dim() != 2 or w13.dim() != 4:
        raise ValueError(f"x is {tuple(x_TD.shape)} and w13 {tuple(w13.shape)}; expected (T, D) and (E, 2, F, D)")
    (T, D), (E, _, F_, _), K = x_TD.shape, w13.shape, routed.indices_TK.shape[-1]
    _check_shape("w13", w13, (E, 2, F_, D))
    _check_shape("w2", w2, (E, D, F_))
    _check_shape("weights_TK", routed.weights_TK, (T, K))
    _check_shape("indices_TK", routed.indices_TK, (T, K))
    _check_shape("places_ET", routed.places_ET, (E, T))
    if residual_TD is not None:
        _check_shape("residual_TD", residual_TD, (T, D))
    weights = [("w13", w13, experts.w13_scale), ("w2", w2, experts.w2_scale)]
    if shared is not None:
        F_shared = shared.w1.shape[0]
        _check_shape("the shared w1", shared.w1, (F_shared, D))
        _check_shape("the shared w3", shared.w3, (F_shared, D))
        _check_shape("the shared w2", shared.w2, (D, F_shared))
        for name in ("w1", "w3", "w2"):
            weights.append((f"the shared {name}", getattr(shared, name), getattr(shared, f"{name}_scale")))
    for name, w, scale in weights:
        _check_weight(name, w, scale, x_TD, w13.dtype)


def _check_shape(name: str, x: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {shape}")


def _check_weight(
    name: str, w: torch.Tensor, scale: torch.Tensor | None, x_TD: torch.Tensor, dtype: torch.dtype
) -> None:
    if w.dtype != dtype or w.dtype not in (x_TD.dtype, reference.E4M3):
        raise TypeError(f"{name} is {w.dtype}, w13 {dtype} and x {x_TD.dtype}; expected one type, or e4m3 weights")
    if (scale is None) == (w.dtype == reference.E4M3):
        raise TypeError(f"{name} is {w.dtype} and its scale is {'missing' if scale is None else 'given'}")
    if scale is not None:
        reference.check_dequant_input(w, scale, reference.BLOCK)
    if not w.is_contiguous() or w.device != x_TD.device:
        raise ValueError(f"{name} is on {w.device} with strides {w.stride()}; expected contiguous on {x_TD.device}")
