"""The op table: one signature per operation, an implementation chosen by where the tensors are.

Each operation is stated in plain torch in `reference.py`, which runs on any device and defines the numbers. On CUDA,
where triton is installed, a kernel of the same signature takes its place. `backend="reference"` or `"triton"` chooses
by hand (for a comparison; `"triton"` on CPU tensors needs triton's interpreter); there is no global switch, so two
models in one process cannot disturb each other. Importing this package never imports triton.
"""

import functools
import importlib
from typing import Literal

import torch
import torch.nn.functional as F

from dsv3.kernels import grouped_gemm, moe_reference, reference
from dsv3.kernels.grouped_gemm import grouped_linear
from dsv3.kernels.latent_bytes import pack_latents, row_bytes, unpack_latents
from dsv3.kernels.moe_reference import ExpertWeights, Routed, SharedWeights
from dsv3.kernels.reference import BLOCK, E4M3, E4M3_MAX

__all__ = [
    "BLOCK",
    "E4M3",
    "E4M3_MAX",
    "Backend",
    "ExpertWeights",
    "Routed",
    "SharedWeights",
    "act_quant",
    "add_rms_norm",
    "fp8_gemm",
    "fp8_grouped_linear",
    "fp8_linear",
    "grouped_linear",
    "has_decode_kernels",
    "latent_attention",
    "linear",
    "moe_experts",
    "pack_latents",
    "rms_norm",
    "rotate_and_cache",
    "route",
    "row_bytes",
    "triton_available",
    "unpack_latents",
    "weight_dequant",
    "weight_quant",
]

Backend = Literal["reference", "triton"]


@functools.cache
def triton_available() -> bool:
    """Whether triton can be imported; tried at the first CUDA tensor, never before."""
    try:
        importlib.import_module("triton")
    except ImportError:
        return False
    return True


@functools.cache
def _has_fp8(device: torch.device) -> bool:
    """Whether the GPU converts and multiplies e4m3 (Ada, Hopper and later)."""
    return torch.cuda.get_device_capability(device) >= (8, 9)


ROW_BYTES = 16
"""Attention on a GPU loads pieces of this size: a token's row in the cache must be a multiple of it (all real are)."""


def has_decode_kernels(device: torch.device) -> bool:
    """Whether a step can be recorded there: attention over pages, without a host that knows their number."""
    return device.type == "cuda" and triton_available() and _has_fp8(device)


def _use_triton(x: torch.Tensor, backend: Backend | None) -> bool:
    if backend not in (None, "reference", "triton"):
        raise ValueError(f"backend is {backend!r}; expected None, 'reference' or 'triton'")
    if backend is None:
        return x.is_cuda and triton_available() and _has_fp8(x.device)
    if backend == "triton" and not triton_available():
        raise ValueError("backend is 'triton', but triton cannot be imported; install it, or leave backend at None")
    return backend == "triton"


def act_quant(
    x: torch.Tensor, block: int = BLOCK, scale_fmt: str | None = None, *, backend: Backend | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (..., K) -> e4m3 codes (..., K), FP32 scales (..., ceil(K/block)); one scale per row and `block` columns."""
    if _use_triton(x, backend):
        from dsv3.kernels import quant

        return quant.act_quant(x, block, scale_fmt)
    return reference.act_quant(x, block, scale_fmt)


def weight_quant(
    w: torch.Tensor, block: int = BLOCK, scale_fmt: str | None = None, *, backend: Backend | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """w (..., N, K) -> e4m3 codes (..., N, K), FP32 scales (..., ceil(N/block), ceil(K/block))."""
    if _use_triton(w, backend):
        from dsv3.kernels import quant

        return quant.weight_quant(w, block, scale_fmt)
    return reference.weight_quant(w, block, scale_fmt)


def weight_dequant(
    q: torch.Tensor,
    s: torch.Tensor,
    block: int = BLOCK,
    dtype: torch.dtype = torch.bfloat16,
    *,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Codes q (..., N, K) and their scales -> weights (..., N, K) of `dtype`."""
    if _use_triton(q, backend):
        from dsv3.kernels import quant

        return quant.weight_dequant(q, s, block, dtype)
    return reference.weight_dequant(q, s, block, dtype)


def fp8_gemm(
    a: torch.Tensor,
    a_s: torch.Tensor,
    b: torch.Tensor,
    b_s: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    backend: Backend | None = None,
) -> torch.Tensor:
    """a (..., K) @ b (N, K).T from e4m3 codes and scales (1x128 for a, 128x128 for b), accumulated in FP32."""
    if _use_triton(a, backend):
        from dsv3.kernels import dense

        return dense.fp8_gemm(a, a_s, b, b_s, out_dtype)
    return reference.fp8_gemm(a, a_s, b, b_s, out_dtype)


def fp8_linear(
    x: torch.Tensor,
    w: torch.Tensor,
    w_s: torch.Tensor,
    scale_fmt: str | None = None,
    *,
    backend: Backend | None = None,
) -> torch.Tensor:
    """x (..., K), quantised 1x128, @ w (N, K).T in FP8 -> (..., N) in the type of x. Inference only."""
    if _use_triton(x, backend):
        from dsv3.kernels import dense

        return dense.fp8_linear(x, w, w_s, scale_fmt)
    return reference.fp8_linear(x, w, w_s, scale_fmt)


def linear(x: torch.Tensor, w: torch.Tensor, *, backend: Backend | None = None) -> torch.Tensor:
    """`F.linear(x, w)`; on CUDA, few rows in 16 bits take a kernel of ours where that was measured to be faster."""
    needs_gradient = torch.is_grad_enabled() and (x.requires_grad or w.requires_grad)
    if x.element_size() == 2 and x.dtype == w.dtype and not needs_gradient and _use_triton(x, backend):
        from dsv3.kernels import dense

        return dense.linear(x, w)
    return F.linear(x, w)


def fp8_grouped_linear(
    x_MD: torch.Tensor,
    w_EFD: torch.Tensor,
    s_Efd: torch.Tensor,
    counts_E: torch.Tensor,
    scale_fmt: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Rows sorted by expert times that expert's e4m3 weight: y_MF = act_quant(x_MD) @ w_EFD[e].T. Inference only."""
    if _use_triton(x_MD, backend):
        from dsv3.kernels import gemm

        return gemm.fp8_grouped_linear(x_MD, w_EFD, s_Efd, counts_E, scale_fmt, out_dtype)
    return grouped_gemm.fp8_grouped_linear(x_MD, w_EFD, s_Efd, counts_E, scale_fmt, out_dtype)


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, *, backend: Backend | None = None) -> torch.Tensor:
    """x / sqrt(mean of its squares + eps) * weight for rows x (T, D); FP32 inside. Inference only on CUDA."""
    if _use_triton(x_TD, backend):
        from dsv3.kernels import fused

        return fused.rms_norm(x_TD, weight_D, eps)
    return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)


def add_rms_norm(
    h_TD: torch.Tensor, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, *, backend: Backend | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """h + x (T, D), and the RMS norm of that sum times `weight_D`. Inference only on CUDA."""
    if _use_triton(h_TD, backend):
        from dsv3.kernels import fused

        return fused.add_rms_norm(h_TD, x_TD, weight_D, eps)
    return reference.add_rms_norm(h_TD, x_TD, weight_D, eps)


def rotate_and_cache(
    q_THX: torch.Tensor,
    kv_Tc: torch.Tensor,
    norm_weight_C: torch.Tensor,
    eps: float,
    turns_TR2: torch.Tensor,
    latents_Xc: torch.Tensor,
    slots_T: torch.Tensor,
) -> torch.Tensor:
    """Triton only (`layers.mla` says it in torch): the tokens' latents and keys go to the cache; returns q_pe_THR."""
    from dsv3.kernels import fused

    return fused.rotate_and_cache(q_THX, kv_Tc, norm_weight_C, eps, turns_TR2, latents_Xc, slots_T)


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
    backend: Backend | None = None,
) -> Routed:
    """The gate's choice (`layers.gate`) for each token, and who is where. Inference only."""
    op = moe_reference.route
    if _use_triton(x_TD, backend):
        from dsv3.kernels import router

        op = router.route
    return op(
        x_TD,
        weight_ED,
        bias_E,
        top_k=top_k,
        n_groups=n_groups,
        n_limited=n_limited,
        sigmoid=sigmoid,
        route_scale=route_scale,
    )


def moe_experts(
    x_TD: torch.Tensor,
    routed: Routed,
    experts: ExpertWeights,
    shared: SharedWeights | None = None,
    residual_TD: torch.Tensor | None = None,
    scale_fmt: str | None = None,
    *,
    backend: Backend | None = None,
) -> torch.Tensor:
    """Routed and shared experts, weighted sum and residual: y_TD. BF16 or e4m3 weights. Inference only."""
    if _use_triton(x_TD, backend):
        from dsv3.kernels import experts as kernel

        return kernel.moe_experts(x_TD, routed, experts, shared, residual_TD, scale_fmt)
    return moe_reference.moe_experts(x_TD, routed, experts, shared, residual_TD, scale_fmt)


def latent_attention(
    q_latent_THC: torch.Tensor,
    q_pe_THR: torch.Tensor,
    latents_Xc: torch.Tensor,
    page_table_BP: torch.Tensor,
    kv_lens_B: torch.Tensor,
    *,
    page_size: int,
    scale: float,
    backend: Backend | None = None,
) -> torch.Tensor:
    """MLA in its absorbed form over a paged cache -> o_THC; `reference.latent_attention` says what is what.

    A uint8 cache is one in FP8, and means what `unpack_latents` makes of it.
    """
    op = reference.latent_attention
    aligned = latents_Xc.stride(0) * latents_Xc.element_size() % ROW_BYTES == 0
    if (aligned or backend == "triton") and _use_triton(q_latent_THC, backend):
        from dsv3.kernels import attention

        op = attention.latent_attention
    elif latents_Xc.dtype == torch.uint8:
        latents_Xc = unpack_latents(latents_Xc, q_latent_THC.shape[2], q_pe_THR.shape[2])
    return op(q_latent_THC, q_pe_THR, latents_Xc, page_table_BP, kv_lens_B, page_size=page_size, scale=scale)
