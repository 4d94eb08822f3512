"""Runs a warp-specialised Gluon kernel in Python, a thread for each partition: for its barriers and its indices.

Triton's interpreter does not know Gluon. This is a stand-in for what `dense_hopper.py` and `attention_hopper.py` use,
and no more: the kernel's own Python functions run with other globals, in which `gl`, `tma` and `mbarrier` are the
classes below. What a thread waits for that never happens is a `Deadlock` here, where a GPU would hang. A multiplication
happens as late as it may, when it is waited for, and a copy by TMA as early as it may: a buffer that is given back too
soon shows as a wrong result.
"""

import itertools
import random
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch

PATIENCE = 20.0
"""Seconds that a partition may wait for the others before the test calls it a deadlock."""

HESITATION = 0.02
"""Seconds that one multiplication in ten takes, by chance: partitions overtake each other where no barrier forbids it.
"""


class Deadlock(Exception):
    pass


class Barrier:
    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.phase = self.count = self.arrived = self.bytes = 0

    def update(self, arrivals: int = 0, expected_bytes: int = 0) -> None:
        with self.condition:
            self.arrived += arrivals
            self.bytes += expected_bytes
            assert self.arrived <= self.count, "more arrivals than the barrier was made for"
            if self.arrived == self.count and self.bytes == 0:
                self.phase, self.arrived = self.phase + 1, 0
                self.condition.notify_all()

    def wait(self, parity: int) -> None:
        with self.condition:
            if not self.condition.wait_for(lambda: self.phase % 2 != parity, PATIENCE):
                raise Deadlock(f"nobody completed phase {self.phase} (parity {parity})")


class Shared:
    """A tensor in shared memory, filled with NaN; or one barrier for each index."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def index(self, i: int) -> Any:
        at = self.values[int(i)]
        return at if isinstance(at, Barrier) else Shared(at)

    def slice(self, start: int, length: int) -> "Shared":
        return Shared(self.values[start : start + length])

    def permute(self, order: Sequence[int]) -> "Shared":
        return Shared(self.values.permute(*order))

    def store(self, values: torch.Tensor) -> None:
        self.values.copy_(values)

    def load(self, layout: Any) -> torch.Tensor:
        return self.values.clone()

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype


class Tiles:
    """A tensor descriptor: zeros beyond the edges on the way in, nothing beyond them on the way out."""

    layout = None
    dtype = torch.float32

    def __init__(self, tensor: torch.Tensor, shape: Sequence[int]) -> None:
        self.tensor, self.shape = tensor, shape
        self.block_type = types.SimpleNamespace(nbytes=shape[0] * shape[1])

    def window(self, at: Sequence[int]) -> tuple[torch.Tensor, tuple[slice, slice]]:
        inside = self.tensor[at[0] : at[0] + self.shape[0], at[1] : at[1] + self.shape[1]]
        return inside, (slice(inside.shape[0]), slice(inside.shape[1]))


class Pointer:
    def __init__(self, memory: torch.Tensor, offset: Any = 0) -> None:
        self.memory, self.offset = memory.view(-1), offset

    def __add__(self, offset: Any) -> "Pointer":
        return Pointer(self.memory, self.offset + offset)

    def __getitem__(self, key: Any) -> "Pointer":
        return Pointer(self.memory, self.offset[key])

    @property
    def dtype(self) -> Any:
        return types.SimpleNamespace(element_ty=self.memory.dtype)


class Registers(torch.Tensor):
    """A tensor of which `+=` makes another one, as in Gluon."""

    def __iadd__(self, other: Any) -> torch.Tensor:  # type: ignore[override]
        return self + other


def _minimum(a: Any, b: Any) -> Any:
    return torch.clamp(a, max=b) if isinstance(a, torch.Tensor) else min(a, b)


def _load(at: Pointer, mask: Any = True, other: float = 0.0) -> torch.Tensor:
    if mask is True:
        return at.memory[at.offset]
    mask = mask.expand(at.offset.shape)
    values = torch.full(at.offset.shape, other, dtype=at.memory.dtype)
    values[mask] = at.memory[at.offset[mask]]
    return values


def _store(at: Pointer, values: torch.Tensor, mask: Any = True) -> None:
    if mask is True:
        at.memory[at.offset] = values
    else:
        mask = mask.expand(at.offset.shape)
        at.memory[at.offset[mask]] = values[mask]


def _where(condition: Any, a: Any, b: Any) -> Any:
    if isinstance(condition, torch.Tensor) and condition.dim():
        return torch.where(condition, a, b)
    return a if condition else b


def _multiply(a: Any, b: Shared, product: Any, use_acc: bool = True, is_async: bool = True) -> Callable[[], Any]:
    """Reads its operands when it is called, which is when somebody waits for it."""

    def result() -> Any:
        if random.random() < 0.1:
            time.sleep(HESITATION)
        made = (a.values if isinstance(a, Shared) else a) @ b.values
        return made if not use_acc else made + (product() if callable(product) else product)

    return result


def _load_tile(tiles: Tiles, at: Sequence[int], barrier: Barrier, buffer: Shared) -> None:
    inside, where = tiles.window(at)
    buffer.values.zero_()
    buffer.values[where] = inside
    barrier.update(expected_bytes=-tiles.block_type.nbytes)


def _store_tile(tiles: Tiles, at: Sequence[int], buffer: Shared) -> None:
    inside, where = tiles.window(at)
    inside.copy_(buffer.values[where])


def _init(barrier: Barrier, count: int) -> None:
    barrier.count = count


def _allocate(dtype: Any, shape: Sequence[int], layout: Any) -> Shared:
    barriers = dtype == torch.int64
    return Shared([Barrier() for _ in range(shape[0])] if barriers else torch.full(tuple(shape), float("nan")))


def _run_partitions(partitions: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]], **registers: Any) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        try:
            function(*args)
        except BaseException as error:  # of another thread: carried to the one that waits
            errors.append(error)

    threads = [threading.Thread(target=run, args=each, daemon=True) for each in partitions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def run(kernel: Any, helpers: Sequence[Any], grid: int | Sequence[int], args: Sequence[Any], **constants: Any) -> None:
    """`kernel[grid](*args, **constants)`; `helpers` are the triton functions that its module imports."""
    sizes = (grid,) if isinstance(grid, int) else tuple(grid)
    program = types.SimpleNamespace(ids=())
    language = types.SimpleNamespace(
        float32=torch.float32, int32=torch.int32, int64=torch.int64, static_range=range,
        allocate_shared_memory=_allocate, cdiv=lambda a, b: -(-a // b), minimum=_minimum, where=_where,
        maximum=lambda a, b: torch.clamp(a, min=b) if isinstance(a, torch.Tensor) else max(a, b),
        arange=lambda start, end, layout: torch.arange(start, end),
        zeros=lambda shape, *_: torch.zeros(shape).as_subclass(Registers),
        full=lambda shape, value, *_: torch.full(shape, value),
        max=lambda x, axis: x.amax(axis), sum=lambda x, axis: x.sum(axis), exp2=torch.exp2, log2=torch.log2,
        load=_load, store=_store, warp_specialize=_run_partitions,
        program_id=lambda axis: torch.tensor(program.ids[axis]), num_programs=lambda axis: sizes[axis],
        inline_asm_elementwise=lambda asm, constraints, values, **_: values[0],
        SliceLayout=lambda *_: None, NVMMADistributedLayout=lambda *_, **__: None, constexpr=None,
        DotOperandLayout=lambda *_, **__: None, BlockedLayout=lambda *_: None,
        SwizzledSharedLayout=lambda *_, **__: None,
    )  # fmt: skip
    names = {
        "gl": language,
        "tl": language,
        "min": min,
        "range": range,
        "fence_async_shared": lambda: None,
        "tma": types.SimpleNamespace(
            async_copy_global_to_shared=_load_tile, async_copy_shared_to_global=_store_tile,
            store_wait=lambda left: None,
        ),
        "mbarrier": types.SimpleNamespace(
            init=_init, MBarrierLayout=lambda: None, wait=lambda barrier, parity: barrier.wait(int(parity)),
            expect=lambda barrier, n_bytes: barrier.update(1, n_bytes), arrive=lambda barrier: barrier.update(1),
        ),
        "warpgroup_mma": _multiply,
        "warpgroup_mma_wait": lambda outstanding, products: products[0](),
    }  # fmt: skip
    module = kernel.fn.__globals__
    for name, value in module.items():
        if type(value).__name__ == "constexpr":
            names[name] = value.value
        elif hasattr(value, "fn") and value not in helpers:
            names[name] = types.FunctionType(value.fn.__code__, names)
    for helper in helpers:
        names[helper.fn.__name__] = types.FunctionType(helper.fn.__code__, names)
    function = types.FunctionType(kernel.fn.__code__, names)
    for ids in itertools.product(*map(range, sizes)):
        program.ids = ids
        function(*args, **constants)
