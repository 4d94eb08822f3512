"""Every tolerance of the kernel tests, with its reason. A test that needs another number adds a row here.

The measure is `relative_error`, the Frobenius norm of the difference over that of the expected tensor; products take
the worst row of the output (`worst_row_error`), since rows have sizes of their own. A single element that is wrong by
its own size in a row of 512 moves it by 4%, far above the bounds below, whereas a bound per element would have to
allow for cancellation.
"""

import torch

E4M3_ROUND = 2.0**-4
"""Round trip, per element: half a unit in the last place of a number with 3 stored bits, relative to the element."""

E4M3_SUBNORMAL = 2.0**-10
"""Round trip, per element: below 2^-6 codes are multiples of 2^-9, so the error is at most 2^-10 of a scale,
absolute."""

SCALE_AGAIN = 2.0**-22
"""A scale made again from restored weights: 448 * s and its product with 1/448, two roundings and that of the
constant."""

GEMM_FP32 = 1e-6
"""FP32 output, both sides accumulate exactly representable products in FP32: only the order of sums differs (2^-24
each)."""

GEMM_TENSOR_CORE = 2e-3
"""FP32 output, GPU against reference: within 128 terms a Hopper tensor core keeps about 14 bits of the running sum
(arXiv 2412.19437 section 3.3.2), which is 2^-13 relative to the largest partial sum, and random signs cancel part of
the result."""

GEMM_BF16 = 2.0**-8
"""BF16 output: where two FP32 results (GEMM_TENSOR_CORE on a GPU) lie on the two sides of a tie, they round to
neighbours, and those are 2^-8 to 2^-7 of the element apart, since BF16 has 8 significant bits. A row whose every
element went to its neighbour would differ by 6e-3. FP32 results 2e-4 apart, as measured on an H100, send about one
element in ten there, which moves a long row by 1e-3; in a row of 130 the largest element alone moves it by 2e-3, and
the worst of 4,097 such rows was 2.2e-3 off. The bound is one rounding step, a tenth of what one wrong element does."""

LINEAR_BF16 = 2.0**-8
"""A BF16 product, rounded, against its FP32 value: half a rounding step, 2^-9, per element at most."""

GOLDEN_GEMM = 2e-3
"""golden/fp8_ops was computed on an H100 in BF16: GEMM_TENSOR_CORE, of which 1e-5 is seen after equal roundings."""

FP8_LINEAR = 0.05
"""y = x @ w.T against the same in FP8, for Gaussian data: e4m3 rounding has a root mean square of 2.6% per factor,
3.7% for the product; the errors of the terms are independent, so the sum keeps the relative error of a term."""

GROUPED_BF16 = 5e-3
"""Grouped against per-expert BF16 products on a GPU: one rounding to BF16 each, and another order of FP32 sums."""

GROUPED_FP32 = 1e-5
"""Loop over experts against an einsum, FP32: another order of sums."""

FUSED_FP32 = 1e-6
"""Norms and rotations in FP32: another order of the sum of squares, and rsqrt in place of 1 / sqrt (2^-22)."""

FUSED_BF16 = 2.0**-9
"""The same with BF16 in and out: FP32 inside on both sides, so only values next to a tie round to neighbours."""

ROUTE_FP32 = 1e-6
"""Weights of the router: logits of up to 7,168 terms summed in another order, and an exponential of 2 ulp."""

MOE_FP32 = 2e-6
"""The experts' three products in a row in FP32: another order of sums in each."""

MOE_BF16 = 8e-3
"""The same with BF16 weights. h and the experts' outputs are rounded to BF16 on both sides (2^-9 each where the sums
differ enough to round to neighbours), or the outputs on one side only (one token: they are never stored)."""

MOE_FP8 = 2e-2
"""The same with e4m3 weights on a GPU: sums that differ by GEMM_TENSOR_CORE send a few per cent of h to the
neighbouring code, 2^-4 away."""

ATTENTION_FP32 = 2e-6
"""Attention in FP32: the running softmax in base 2, split and summed in another order."""

ATTENTION_BF16 = 2.0**-7
"""The same with a BF16 cache against FP32 inside: the softmax weights are rounded to BF16 for the tensor cores (2^-9
each, independent), and so is the result."""


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """|got - expected| / |expected|; 0 when they are equal, infinite where `got` has NaN or infinity."""
    return _error(got.reshape(1, -1), expected.reshape(1, -1))


def worst_row_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest `relative_error` of a row (the last dimension)."""
    return _error(got, expected)


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape, f"shapes {tuple(got.shape)} and {tuple(expected.shape)}"
    if got.numel() == 0:
        return 0.0
    if not bool(got.isfinite().all()):
        return float("inf")
    dtype = torch.float64 if expected.dtype == torch.float64 else torch.float32
    got, expected = got.detach().to(dtype), expected.detach().to(got.device, dtype)
    difference = torch.linalg.vector_norm(got - expected, dim=-1, dtype=torch.float64)
    size = torch.linalg.vector_norm(expected, dim=-1, dtype=torch.float64)
    return torch.where(difference == 0, 0.0, difference / size).max().item()


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equality of e4m3 tensors as bytes: comparison of numbers would take -0 for 0 and reject NaN."""
    return a.dtype == b.dtype and torch.equal(a.cpu().view(torch.uint8), b.cpu().view(torch.uint8))
