"""How a matrix product is cut into tiles, and which cut each shape gets: a plain function of M, N and K.

**Tiles.** The output (M, N) is covered by rectangles of block_m x block_n, and each is the work of one program. A tall
and wide tile reuses what it loads: per step of 128 along K it reads (block_m + block_n) * 128 bytes for block_m *
block_n * 128 products. A small tile makes many programs, which is what a decode step needs: with one row there is
nothing to reuse, and every SM must read its share of the weight.

**Waves.** A GPU works on as many tiles at a time as it has room for programs, here `programs` = SMs * per_sm. 272 tiles
on 132 SMs are two full waves and 8 tiles more, for which 124 SMs would idle: 2.06 waves' work in the time of 3. So the
tiles of the last, partial wave (the *tail*) are cut along K as well, into as many splits as fill the wave. Each split
leaves its FP32 sum in a scratch buffer, and a second kernel adds them in their order: no float is ever added
atomically, so results repeat bit by bit. Where there are fewer tiles than programs, all of them are tail: that is
split-K for small M.

    items      0 1 2 ... full-1 | full, full+1, ...
    work       one whole tile   | split 0 of the first tail tile, split 1 of it, ..., split 0 of the next

**The order of tiles** decides what the L2 cache can share. Tiles that run at the same time should form a compact
patch of the output, so they are numbered down a strip of `group` rows of tiles before going right.

**The choice** is measured once on a GPU (benchmarks/tune_gemm.py) and committed in tiles.json; a shape that is not
there gets a rule of thumb. Nothing is measured at run time: a first call is not slow, and a decode step can be
captured in a CUDA graph.
"""

# pyright: basic
# pyright: reportArgumentType=false, reportCallIssue=false

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import triton
import triton.language as tl

from dsv3.kernels.reference import ceil_div

Kernel = Literal["matvec", "tile", "persistent", "hopper", "torch"]

MIN_STEPS = 4
"""A split takes at least this many steps along K: below that, writing and adding its sum costs more than it saves."""

INTERPRETED_SMS = 2
"""Where there is no GPU: small, so that small tests have full waves and tails."""


@dataclass(frozen=True)
class Tile:
    """How to compute a product.

    kernel: `matvec` (up to four rows), `tile` (pointers; any shape and GPU), `persistent` (TMA), `hopper` (TMA and
    specialised warps, in Gluon), `torch` (leave it to the library).
    block_k: the step along K; FP8 has no choice but the 128 of a scale block.
    group: rows of tiles in a strip.
    swap: compute the transposed tile, with the weight's rows as the tensor core's rows: those come in 64s, while its
    columns may be as few as the tokens of a decode step.
    per_sm: programs that share an SM, for the cut of the tail; 0 leaves it uncut.
    """

    kernel: Kernel
    block_m: int
    block_n: int
    warps: int
    stages: int
    per_sm: int = 1
    swap: bool = False
    block_k: int = 128
    group: int = 8


class Schedule(NamedTuple):
    """The items of a product, as the kernels count them; see above."""

    full: int
    tail: int
    splits: int

    @property
    def items(self) -> int:
        return self.full + self.tail * self.splits


def schedule(m: int, n: int, k: int, tile: Tile, sms: int) -> Schedule:
    tiles = ceil_div(m, tile.block_m) * ceil_div(n, tile.block_n)
    programs = sms * tile.per_sm if tile.kernel != "persistent" else 0
    tail = tiles % programs if programs else 0
    splits = min(programs // tail, ceil_div(k, tile.block_k) // MIN_STEPS) if tail else 1
    return Schedule(tiles - tail, tail, splits) if splits > 1 else Schedule(tiles, 0, 1)


def sm_count(device: torch.device) -> int:
    return _sm_count(device.index or 0) if device.type == "cuda" else INTERPRETED_SMS


@functools.cache
def _sm_count(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


@triton.jit
def place(tile, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of a tile: down a strip of GROUP rows of tiles, then right."""
    tiles_m, tiles_n = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    strip = tile // (GROUP * tiles_n)
    height = min(tiles_m - strip * GROUP, GROUP)
    inside = tile - strip * GROUP * tiles_n
    return (strip * GROUP + inside % height) * BLOCK_M, inside // height * BLOCK_N


@triton.jit
def work(item, steps, full, splits):
    """An item's tile, its steps along K, and its slot in the scratch buffer (below 0: a whole tile, which has none)."""
    slot = item - full
    part = slot % splits
    tile = tl.where(slot < 0, item, full + slot // splits)
    first = tl.where(slot < 0, 0, part * steps // splits)
    end = tl.where(slot < 0, steps, (part + 1) * steps // splits)
    return tile, first, end, slot


# --- the choice -----------------------------------------------------------------------------------------------------

Op = Literal["fp8_gemm", "fp8_linear", "linear"]


MAX_ROWS = 4
"""Rows that a matrix-vector product takes along: each costs a multiplication per weight on the ordinary cores, and
those run out."""


def choose(op: Op, m: int, n: int, k: int) -> Tile:
    """The committed tile of the shape: the one measured for its N and K at the next larger M, or a rule of thumb."""
    measured = _table().get((op, n, k))
    tile = next((tile for up_to, tile in measured or () if m <= up_to), measured[-1][1] if measured else None)
    if tile is not None and (tile.kernel != "matvec" or m <= MAX_ROWS):
        return tile
    return _bf16_rule(m, n, k) if op == "linear" else _fp8_rule(m, n, k)


@functools.cache
def _table() -> dict[tuple[str, int, int], list[tuple[int, Tile]]]:
    """tiles.json: rows of op, n, k, m (the tile serves up to that many rows) and the fields of a Tile."""
    table: dict[tuple[str, int, int], list[tuple[int, Tile]]] = {}
    for row in json.loads(Path(__file__).with_name("tiles.json").read_text(encoding="utf-8")):
        tile = Tile(**{field.name: row[field.name] for field in dataclasses.fields(Tile) if field.name in row})
        table.setdefault((row["op"], row["n"], row["k"]), []).append((row["m"], tile))
    for rows in table.values():
        rows.sort(key=lambda row: row[0])
    return table


def _fp8_rule(m: int, n: int, k: int) -> Tile:
    if m == 1:
        return _matvec_rule(n, k, element_size=1)
    if m <= 32:
        return Tile("tile", 16 if m <= 16 else 32, 64, warps=4, stages=5, per_sm=3, swap=True)
    if m <= 64:
        return Tile("tile", 64, 128 if n >= 4096 else 64, warps=4, stages=4, per_sm=2)
    return Tile("persistent", 128, 128, warps=8, stages=4)


def _bf16_rule(m: int, n: int, k: int) -> Tile:
    """One row was always faster as a matrix-vector product; with more of them torch's choice is good."""
    return _matvec_rule(n, k, element_size=2) if m == 1 else Tile("torch", 0, 0, 0, 0)


def _matvec_rule(n: int, k: int, element_size: int) -> Tile:
    """Few rows a program where there are few, so that every SM has several programs; about 8 KB a load."""
    rows = 8 if n >= 8192 else 4 if n >= 2048 else 2
    columns = 8192 // rows // element_size
    return Tile("matvec", 1, rows, warps=4, stages=1, block_k=max(256, min(columns, triton.next_power_of_2(k))))
