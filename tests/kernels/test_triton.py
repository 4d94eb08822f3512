"""The Triton kernels against their references: the same checks on a GPU and, on the CPU, in triton's interpreter.

Interpreted or compiled is decided when triton is first imported, for the whole process. In the interpreter this file is
therefore run in a process of its own, by `test_interpreted.py`; here it needs a GPU.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3 import kernels
from tests.kernels.tolerances import GEMM_BF16, GEMM_FP32, GEMM_TENSOR_CORE, same_bits, worst_row_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
GEMM_TOLERANCE = GEMM_FP32 if INTERPRETED else GEMM_TENSOR_CORE

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
else:
    pytestmark = pytest.mark.gpu

FORMATS = [None, "ue8m0"]


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Normal numbers whose rows differ in size by up to 2^±8, drawn on the CPU so that every device sees the same
    ones."""
    size = torch.exp2(torch.randint(-8, 9, (*shape[:-1], 1)))
    return (torch.randn(*shape) * size).to(DEVICE, dtype)


def assert_same_quantisation(op, x: torch.Tensor, **options) -> None:
    q, s = op(x, backend="triton", **options)
    q_expected, s_expected = op(x, backend="reference", **options)
    assert torch.equal(s, s_expected)
    assert same_bits(q, q_expected)


@pytest.mark.parametrize("shape", [(48, 512), (1, 576), (3, 7, 300), (33, 129), (5,), (2, 1), (0, 128)])
@pytest.mark.parametrize("scale_fmt", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_act_quant(shape, scale_fmt, dtype):
    assert_same_quantisation(kernels.act_quant, random(*shape, dtype=dtype), scale_fmt=scale_fmt)


@pytest.mark.parametrize("shape", [(320, 512), (1, 576), (129, 257), (2, 3, 130, 100), (0, 128)])
@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_weight_quant_and_dequant(shape, scale_fmt):
    w = random(*shape, dtype=torch.bfloat16)
    assert_same_quantisation(kernels.weight_quant, w, scale_fmt=scale_fmt)
    q, s = kernels.weight_quant(w, scale_fmt=scale_fmt)
    for dtype in (torch.bfloat16, torch.float32):
        restored = kernels.weight_dequant(q, s, dtype=dtype, backend="triton")
        assert torch.equal(restored, kernels.weight_dequant(q, s, dtype=dtype, backend="reference"))


@pytest.mark.parametrize("block", [32, 64])
def test_other_block_sizes(block):
    w = random(100, 150)
    assert_same_quantisation(kernels.act_quant, w, block=block)
    assert_same_quantisation(kernels.weight_quant, w, block=block)
    q, s = kernels.weight_quant(w, block)
    restored = kernels.weight_dequant(q, s, block, backend="triton")
    assert torch.equal(restored, kernels.weight_dequant(q, s, block, backend="reference"))


@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_blocks_of_zeros(scale_fmt):
    w = random(256, 300)
    w[:128, 128:256] = 0
    for quantise in (kernels.act_quant, kernels.weight_quant):
        q, s = quantise(w, scale_fmt=scale_fmt, backend="triton")
        assert (q[:128, 128:256].float() == 0).all()
        assert s.isfinite().all()
        assert_same_quantisation(quantise, w, scale_fmt=scale_fmt)


@given(st.integers(1, 40), st.integers(1, 300), st.integers(-15, 15), st.sampled_from(FORMATS), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_act_quant_at_any_size(rows, width, exponent, scale_fmt, seed):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    assert_same_quantisation(kernels.act_quant, x.to(DEVICE, torch.bfloat16), scale_fmt=scale_fmt)


def test_quantising_a_view():
    x = random(200, 48).T
    assert_same_quantisation(kernels.act_quant, x)
    assert_same_quantisation(kernels.weight_quant, x)


GEMM_SHAPES = [
    (1, 128, 128),  # one row
    (7, 130, 300),  # nothing divides
    (83, 64, 576),  # a partial last block of K
    (33, 257, 128),  # a partial last block of N
    (2, 1, 1),
    (0, 128, 128),
]


@pytest.mark.parametrize(("m", "n", "k"), GEMM_SHAPES)
@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_fp8_gemm(m, n, k, scale_fmt):
    a, a_s = kernels.act_quant(random(m, k), scale_fmt=scale_fmt)
    b, b_s = kernels.weight_quant(random(n, k), scale_fmt=scale_fmt)
    for out_dtype, tolerance in ((torch.float32, GEMM_TOLERANCE), (torch.bfloat16, GEMM_BF16)):
        y = kernels.fp8_gemm(a, a_s, b, b_s, out_dtype, backend="triton")
        expected = kernels.fp8_gemm(a, a_s, b, b_s, out_dtype, backend="reference")
        assert y.dtype == out_dtype
        assert worst_row_error(y, expected) < tolerance


def test_fp8_gemm_scales_every_block_by_its_own_scale():
    """Scales alone carry the numbers: each block of a and of b is constant, and no two blocks are alike."""
    a = torch.ones(3, 384).to(DEVICE, kernels.E4M3)
    b = torch.ones(300, 384).to(DEVICE, kernels.E4M3)
    a_s = torch.arange(1.0, 10.0, device=DEVICE).reshape(3, 3)
    b_s = torch.arange(1.0, 10.0, device=DEVICE).reshape(3, 3) ** 2
    y = kernels.fp8_gemm(a, a_s, b, b_s, torch.float32, backend="triton")
    expected = 128 * (a_s @ b_s.T).repeat_interleave(128, 1)[:, :300]
    assert torch.equal(y, expected)


def test_fp8_gemm_keeps_leading_dimensions():
    a, a_s = kernels.act_quant(random(2, 3, 200))
    b, b_s = kernels.weight_quant(random(40, 200))
    y = kernels.fp8_gemm(a, a_s, b, b_s, backend="triton")
    assert worst_row_error(y, kernels.fp8_gemm(a, a_s, b, b_s, backend="reference")) < GEMM_BF16


@pytest.mark.parametrize(
    ("counts", "f", "d", "scale_fmt"),
    [
        ([3, 0, 20, 2, 0], 130, 300, None),
        ([0, 0, 1], 64, 128, "ue8m0"),
        ([16, 32, 1], 32, 256, "ue8m0"),  # counts that are multiples of a tile, and one row more
        ([0, 0], 64, 128, None),
        ([17], 40, 72, "ue8m0"),
    ],
)
def test_fp8_grouped_linear(counts, f, d, scale_fmt):
    x = random(sum(counts), d, dtype=torch.bfloat16)
    w, s = kernels.weight_quant(random(len(counts), f, d), scale_fmt=scale_fmt)
    counts_E = torch.tensor(counts, device=DEVICE)
    for out_dtype, tolerance in ((torch.float32, GEMM_TOLERANCE), (torch.bfloat16, GEMM_BF16)):
        y = kernels.fp8_grouped_linear(x, w, s, counts_E, scale_fmt, out_dtype, backend="triton")
        expected = kernels.fp8_grouped_linear(x, w, s, counts_E, scale_fmt, out_dtype, backend="reference")
        assert y.dtype == out_dtype
        assert worst_row_error(y, expected) < tolerance


def test_arguments_are_checked_before_a_launch():
    q, s = kernels.weight_quant(random(130, 128))
    with pytest.raises(ValueError, match="need scales of shape"):
        kernels.weight_dequant(q, s[:1], backend="triton")
    with pytest.raises(ValueError, match="same K"):
        kernels.fp8_gemm(q[:, :100], s, q, s, backend="triton")
    with pytest.raises(ValueError, match="scale_fmt"):
        kernels.act_quant(random(2, 128), scale_fmt="e8", backend="triton")
