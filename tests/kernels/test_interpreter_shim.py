"""`tests/interpreter_shim.py`: the patched interpreter converts like torch, bit for bit, and computes bf16 like a GPU.

Like `test_triton.py` this file runs in a process of its own, started by `test_interpreted.py`.
"""

import os

import numpy as np
import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1; test_interpreted.py runs this file with it", allow_module_level=True)

import triton
import triton.language as tl

from tests import interpreter_shim

interpreter_shim.install()

BYTES = torch.arange(256, dtype=torch.int32).to(torch.uint8)
HALVES = torch.arange(2**16, dtype=torch.int32).to(torch.int16)  # all bf16 or fp16 numbers


def every_number(dtype: torch.dtype) -> torch.Tensor:
    """All numbers of a type of 8 or 16 bits. For FP32: the bf16 numbers, their midpoints, and random ones of every
    size."""
    if dtype == torch.float32:
        bits = HALVES.to(torch.int32) << 16
        near = torch.cat([bits + offset for offset in (0, 1, 0x7FFF, 0x8000, 0x8001)])
        return torch.cat([near.view(torch.float32), torch.randn(2**16) * torch.exp2(torch.randint(-20, 20, (2**16,)))])
    return (BYTES if dtype.itemsize == 1 else HALVES).view(dtype)


@triton.jit
def _cast(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, mask=offsets < n)
    tl.store(y_ptr + offsets, x.to(y_ptr.dtype.element_ty), mask=offsets < n)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # numpy, where FP32 exceeds FP16: infinity is meant
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_casts_equal_torch(source, target):
    x = every_number(source)
    y = torch.empty(x.shape, dtype=target)
    _cast[(triton.cdiv(x.numel(), 4096),)](x, y, x.numel(), BLOCK=4096)
    expected = x
    if target.itemsize == 1:  # satfinite, see the shim
        limit = torch.finfo(target).max
        expected = x.float().clamp(-limit, limit)
    assert_same_numbers(y, expected.to(target))


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_casts_to_fp32_equal_torch(source):
    x = every_number(source)
    y = torch.empty(x.shape)
    _cast[(triton.cdiv(x.numel(), 4096),)](x, y, x.numel(), BLOCK=4096)
    assert_same_numbers(y, x.float())


def assert_same_numbers(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Bits, except that a NaN may be any NaN."""
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[got.element_size()]
    both_nan = got.float().isnan() & expected.float().isnan()
    assert ((got.view(bits) == expected.view(bits)) | both_nan).all()


@triton.jit
def _arithmetic(x_ptr, y_ptr, z_ptr, less_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x, y = tl.load(x_ptr + offsets), tl.load(y_ptr + offsets)
    tl.store(z_ptr + offsets, x * y + x - tl.abs(y))
    tl.store(less_ptr + offsets, x < y)


def test_bf16_arithmetic_rounds_after_every_operation():
    x, y = torch.randn(2, 1024).bfloat16()
    z, less = torch.empty_like(x), torch.empty(1024, dtype=torch.bool)
    _arithmetic[(1,)](x, y, z, less, BLOCK=1024)
    assert torch.equal(z, x * y + x - y.abs())
    assert torch.equal(less, x < y)


@triton.jit
def _dot(a_ptr, b_ptr, y_ptr, SIZE: tl.constexpr):
    rows, cols = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    a, b = tl.load(a_ptr + rows * SIZE + cols), tl.load(b_ptr + rows * SIZE + cols)
    tl.store(y_ptr + rows * SIZE + cols, tl.dot(a, b))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_dot_equals_the_fp32_product(dtype):
    # Small integers: products and sums are exact in FP32, whatever their order.
    a, b = torch.randint(-4, 5, (2, 32, 32)).float().to(dtype)
    y = torch.empty(32, 32)
    _dot[(1,)](a, b, y, SIZE=32)
    assert torch.equal(y, a.float() @ b.float())


def test_the_shim_is_still_needed():
    """Should a release of triton convert correctly by itself, this fails: then the shim can shrink."""
    x = torch.tensor([1.0 + 3 * 2.0**-9], dtype=torch.float32)  # 3/4 of the way between two bf16 neighbours
    bits = interpreter_shim._interpreter_convert(x.numpy(), tl.float32, tl.bfloat16, None)
    assert bits.astype(np.int16).item() != x.bfloat16().view(torch.int16).item()
