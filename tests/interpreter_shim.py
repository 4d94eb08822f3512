"""Make triton's interpreter compute what a GPU computes, for bf16 and fp8.

With TRITON_INTERPRET=1 kernels run on the CPU, in numpy. numpy has neither bfloat16 nor float8, so the interpreter
keeps such values as raw integers and is silently wrong with them (seen in triton 3.6 to 3.9): it does arithmetic on
the integers, truncates fp32 -> bf16, mis-rounds about 2% of fp32 -> e4m3 (it rounds ties away from zero), and passes
raw bf16 to `tl.dot`. torch does have these types. `install()` therefore routes conversions through torch casts, and
arithmetic and dots through FP32.

It must run before a kernel is launched, and TRITON_INTERPRET must be set before triton is first imported, as triton's
own library (`tl.max`, `tl.cdiv`) is bound to the interpreter or the compiler at import. Tests therefore use it in a
process of their own.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
import triton.runtime.interpreter as interpreter

Array = npt.NDArray[Any]

_TORCH_DTYPE = {
    tl.bfloat16: torch.bfloat16,
    tl.float16: torch.float16,
    tl.float32: torch.float32,
    tl.float64: torch.float64,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5b16: torch.float8_e5m2fnuz,
}
_INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SATURATES_AT = {tl.float8e4nv: 448.0, tl.float8e5: 57344.0}
"""The GPU's conversions to these types are `satfinite`: what is too large becomes the largest value, and NaN stays."""

_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)

_interpreter_convert = interpreter._convert_float
_interpreter_binary = interpreter.InterpreterBuilder.binary_op
_interpreter_unary = interpreter.InterpreterBuilder.unary_op
_interpreter_dot = interpreter.InterpreterBuilder.create_dot
_interpreter_patch_tensor = interpreter._patch_lang_tensor


def install() -> None:
    """Patch `triton.runtime.interpreter`; a second call changes nothing."""
    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.binary_op = _binary_op
    interpreter.InterpreterBuilder.unary_op = _unary_op
    interpreter.InterpreterBuilder.create_dot = _create_dot
    interpreter._patch_lang_tensor = _patch_tensor


def convert_float(data: Array, source: tl.dtype, target: tl.dtype, rounding_mode: Any) -> Array:
    """Bits of `data`, numbers of type `source`, as bits of type `target` (an unsigned integer array of the same shape).

    Rounds to nearest, ties to even, as torch and the GPU do. Round-towards-zero is left to the interpreter, which has
    it right."""
    towards_zero = rounding_mode == interpreter._ir.ROUNDING_MODE.RTZ
    if source not in _TORCH_DTYPE or target not in _TORCH_DTYPE or towards_zero:
        return _interpreter_convert(data, source, target, rounding_mode)
    bits = torch.from_numpy(np.ascontiguousarray(data)).view(_INTEGER_OF_SIZE[data.itemsize])
    numbers = bits.view(_TORCH_DTYPE[source])
    if (limit := _SATURATES_AT.get(target)) is not None:
        numbers = numbers.float().clamp(-limit, limit)
    numbers = numbers.to(_TORCH_DTYPE[target])
    size = numbers.element_size()
    return numbers.view(_INTEGER_OF_SIZE[size]).numpy().view(f"uint{8 * size}").reshape(data.shape)


def _to_float32(handle: interpreter.TensorHandle) -> Array:
    return convert_float(handle.data, handle.dtype.scalar, tl.float32, None).view(np.float32)


def _from_float32(numbers: Array) -> interpreter.TensorHandle:
    bits = convert_float(np.asarray(numbers, np.float32), tl.float32, tl.bfloat16, None)
    return interpreter.TensorHandle(bits, tl.bfloat16)


def _binary_op(self: Any, lhs: Any, rhs: Any, op: Callable[..., Any]) -> Any:
    """bf16 operands: FP32 arithmetic, rounded once. Bitwise operations mean the bits, and those the interpreter has."""
    if lhs.dtype.scalar != tl.bfloat16 or op in _BITWISE:
        return _interpreter_binary(self, lhs, rhs, op)
    result = op(_to_float32(lhs), _to_float32(rhs))
    return interpreter.TensorHandle(result, tl.int1) if result.dtype == np.bool_ else _from_float32(result)


def _unary_op(self: Any, operand: Any, op: Callable[..., Any]) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return _interpreter_unary(self, operand, op)
    return _from_float32(op(_to_float32(operand)))


def _create_dot(self: Any, a: Any, b: Any, accumulator: Any, *options: Any) -> Any:
    """16- and 8-bit operands: products and sums in FP32, in which every product is exact."""
    if not a.dtype.scalar.is_floating() or a.dtype.primitive_bitwidth > 16:
        return _interpreter_dot(self, a, b, accumulator, *options)
    result = np.matmul(_to_float32(a), _to_float32(b)) + accumulator.data
    return interpreter.TensorHandle(result.astype(accumulator.data.dtype), accumulator.dtype.scalar)


def _patch_tensor(tensor: Any, *scope: Any) -> None:
    """Loop bounds computed at run time: triton 3.6 calls int() on an array of one element, which numpy 2.4 refuses."""
    _interpreter_patch_tensor(tensor, *scope)  # records what to restore after the launch
    tensor.__index__ = lambda self: self.handle.data.item()
