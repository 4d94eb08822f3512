"""Does an answer equal what the specification says, and if not, where and how?

Types and shapes come first: a sentence about a shape helps more than numbers that were never comparable.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dsv3.config import ModelConfig


@dataclass(frozen=True)
class Difference:
    """kind: a key of the catalogue's messages; fields: what its sentence needs."""

    kind: str
    fields: dict[str, object] = field(default_factory=dict[str, object])


def difference(answer: Any, expected: Any, tolerance: float, at: str = "") -> Difference | None:
    """None where they agree. Numbers of Python, numpy and torch are the same to it, float types are too."""
    if answer is None:
        return Difference("is_none", {"where": at})
    if isinstance(expected, Tensor):
        return _tensors(answer, expected, tolerance, at)
    if isinstance(expected, (list, tuple)):
        return _sequences(answer, expected, tolerance, at)
    if isinstance(expected, nn.Module):  # what it consists of is for the exercise's canonical form to say
        return None if isinstance(answer, nn.Module) else _wrong_type(answer, "torch.nn.Module", at)
    if isinstance(expected, (bool, str)):
        if type(answer) is not type(expected):
            return _wrong_type(answer, type(expected).__name__, at)
        return None if answer == expected else Difference("value", _fields(at, answer, expected))
    return _numbers(answer, expected, tolerance, at)


def _numbers(answer: Any, expected: float, tolerance: float, at: str) -> Difference | None:
    value = answer
    if isinstance(answer, Tensor) and answer.numel() == 1:
        value = answer.detach().item()
    elif hasattr(answer, "item") and not isinstance(answer, Tensor):  # numpy's scalars
        value = answer.item()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _wrong_type(answer, "number", at)
    if value == expected or (math.isnan(value) and math.isnan(expected)):
        return None
    # Whole numbers are counted, not measured: close is wrong.
    if isinstance(expected, float) and math.isclose(value, expected, rel_tol=tolerance, abs_tol=tolerance * 1e-3):
        return None
    kind = "nan" if isinstance(value, float) and not math.isfinite(value) else "value"
    return Difference(kind, _fields(at, value, expected))


def _sequences(answer: Any, expected: Sequence[Any], tolerance: float, at: str) -> Difference | None:
    if isinstance(answer, Tensor) and all(isinstance(x, (int, float)) for x in expected):
        answer = answer.tolist()
    if not isinstance(answer, (list, tuple)):
        return _wrong_type(answer, f"{type(expected).__name__} ({len(expected)})", at)
    if len(answer) != len(expected):
        fields = _fields(at, show(answer), show(expected))
        return Difference("length", fields | {"found": len(answer), "wanted": len(expected)})
    for i, (a, e) in enumerate(zip(answer, expected, strict=True)):
        if found := difference(a, e, tolerance, f"{at}[{i}]"):
            return found
    return None


def _tensors(answer: Any, expected: Tensor, tolerance: float, at: str) -> Difference | None:
    if not isinstance(answer, Tensor):
        return _wrong_type(answer, f"Tensor {tuple(expected.shape)}", at)
    if answer.shape != expected.shape:
        return Difference("shape", {"where": at, "found": tuple(answer.shape), "wanted": tuple(expected.shape)})
    wanted_kind, found_kind = _kind(expected), _kind(answer)
    if found_kind != wanted_kind:
        return Difference("dtype", {"where": at, "found": answer.dtype, "wanted": expected.dtype})
    got, want = answer.detach().double(), expected.detach().double()
    # A sum that nearly cancels is as uncertain as its terms: small values are held to the size of the whole tensor.
    size_of_all = max(1e-2, 1e-3 * float(want.abs().max())) if want.numel() and found_kind == "float" else 0.0
    bound = tolerance * want.abs().clamp(min=size_of_all)
    wrong = ~((got == want) | (got.isnan() & want.isnan()) | ((got - want).abs() <= bound))
    if not bool(wrong.any()):
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    fields = _fields(f"{at}[{', '.join(map(str, index))}]", _number(got[index]), _number(want[index]))
    count = {"count": int(wrong.sum()), "total": wrong.numel(), "gap": f"{float((got - want).abs().max()):.4g}"}
    return Difference("value_in" if bool(torch.isfinite(got[wrong]).all()) else "nan", fields | count)


def _kind(x: Tensor) -> str:
    if x.dtype == torch.float8_e4m3fn:
        return "e4m3"
    if x.dtype == torch.bool:
        return "bool"
    return "float" if x.is_floating_point() else "complex" if x.is_complex() else "int"


def _wrong_type(answer: Any, wanted: str, at: str) -> Difference:
    found = f"Tensor {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
    return Difference("type", {"where": at, "found": found, "wanted": wanted})


def _fields(at: str, answer: Any, expected: Any) -> dict[str, object]:
    return {"where": at, "yours": show(answer), "expected": show(expected)}


def _number(x: Tensor) -> float:
    return float(x)


# --- arguments: copied, watched, shown ------------------------------------------------------------------------------


def copied(value: Any) -> Any:
    """Tensors, lists and tuples anew; modules and records are handed on."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(copied(x) for x in value)
    return value


def _state(value: Any) -> list[Tensor]:
    if isinstance(value, nn.Module):
        return [x for x in value.state_dict().values() if isinstance(x, Tensor)]
    return [value] if isinstance(value, Tensor) else []


def watch(arguments: Sequence[Any]) -> Callable[[], int | None]:
    """A function that says which argument has been changed since, if any."""
    before = [(copied(x), [t.clone() for t in _state(x)]) for x in arguments]

    def changed() -> int | None:
        for i, (argument, (copy, state)) in enumerate(zip(arguments, before)):
            if isinstance(argument, (list, tuple)) and repr(argument) != repr(copy):
                return i
            after = _state(argument)
            if len(after) != len(state) or any(a.shape != b.shape for a, b in zip(after, state)):
                return i
            if any(not torch.equal(a, b) for a, b in zip(map(_comparable, after), map(_comparable, state))):
                return i
        return None

    return changed


def _comparable(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x.nan_to_num() if x.is_floating_point() else x


SHOWN_ELEMENTS = 24
"""A tensor with more elements than this is described by its shape."""


def size(arguments: Sequence[Any]) -> float:
    """How much there is to read. An empty tensor explains nothing, so it comes last."""
    return sum((x.numel() or math.inf) if isinstance(x, Tensor) else 1 for x in arguments)


def show(value: Any) -> str:
    """In one line, short enough for a person."""
    if isinstance(value, Tensor):
        if value.numel() > SHOWN_ELEMENTS:
            return f"<{value.dtype} {tuple(value.shape)}>".replace("torch.", "")
        return str(_rounded(value.detach().float().tolist() if value.is_floating_point() else value.tolist()))
    if isinstance(value, ModelConfig):
        plain = ModelConfig().to_dict()
        changed = [f"{k}={v!r}" for k, v in value.to_dict().items() if v != plain[k]]
        return f"ModelConfig({', '.join(changed)})"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    line = str(_rounded(value))
    return line if len(line) <= 160 else f"{line[:157]}..."


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, complex):
        return complex(_rounded(value.real), _rounded(value.imag))
    if isinstance(value, (list, tuple)):
        return [_rounded(x) for x in value]
    return value
