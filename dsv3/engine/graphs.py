"""The decode step as a CUDA graph: recorded once for each batch size, replayed with other tokens.

Said layer by layer, a step of the 16B model is some five hundred launches, and the host needs longer to ask for them
than the GPU to do them. A graph is asked for once. Everything in it has a fixed address and a fixed shape, so

- tokens, positions, slots, lengths and the page table lie in one buffer of integers that a step fills with one copy;
- a batch is padded up to the next recorded size with copies of its first row, which write the same latent to the same
  slot and visit the same experts: no weight is read for their sake;
- no length is known to the host: ``kernels.latent_attention`` finds its share of the context on the device.

A size is recorded when it is first needed, after one plain run that compiles its kernels. What a replay returns lies in
the graph's memory and holds until the next replay.
"""

from typing import Any

import torch
from torch import Tensor

from dsv3 import kernels
from dsv3.engine.batch import Batch
from dsv3.layers.cache import AttnContext, LatentCache, PagedQueries
from dsv3.layers.mla import MLA
from dsv3.model.transformer import Transformer
from dsv3.probe import taps

MAX_QUERIES = 8
"""Tokens that a sequence may feed in a recorded step: its next one, and drafts."""


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, then in steps of 4, from 64 on of 8, from 128 on of 16: padding is below an eighth, or three rows."""
    sizes, step = [1, 2, 4], 4
    while sizes[-1] < most:
        if sizes[-1] >= 16 * step:
            step *= 2
        sizes.append(sizes[-1] + step)
    return [size for size in sizes if size < most] + [most]


class _Inputs:
    """One buffer of int32 on the device, its views by name, and its twin in pinned memory."""

    def __init__(self, B: int, S: int, pages: int, device: torch.device) -> None:
        T = B * S
        sizes = {"tokens": T, "positions": T, "slots": T, "kv_lens": B, "page_table": B * pages}
        self.host = torch.zeros(sum(sizes.values()), dtype=torch.int32, pin_memory=device.type == "cuda")
        self.device = torch.zeros_like(self.host, device=device)
        self.tokens_T, self.positions_T, self.slots_T, self.kv_lens_B, table = self.device.split(list(sizes.values()))
        self.page_table_BP = table.view(B, pages)
        self.filled = [view.numpy() for view in self.host.split(list(sizes.values()))]
        self.S, self.pages = S, pages

    def fill(self, batch: Batch, page_size: int) -> None:
        """Write a batch's numbers; rows behind it repeat its first sequence."""
        tokens, positions, slots, kv_lens, table = self.filled
        S, n = self.S, len(batch.seqs)
        tokens[: n * S] = batch.tokens
        table = table.reshape(-1, self.pages)
        for b, (pages, start) in enumerate(zip(batch.pages, batch.starts)):
            table[b, : len(pages)] = pages
            kv_lens[b] = start + S
            for s in range(S):
                at = start + s
                positions[b * S + s] = at
                slots[b * S + s] = pages[at // page_size] * page_size + at % page_size
        if n < len(kv_lens):
            for values in (tokens, positions, slots):
                rows = values.reshape(-1, S)
                rows[n:] = rows[0]
            kv_lens[n:] = kv_lens[0]
            table[n:] = table[0]
        self.device.copy_(self.host, non_blocking=True)


class _Recorded:
    """One size's graph with its inputs and outputs."""

    def __init__(self, model: Transformer, cache: LatentCache, B: int, S: int, pages: int, batch: Batch) -> None:
        self.inputs = _Inputs(B, S, pages, cache.storage.device)
        self.page_size = cache.page_size
        self.inputs.fill(batch, self.page_size)
        paged = PagedQueries(self.inputs.page_table_BP, self.inputs.kv_lens_B)
        self.ctx = AttnContext(cache, self.inputs.positions_T, self.inputs.slots_T, (S,) * B, (), (), paged)
        self.model = model
        self.graph: torch.cuda.CUDAGraph | None = None
        self.next_T = torch.zeros(B * S, dtype=torch.int32, device=cache.storage.device)
        self.draft_graph: torch.cuda.CUDAGraph | None = None

    def record(self, pool: Any) -> None:
        self.outputs = self._step()  # compiles, and lets libraries take their workspace
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.outputs = self._step()

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        h_TD = self.model.hidden(self.inputs.tokens_T, self.ctx)
        logits_TV = self.model.logits(h_TD)
        return h_TD, logits_TV, logits_TV.argmax(-1)

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.inputs.fill(batch, self.page_size)
        assert self.graph is not None
        self.graph.replay()
        n = len(batch.tokens)
        h_TD, logits_TV, likeliest_T = self.outputs
        batch.likeliest_M = likeliest_T[:n]
        return h_TD[:n], logits_TV[:n]

    def draft(self, next_tokens: list[int], pool: Any) -> Tensor:
        """The MTP module over the positions of the step just replayed: the likeliest token behind each of them."""
        next_T = torch.tensor(next_tokens, dtype=torch.int32)
        self.next_T[: len(next_tokens)].copy_(next_T.pin_memory(), non_blocking=True)
        if self.draft_graph is None:
            self._draft()
            torch.cuda.synchronize()
            self.draft_graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.draft_graph, pool=pool):
                self.drafts_T = self._draft()
        self.draft_graph.replay()
        return self.drafts_T[: len(next_tokens)]

    def _draft(self) -> Tensor:
        h_TD = self.model.predict_next(0, self.outputs[0], self.next_T, self.ctx)
        return self.model.logits(h_TD).argmax(-1)


class DecodeGraphs:
    """Runs steps in which every sequence feeds the same few tokens and is sampled from; ``fits`` says which.

    Nobody who listens to the model's taps is heard in a replay, so such steps do not come here. Weights may be changed
    in place, but not replaced: a graph reads them where they lay.
    """

    def __init__(self, model: Transformer, cache: LatentCache, *, max_batch_size: int, max_seq_len: int) -> None:
        self.model, self.cache = model, cache
        for module in model.modules():
            if isinstance(module, MLA):
                module.join()
        self.sizes = batch_sizes(max_batch_size)
        self.pages = -(-max_seq_len // cache.page_size)
        self.taps = [tap for _, tap in taps(model)]
        self.recorded: dict[tuple[int, int], _Recorded] = {}
        self.pool: Any = None
        self.last: tuple[Batch, _Recorded] | None = None

    @staticmethod
    def supports(model: Transformer, cache: LatentCache) -> bool:
        """A whole Transformer in BF16 or FP8 on a GPU that has the kernels."""
        if not isinstance(model, Transformer) or model.embed.weight.dtype != torch.bfloat16:
            return False
        whole = model.embed.weight.shape[0] == model.config.vocab_size
        aligned = model.config.latent_dim * cache.storage.element_size() % kernels.ROW_BYTES == 0
        return whole and aligned and cache.storage.is_cuda and kernels.has_decode_kernels(cache.storage.device)

    def fits(self, batch: Batch) -> bool:
        S = batch.q_lens[0]
        return (
            S <= MAX_QUERIES
            and batch.counts == batch.q_lens
            and batch.q_lens[-1] == S  # they are sorted
            and len(batch.seqs) <= self.sizes[-1]
            and not any(tap.listeners for tap in self.taps)
        )

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """h_TD and logits_TV of the batch's tokens, in memory that the next replay writes over."""
        S, n = batch.q_lens[0], len(batch.seqs)
        B = next(size for size in self.sizes if size >= n)
        step = self.recorded.get((B, S))
        if step is None:
            step = _Recorded(self.model, self.cache, B, S, self.pages, batch)
            step.record(self.pool)
            assert step.graph is not None
            self.pool = self.pool or step.graph.pool()
            self.recorded[B, S] = step
        self.last = batch, step
        return step.run(batch)

    def draft(self, batch: Batch, next_tokens: list[int]) -> Tensor | None:
        """The likeliest token behind each of the batch's tokens by the first MTP module, given the token after each.

        None where the batch was not the last one that ran here.
        """
        if self.last is None or self.last[0] is not batch or any(tap.listeners for tap in self.taps):
            return None
        return self.last[1].draft(next_tokens, self.pool)
