"""A Triton FP8 GEMM per expert, with block scales: `fp8_grouped_linear`. Dense products are in `dense.py`.

A program owns a BLOCK_M x BLOCK_N tile of the output and walks along K in steps of 128, the width of a scale block.
Each step multiplies two tiles of codes on the tensor cores and adds the result, times its scales, to an FP32
accumulator in registers: the promotion of arXiv 2412.19437 section 3.3.2. BLOCK_N divides 128, so a step needs a
single scale of b and BLOCK_M scales of a.

**Grouped.** The rows of an expert are consecutive, but how many there are is known on the device only. The grid
therefore has as many row tiles as could be needed at worst, and each program finds its expert from the counts: with
t_e = ceil(count_e / BLOCK_M) tiles for expert e, tile i belongs to the first expert whose running total of t exceeds
i. Programs beyond the total stop.

**Tuning.** The best tile depends mostly on M: a decode step has a handful of rows and wants many small programs that
stream the weight, a prefill has thousands and wants large tiles that reuse it. M changes with every batch, so the key
holds M's bucket (a power of two) rather than M: one tuning run serves all batches of a similar size. Tuning launches
kernels and measures them, hence a first call per (bucket, N, K) is slow and must happen before a CUDA graph is
captured.
"""

# Triton is a language of its own: pointers have no type, and a launch passes plain numbers for constexpr parameters.
# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from typing import Any

import torch
import triton
import triton.language as tl

from dsv3.kernels import quant, reference
from dsv3.kernels.grouped_gemm import check_fp8_grouped_input

_SCALE_BLOCK = tl.constexpr(reference.BLOCK)

_M_BUCKETS = (16, 4096)
"""Smallest and largest bucket: 16 rows are the tensor core's minimum, and beyond 4096 the best tile no longer
changes."""

_TILES = (
    # BLOCK_M, BLOCK_N, warps, pipeline stages; a stage holds (BLOCK_M + BLOCK_N) * 128 bytes of shared memory
    (16, 32, 4, 6),
    (16, 64, 4, 5),
    (32, 64, 4, 5),
    (64, 64, 4, 4),
    (64, 128, 4, 4),
    (128, 128, 8, 3),
    (128, 128, 8, 4),
)


def fp8_grouped_linear(
    x_MD: torch.Tensor,
    w_EFD: torch.Tensor,
    s_Efd: torch.Tensor,
    counts_E: torch.Tensor,
    scale_fmt: str | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """As `grouped_gemm.fp8_grouped_linear`, without reading `counts_E` on the host: it must sum to M, unchecked."""
    check_fp8_grouped_input(x_MD, w_EFD, s_Efd, counts_E)
    q_MD, q_s_Md = quant.act_quant(x_MD, scale_fmt=scale_fmt)
    w_EFD, s_Efd, counts_E = w_EFD.contiguous(), s_Efd.contiguous(), counts_E.contiguous()
    (m, d), (n_experts, f, _) = x_MD.shape, w_EFD.shape
    y_MF = torch.empty(m, f, dtype=out_dtype, device=x_MD.device)
    if y_MF.numel() == 0 or d == 0:
        return y_MF.zero_()

    def grid(meta: dict[str, Any]) -> tuple[int, int]:
        # Each expert with rows wastes less than one tile, and there are at most min(E, M) of those.
        return m // meta["BLOCK_M"] + min(n_experts, m), reference.ceil_div(f, meta["BLOCK_N"])

    bucket = row_bucket(reference.ceil_div(m, n_experts))
    experts_pow2 = triton.next_power_of_2(n_experts)
    with torch.cuda.device_of(x_MD):
        _fp8_grouped_kernel[grid](
            q_MD, q_s_Md, w_EFD, s_Efd, y_MF, counts_E, n_experts, f, d, bucket, EXPERTS_POW2=experts_pow2
        )
    return y_MF


def row_bucket(rows: int) -> int:
    """`rows` (of the GEMM, or per expert on average) rounded up to a power of two, within `_M_BUCKETS`."""
    low, high = _M_BUCKETS
    return min(max(1 << (rows - 1).bit_length(), low), high)


def gemm_configs(interpreted: bool) -> list[triton.Config]:
    """The tiles to try. Under the interpreter there is nothing to measure (and its autotuner takes one entry only)."""
    tiles = _TILES[:1] if interpreted else _TILES
    return [
        triton.Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=warps, num_stages=stages)
        for block_m, block_n, warps, stages in tiles
    ]


def _prune_configs(configs: list[triton.Config], named_args: dict[str, Any], **_: Any) -> list[triton.Config]:
    """Only tiles about as tall as the batch: taller ones compute padding, much shorter ones read the weight too
    often."""
    tallest = min(named_args["m_bucket"], max(config.kwargs["BLOCK_M"] for config in configs))
    return [config for config in configs if tallest // 2 <= config.kwargs["BLOCK_M"] <= tallest]


def _measure(call: Any, quantiles: list[float]) -> Any:
    """A tenth of triton's default measuring time: enough to rank tiles whose speeds differ by more than a few per
    cent."""
    return triton.testing.do_bench(call, warmup=5, rep=20, quantiles=quantiles)


_autotune = triton.autotune(
    configs=gemm_configs(interpreted=triton.knobs.runtime.interpret),
    key=["m_bucket", "n", "k"],
    prune_configs_by={"early_config_prune": _prune_configs},
    do_bench=_measure,
)


@triton.jit
def _accumulate(
    a_ptr, a_s_ptr, b_ptr, b_s_ptr, rows, row_inside, cols, n, k, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """The FP32 tile a[rows] @ b[cols].T, scaled; rows outside and columns beyond n give zeros. `cols` lie in one
    block of 128."""
    tl.static_assert(_SCALE_BLOCK % BLOCK_N == 0, "a tile must lie within one scale block of b")
    steps = tl.arange(0, _SCALE_BLOCK)
    n_steps = tl.cdiv(k, _SCALE_BLOCK)
    a_ptrs = a_ptr + rows[:, None] * k + steps[None, :]
    b_ptrs = b_ptr + cols[None, :] * k + steps[:, None]  # b.T: a column of the tile is a row of b
    a_s_ptrs = a_s_ptr + rows * n_steps
    b_s_ptr += (tl.program_id(1) * BLOCK_N // _SCALE_BLOCK) * n_steps

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for step in range(n_steps):
        left = k - step * _SCALE_BLOCK  # columns that remain; fewer than 128 only in a partial last block
        a = tl.load(a_ptrs, mask=row_inside[:, None] & (steps < left)[None, :], other=0.0)
        b = tl.load(b_ptrs, mask=(cols < n)[None, :] & (steps < left)[:, None], other=0.0)
        a_s = tl.load(a_s_ptrs + step, mask=row_inside, other=0.0)
        b_s = tl.load(b_s_ptr + step)
        acc += tl.dot(a, b) * (a_s * b_s)[:, None]
        a_ptrs += _SCALE_BLOCK
        b_ptrs += _SCALE_BLOCK
    return acc


@_autotune
@triton.jit(do_not_specialize=["m_bucket"])
def _fp8_grouped_kernel(
    a_ptr,
    a_s_ptr,
    b_ptr,
    b_s_ptr,
    y_ptr,
    counts_ptr,
    n_experts,
    n,
    k,
    m_bucket,  # read by the tuner only
    EXPERTS_POW2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    experts = tl.arange(0, EXPERTS_POW2)
    counts = tl.load(counts_ptr + experts, mask=experts < n_experts, other=0).to(tl.int32)
    tiles = tl.cdiv(counts, BLOCK_M)
    expert = tl.sum((tl.cumsum(tiles, axis=0) <= tl.program_id(0)).to(tl.int32), axis=0)
    if expert >= n_experts:
        return
    before = experts < expert
    first_row = tl.sum(tl.where(before, counts, 0), axis=0)
    end_row = first_row + tl.sum(tl.where(experts == expert, counts, 0), axis=0)
    tile = tl.program_id(0) - tl.sum(tl.where(before, tiles, 0), axis=0)

    rows = (first_row + tile * BLOCK_M).to(tl.int64) + tl.arange(0, BLOCK_M)
    cols = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    b_ptr += expert.to(tl.int64) * n * k
    b_s_ptr += expert.to(tl.int64) * tl.cdiv(n, _SCALE_BLOCK) * tl.cdiv(k, _SCALE_BLOCK)
    acc = _accumulate(a_ptr, a_s_ptr, b_ptr, b_s_ptr, rows, rows < end_row, cols, n, k, BLOCK_M, BLOCK_N)
    y_ptrs = y_ptr + rows[:, None] * n + cols[None, :]
    tl.store(y_ptrs, acc.to(y_ptr.dtype.element_ty), mask=(rows < end_row)[:, None] & (cols < n)[None, :])
