"""MLA decoding on the paged latent cache on one GPU: microseconds, GB/s or TFLOPS, and the share of the limit.

    python benchmarks/mla_decode.py                             large shapes, and config_16B's steps
    python benchmarks/mla_decode.py --cases 128,16,4096,1 1,128,4096,1      batch, heads, context, query tokens
    python benchmarks/mla_decode.py --tune                      times of the candidate cuts instead

Pages lie in random order. Times are medians over replays of a CUDA graph that goes round copies of the cache, so that
nothing is found in the L2 cache. The limit is that of the bytes (cache, queries and result once, at 3.0 TB/s) or that
of the arithmetic (780 TFLOPS in BF16), whichever is longer. The peer is torch on a cache that lies in order, which
spares it the pages: two batched products around a softmax, or one call of its fused attention, whichever is faster.
FlashMLA's figures were measured once, on another H100 (date below). A cache in FP8 is measured beside one in BF16.
Every result is compared with the reference before it is timed. Writes results/mla_decode.<device>.json; a minute on an
H100.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from common import Row, Samples, Setting, table, versions_of, write
from gpu import BF16, OUT_OF_CACHE, READ, kind, microseconds

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout that this script belongs to

from dsv3 import kernels

NAME = "mla_decode"
C, R, PAGE = 512, 64, 64
SCALE = 192**-0.5
FLASH_MLA = {  # microseconds, H100 80GB HBM3, 2026-11-21
    (1, 128, 4096, 1): 24.5,
    (1, 16, 4096, 1): 26.6,
    (16, 128, 4096, 1): 51.8,
    (128, 128, 4096, 1): 254.9,
    (128, 128, 8192, 1): 511.3,
    (128, 128, 4096, 2): 441.5,
    (128, 16, 4096, 1): 228.0,
    (128, 64, 8192, 1): 434.6,
    (32, 128, 32768, 1): 486.7,
}
CASES = [*FLASH_MLA, (1, 16, 520, 1), (8, 16, 520, 1), (64, 16, 520, 1), (8, 16, 520, 2)]
FP8_CASES = [(1, 16, 4096, 1), (128, 16, 4096, 1), (64, 16, 520, 1), (128, 64, 8192, 1), (128, 128, 4096, 1)]
"""Sequences whose cache holds FP8 codes (dsv3/kernels/latent_bytes.py): 656 bytes a token instead of 1152."""

TUNED = [
    (1, 16, 520, 1), (1, 16, 4096, 1), (8, 16, 520, 1), (64, 16, 520, 1), (128, 16, 4096, 1), (8, 16, 520, 2),
    (64, 16, 4096, 2), (1, 128, 520, 1), (1, 128, 4096, 1), (16, 128, 4096, 1), (128, 128, 4096, 1),
]  # fmt: skip
ALLOWED_ERROR = 2.0**-7  # of the worst row, as in tests/kernels/tolerances.py


@dataclass
class Case:
    """B sequences of L cached tokens, S query tokens each; as many copies of the cache as do not fit into the L2."""

    B: int
    H: int
    L: int
    S: int
    q_latent: torch.Tensor
    q_pe: torch.Tensor
    caches: list[torch.Tensor]
    tables: torch.Tensor
    kv_lens: torch.Tensor
    in_fp8: bool

    @classmethod
    def random(cls, B: int, H: int, L: int, S: int, in_fp8: bool = False) -> "Case":
        pages = -(-L // PAGE)
        shape, make = (B * pages * PAGE, C + R), functools.partial(torch.randn, device="cuda", dtype=torch.bfloat16)
        copies = min(64, max(1, -(-int(OUT_OF_CACHE) // (shape[0] * (656 if in_fp8 else 1152)))))
        q = make(H, B * S, C).transpose(0, 1)
        tables = torch.randperm(B * pages, device="cuda").view(B, pages).to(torch.int32)
        caches = [make(shape) for _ in range(copies)]
        if in_fp8:
            caches = [kernels.pack_latents(cache[:, :C], cache[:, C:]) for cache in caches]
        kv_lens = torch.full((B,), L, dtype=torch.int32, device="cuda")
        return cls(B, H, L, S, q, make(B * S, H, R), caches, tables, kv_lens, in_fp8)

    def __str__(self) -> str:
        queries = f", {self.S} queries" if self.S > 1 else ""
        return f"{self.B} x {self.H} heads x {self.L}" + queries + (" in FP8" if self.in_fp8 else "")

    def args(self, cache: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.q_latent, self.q_pe, cache, self.tables, self.kv_lens

    def ours(self, cache: torch.Tensor) -> torch.Tensor:
        return kernels.latent_attention(*self.args(cache), page_size=PAGE, scale=SCALE)

    def check(self, o_THC: torch.Tensor) -> float:
        """The worst row of a few sequences; of the first cache."""
        chosen = sorted({0, self.B // 2, self.B - 1})
        rows = torch.cat([torch.arange(b * self.S, (b + 1) * self.S) for b in chosen]).cuda()
        cache = kernels.unpack_latents(self.caches[0], C, R) if self.in_fp8 else self.caches[0]
        part = (self.q_latent[rows].float(), self.q_pe[rows].float(), cache, self.tables[chosen])
        expected = kernels.latent_attention(
            *part, self.kv_lens[chosen], page_size=PAGE, scale=SCALE, backend="reference"
        )
        error = float(((o_THC[rows].float() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
        if not error <= ALLOWED_ERROR:
            raise SystemExit(f"{self}: relative error {error:.1e}")
        return error

    @property
    def bytes(self) -> int:
        rows = self.B * self.L * (kernels.row_bytes(C, R) if self.in_fp8 else 2 * (C + R))
        return rows + 2 * self.B * self.S * self.H * (2 * C + R)

    @property
    def flops(self) -> int:
        seen = self.B * sum(self.L - s for s in range(self.S))
        return 2 * self.H * seen * (2 * C + R)

    @property
    def limit(self) -> tuple[str, float, float]:
        """Unit, its amount in one call, and the seconds that the call needs at least."""
        reading, multiplying = self.bytes / READ, self.flops / BF16
        if reading > multiplying:
            return "GB/s", self.bytes / 1e9, reading
        return "TFLOPS", self.flops / 1e12, multiplying


# --- peers ----------------------------------------------------------------------------------------------------------


def batched_products(q_BXc: torch.Tensor, cache_BLc: torch.Tensor, mask_XL: torch.Tensor | None) -> torch.Tensor:
    scores_BXL = torch.bmm(q_BXc, cache_BLc.transpose(1, 2)).float() * SCALE
    if mask_XL is not None:
        scores_BXL = scores_BXL.masked_fill(~mask_XL, float("-inf"))
    return torch.bmm(scores_BXL.softmax(dim=-1).to(q_BXc.dtype), cache_BLc[..., :C])


def fused_attention(q_BXc: torch.Tensor, cache_BLc: torch.Tensor, mask_XL: torch.Tensor | None) -> torch.Tensor:
    q, k, v = (x.unsqueeze(1) for x in (q_BXc, cache_BLc, cache_BLc[..., :C]))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_XL, scale=SCALE).squeeze(1)


def torch_attention(case: Case) -> tuple[str, Samples] | None:
    q_BXc = torch.cat((case.q_latent, case.q_pe), dim=-1).view(case.B, case.S * case.H, C + R)
    caches = [cache[: case.B * case.L].view(case.B, case.L, C + R) for cache in case.caches]
    mask_XL = None
    if case.S > 1:
        mask_SL = torch.ones(case.S, case.L, dtype=torch.bool, device="cuda").tril(case.L - case.S)
        mask_XL = mask_SL.repeat_interleave(case.H, 0)
    found: list[tuple[str, Samples]] = []
    for name, attend in (("torch bmm", batched_products), ("torch sdpa", fused_attention)):
        try:
            calls = [functools.partial(attend, q_BXc, cache, mask_XL) for cache in caches]
            found.append((name, microseconds(calls, replays=5)))
        except (RuntimeError, torch.OutOfMemoryError) as error:
            print(f"  {name}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
    return min(found, key=lambda each: each[1].median, default=None)


def in_bf16(case: Case) -> Samples:
    other = Case.random(case.B, case.H, case.L, case.S)
    return microseconds([functools.partial(other.ours, cache) for cache in other.caches])


# --- measurements ---------------------------------------------------------------------------------------------------


def measure(case: Case, setting: Setting, with_peer: bool) -> Row:
    error = case.check(case.ours(case.caches[0]))
    ours = microseconds([functools.partial(case.ours, cache) for cache in case.caches])
    unit, amount, seconds = case.limit
    peer, peer_samples = None, None
    if with_peer and case.in_fp8:
        peer, peer_samples = "BF16 cache", in_bf16(case)
    elif with_peer:
        peer, peer_samples = torch_attention(case) or (None, None)
    rates = [Samples.of(amount / (t / 1e6) for t in s.values) if s else None for s in (ours, peer_samples)]
    assert rates[0] is not None
    notes: dict[str, object] = {"us": round(ours.median, 2), "limit_us": round(seconds * 1e6, 2), "error": error}
    if peer_samples:
        notes["peer_us"] = round(peer_samples.median, 2)
    flash = FLASH_MLA.get((case.B, case.H, case.L, case.S))
    if flash and not case.in_fp8:
        notes["FlashMLA, 2026-11-21"] = {"us": flash, unit: round(amount / (flash / 1e6), 1)}
    row = setting.row(
        str(case), rates[0], unit, "higher", peer=peer, peer_samples=rates[1], limit=amount / seconds, notes=notes
    )
    print(
        f"{row.case:32} {ours.median:9.2f} µs {row.ours:8,.0f} {unit:6} {row.share:5.0%} of the limit  {notes}",
        file=sys.stderr,
        flush=True,
    )
    return row


Attempt = tuple[str, Callable[[torch.Tensor], torch.Tensor]]


def candidates(case: Case) -> list[Attempt]:
    """Cuts to try, with their names; the first is the plainest."""
    from dsv3.kernels import attention

    rows = case.S * case.H
    if case.in_fp8:
        shapes = [(64, 64, 8, 2, 1), (64, 64, 8, 1, 1), (64, 64, 8, 3, 1), (64, 32, 8, 3, 1)]
        shapes += [(16, 32, 8, 2, 2), (16, 32, 8, 3, 2), (16, 64, 8, 2, 1), (16, 64, 8, 3, 1)] if rows <= 16 else []
    elif rows <= 16:  # query rows, tokens, warps, stages, programs on a multiprocessor
        shapes = [(16, 32, 4, 2, 3), (16, 64, 8, 2, 2), (16, 64, 4, 2, 2), (16, 32, 4, 3, 2), (16, 64, 8, 3, 1)]
        shapes += [(16, 32, 4, 5, 1), (16, 32, 8, 3, 2), (16, 64, 8, 2, 4), (16, 64, 8, 2, 1)]
    elif rows <= 32:
        shapes = [(32, 64, 8, 2, 1), (32, 32, 8, 3, 1), (32, 64, 8, 3, 1), (32, 32, 8, 4, 1), (32, 64, 8, 2, 2)]
        shapes += [(64, 64, 8, 2, 1), (64, 32, 8, 4, 1)]
    else:
        shapes = [(64, 64, 8, 2, 1), (64, 32, 8, 3, 1), (64, 32, 8, 4, 1), (64, 64, 8, 2, 2)]
    found: list[Attempt] = []
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for block_x, block_l, warps, stages, resident in shapes:
        splits = attention.count_splits(case.B, rows, case.L, block_x, block_l, resident * sms)
        shape = attention.Shape(block_x, block_l, splits, warps, stages)
        found.append((f"{shape} resident={resident}", functools.partial(_cut, case, shape)))
    if torch.cuda.get_device_capability()[0] == 9 and not case.in_fp8:
        for waves in (1, 2):
            splits = attention.count_splits(case.B, rows, case.L, 64, 64, waves * sms)
            shape = attention.Shape(64, 64, splits, 16, 1, hopper=True)
            found.append((f"{shape} waves={waves}", functools.partial(_cut, case, shape)))
    return found


def _cut(case: Case, shape: object, cache: torch.Tensor) -> torch.Tensor:
    from dsv3.kernels import attention

    return attention.latent_attention(*case.args(cache), page_size=PAGE, scale=SCALE, shape=shape)  # type: ignore[arg-type]


def tune(case: Case) -> None:
    attempts = candidates(case)
    with ThreadPoolExecutor(12) as pool:  # compiled side by side
        list(pool.map(lambda attempt: _quietly(attempt[1], case.caches[0]), attempts))
    torch.cuda.synchronize()
    timed: list[tuple[float, str]] = []
    for name, call in attempts:
        try:
            case.check(call(case.caches[0]))
            timed.append((microseconds([functools.partial(call, it) for it in case.caches], 7).median, name))
        except (Exception, SystemExit) as error:  # more shared memory than there is; a wrong result
            print(f"  {name}: {type(error).__name__} {str(error)[:100]}", flush=True)
    unit, amount, seconds = case.limit
    print(f"{case}: limit {seconds * 1e6:.1f} µs")
    for us, name in sorted(timed):
        print(f"  {us:9.2f} µs {amount / us * 1e6:8,.0f} {unit} {seconds / us * 1e6:5.0%}  {name}", flush=True)


def _quietly(call: Callable[..., object], *args: object) -> None:
    with contextlib.suppress(Exception):  # reported when it is timed
        call(*args)


def cases(chosen: list[tuple[int, ...]], chosen_in_fp8: list[tuple[int, ...]]) -> Iterator[Case]:
    for in_fp8, every in ((False, chosen), (True, chosen_in_fp8)):
        for sizes in every:
            yield Case.random(*sizes, in_fp8=in_fp8)
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="B,H,L,S", help="batch, heads, context, query tokens")
    parser.add_argument("--fp8", action="store_true", help="only caches in FP8")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available() or not kernels.triton_available():
        parser.error("needs a CUDA device and triton")
    device = torch.cuda.get_device_name()
    setting = Setting(name=NAME, device=device, versions=versions_of("torch", "triton"))
    torch.manual_seed(0)
    chosen: list[tuple[int, ...]] = TUNED if options.tune else CASES
    chosen_in_fp8: list[tuple[int, ...]] = FP8_CASES
    if options.cases:
        chosen = [tuple(map(int, case.split(","))) for case in options.cases]
        chosen_in_fp8 = chosen if options.fp8 else []
    if options.fp8:
        chosen = []
    with torch.inference_mode():
        if options.tune:
            for case in cases(chosen, chosen_in_fp8):
                tune(case)
            return
        rows = [measure(case, setting, with_peer=not options.no_peer) for case in cases(chosen, chosen_in_fp8)]
    print(table(rows))
    print(write(rows, NAME, kind(device)), file=sys.stderr)


if __name__ == "__main__":
    main()
