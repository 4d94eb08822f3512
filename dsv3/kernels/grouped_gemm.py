"""One matrix product per expert, over rows that are already sorted by expert.

After dispatch the M routed rows stand in E runs: the first `counts_E[0]` rows belong to expert 0, the next
`counts_E[1]` to expert 1, and so on. The product y[m] = w[e(m)] @ x[m] could be a Python loop over experts, but on a
GPU a loop has to know the counts on the host, and that copy stalls every MoE layer and forbids CUDA graphs. A grouped
GEMM reads the run boundaries (`counts.cumsum`) on the device. On a CPU there is nothing to stall: the counts are read
once and the loop visits only the experts that received rows.

Shapes: x_MD (M, D) rows, w_EFD (E, F, D) stacked weights, counts_E (E,) integers that sum to M, y_MF (M, F).
"""

import torch
import torch.nn.functional as F

from dsv3.kernels import reference

ALIGNMENT_BYTES = 16
"""The CUDA kernel moves rows with TMA, which addresses multiples of 16 bytes."""


def grouped_linear(x_MD: torch.Tensor, w_EFD: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    """y_MF = x_MD @ w_EFD[e].T for each run of rows. Differentiable in x and w; experts without rows get a zero
    gradient.

    BF16 on CUDA runs without a host synchronisation; there `counts_E` must sum to M, which cannot be checked without
    one. Other dtypes on CUDA have no grouped kernel and take the loop of the CPU."""
    _check(x_MD, w_EFD, counts_E)
    if x_MD.dtype != w_EFD.dtype:
        raise TypeError(f"x is {x_MD.dtype} and w is {w_EFD.dtype}; cast one of them")
    if x_MD.is_cuda and x_MD.dtype == torch.bfloat16 and x_MD.shape[0] > 0:
        return _grouped_on_device(x_MD, w_EFD, counts_E)
    experts, sizes = _runs(counts_E, x_MD.shape[0])
    if not experts:
        return F.linear(x_MD, w_EFD[0])
    runs = zip(experts, x_MD.split(sizes), strict=True)
    if torch.is_grad_enabled() and (w_EFD.requires_grad or x_MD.requires_grad):
        # split and unbind, not slices: under autograd every slice would bring a gradient of the full tensor's size.
        w_by_expert = w_EFD.unbind()
        return torch.cat([F.linear(rows, w_by_expert[e]) for e, rows in runs])
    y_MF = x_MD.new_empty(x_MD.shape[0], w_EFD.shape[1])
    for y, (e, rows) in zip(y_MF.split(sizes), runs, strict=True):
        torch.mm(rows, w_EFD[e].t(), out=y)
    return y_MF


def fp8_grouped_linear(
    x_MD: torch.Tensor,
    w_EFD: torch.Tensor,
    s_Efd: torch.Tensor,
    counts_E: torch.Tensor,
    scale_fmt: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """`grouped_linear` with e4m3 weights: x (any float) is quantised 1x128, `s_Efd` (E, ceil(F/128), ceil(D/128))
    holds the weights' block scales. Inference only.

    This is the reference: one `reference.fp8_gemm` for each expert that has rows.
    """
    check_fp8_grouped_input(x_MD, w_EFD, s_Efd, counts_E)
    q_MD, q_s_Md = reference.act_quant(x_MD, scale_fmt=scale_fmt)
    experts, sizes = _runs(counts_E, x_MD.shape[0])
    runs = zip(experts, q_MD.split(sizes), q_s_Md.split(sizes), strict=True)
    parts = [reference.fp8_gemm(q, q_s, w_EFD[e], s_Efd[e], out_dtype) for e, q, q_s in runs]
    return torch.cat(parts) if parts else x_MD.new_empty(0, w_EFD.shape[1], dtype=out_dtype)


def _runs(counts_E: torch.Tensor, n_rows: int) -> tuple[list[int], list[int]]:
    """The experts that have rows, and how many each has. Reads the counts on the host."""
    counts = counts_E.tolist()
    if sum(counts) != n_rows or min(counts) < 0:
        raise ValueError(
            f"counts_E sums to {sum(counts)} (smallest {min(counts)}); expected no negative count and {n_rows} rows"
        )
    experts = [e for e, count in enumerate(counts) if count]
    return experts, [counts[e] for e in experts]


def _grouped_on_device(x_MD: torch.Tensor, w_EFD: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    """The CUDA path. Rows whose byte length TMA cannot address are padded with zeros, which add nothing to a dot
    product; that copies the weights, so sizes should be multiples of 8 (all published ones are)."""
    n_out = w_EFD.shape[1]
    step = ALIGNMENT_BYTES // x_MD.element_size()
    pad_d, pad_f = -x_MD.shape[1] % step, -n_out % step
    if pad_d or pad_f:
        x_MD, w_EFD = F.pad(x_MD, (0, pad_d)), F.pad(w_EFD, (0, pad_d, 0, pad_f))
    ends_E = counts_E.cumsum(0).to(torch.int32)
    y_MF = _grouped_mm(x_MD.contiguous(), w_EFD.contiguous().transpose(-2, -1), ends_E)
    if y_MF.requires_grad:
        # The backward pass calls the same kernel, which refuses an expanded gradient such as that of `sum()`.
        y_MF.register_hook(torch.Tensor.contiguous)
    return y_MF[:, :n_out] if pad_f else y_MF


def _grouped_mm(x_MD: torch.Tensor, w_EDF: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
    public = getattr(F, "grouped_mm", None)  # torch 2.11 may have it only under its private name
    return (public or torch._grouped_mm)(x_MD, w_EDF, offs=ends_E)


def check_fp8_grouped_input(
    x_MD: torch.Tensor, w_EFD: torch.Tensor, s_Efd: torch.Tensor, counts_E: torch.Tensor
) -> None:
    _check(x_MD, w_EFD, counts_E)
    reference.check_dequant_input(w_EFD, s_Efd, reference.BLOCK)


def _check(x_MD: torch.Tensor, w_EFD: torch.Tensor, counts_E: torch.Tensor) -> None:
    if x_MD.dim() != 2 or w_EFD.dim() != 3 or x_MD.shape[1] != w_EFD.shape[2]:
        raise ValueError(f"x is {tuple(x_MD.shape)} and w is {tuple(w_EFD.shape)}; expected x (M, D) and w (E, F, D)")
    if counts_E.shape != w_EFD.shape[:1] or counts_E.is_floating_point():
        raise ValueError(
            f"counts_E is {counts_E.dtype} of shape {tuple(counts_E.shape)}; expected "
            f"{w_EFD.shape[0]} integers, one per expert"
        )
    if not x_MD.device == w_EFD.device == counts_E.device:
        raise ValueError(
            f"x is on {x_MD.device}, w on {w_EFD.device}, counts_E on {counts_E.device}; move them to one device"
        )
