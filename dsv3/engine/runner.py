"""The only place that calls the model: layer by layer, as one flat function on a CPU, as a recorded graph on a GPU."""

from torch import Tensor

from dsv3.engine.batch import Batch
from dsv3.engine.graphs import DecodeGraphs
from dsv3.layers.cache import AttnContext, LatentCache
from dsv3.model.lean import LeanStep
from dsv3.model.transformer import Transformer


class Runner:
    """A model and its latent cache. Call inside ``torch.inference_mode()``; nothing here waits for the device."""

    def __init__(
        self, model: Transformer, cache: LatentCache, *, max_batch_size: int = 1, max_seq_len: int | None = None
    ) -> None:
        """Recorded steps hold up to ``max_batch_size`` sequences of ``max_seq_len`` (None: what the cache holds)."""
        self.model = model
        self.cache = cache
        self.lean = LeanStep(model) if LeanStep.supports(model) else None
        self.graphs: DecodeGraphs | None = None
        if DecodeGraphs.supports(model, cache):
            longest = max_seq_len or cache.n_pages * cache.page_size
            self.graphs = DecodeGraphs(model, cache, max_batch_size=max_batch_size, max_seq_len=longest)

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states h_TD of every fed token, and FP32 logits_MV of the batch's ``logit_rows``."""
        if self.graphs is not None and self.graphs.fits(batch):
            return self.graphs.run(batch)
        h_TD = self._way(batch.ctx).hidden(batch.tokens_T, batch.ctx)
        rows = batch.logit_rows
        return h_TD, self.logits(h_TD if rows is None else h_TD.index_select(0, rows))

    def draft(self, h_TD: Tensor, next_tokens_T: Tensor, ctx: AttnContext) -> Tensor:
        """The first MTP module over positions i, with h_i and token i + 1; it writes its own layer of the cache."""
        return self._way(ctx).predict_next(0, h_TD, next_tokens_T, ctx)

    def recorded_draft(self, batch: Batch, next_tokens: list[int]) -> Tensor | None:
        """The likeliest token behind each of the batch's tokens, where the step before was a recorded one; or None."""
        return self.graphs.draft(batch, next_tokens) if self.graphs is not None else None

    def logits(self, h_MD: Tensor) -> Tensor:
        """The shared head on rows of what ``run`` or ``draft`` returned."""
        if self.lean is not None and self.lean.fits_rows(len(h_MD)):
            return self.lean.logits(h_MD)
        return self.model.logits(h_MD)

    def _way(self, ctx: AttnContext) -> Transformer | LeanStep:
        """The shorter way to the same numbers where it fits the step."""
        return self.lean if self.lean is not None and self.lean.fits(ctx) else self.model
