"""The whole model on a page: embed, blocks, norm, head. No word of ranks, devices or batches.

A newcomer follows a token from here: ``layers.mla`` attends, ``layers.moe`` sends it to experts that ``layers.gate``
chose, ``layers.linear`` multiplies in the weight's own precision, and ``kernels.reference`` says what that means.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dsv3 import kernels
from dsv3.config import BLOCK, ModelConfig
from dsv3.layers.basic import Embedding, RMSNorm
from dsv3.layers.cache import AttnContext
from dsv3.layers.linear import FP8, act_dtype
from dsv3.layers.mla import MLA
from dsv3.layers.packing import Packing
from dsv3.layers.rope import inverse_frequencies, rotations
from dsv3.model.block import Block
from dsv3.model.mtp import MTP
from dsv3.parallel.group import Parallel

Context = AttnContext | Packing | None
"""What tokens may look at: a paged cache, their own document within packed rows, or all that stands before them."""


def _grad_unless_cached(ctx: Context) -> AbstractContextManager[None]:
    """No autograd with a cache: what earlier steps wrote there has no graph, so a gradient would be partial."""
    return torch.no_grad() if isinstance(ctx, AttnContext) else nullcontext()


class Head(nn.Module):
    """(..., D) -> logits (..., V) in FP32. Kept in high precision; each rank holds V / tp rows."""

    def __init__(self, config: ModelConfig, *, dtype: torch.dtype, parallel: Parallel) -> None:
        super().__init__()
        self.tp = parallel.tp
        rows = self.tp.split(config.vocab_size, "vocab_size")
        self.weight = nn.Parameter(torch.empty(rows, config.dim, dtype=dtype))

    def forward(self, h: Tensor) -> Tensor:
        return self.tp.all_gather(kernels.linear(h, self.weight).float())


class Transformer(nn.Module):
    """DeepSeek-V2/V3 for one configuration.

    Args:
        dtype: type of the big weights, torch.float32, bfloat16 or float8_e4m3fn; None follows ``config.dtype``. With
            FP8, embedding, head, norms and ``eh_proj`` stay in BF16. The gate is FP32 in every case.
        device: "meta" builds without memory or initial values (671B in seconds); elsewhere weights start random.

    ``model(tokens_BS)`` runs whole sequences, causal and differentiable; with a ``Packing`` each document by itself.
    ``model(tokens_T, ctx)`` runs the new tokens of a batch against a paged cache, any number from any position on.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        parallel: Parallel = Parallel(),
    ) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype or (FP8 if config.dtype == "fp8" else torch.bfloat16)
        self.act_dtype = act_dtype(self.dtype)
        """Type of activations and of everything that is never quantised."""
        with torch.device(device or "cpu"):
            self.embed = Embedding(config.vocab_size, config.dim, dtype=self.act_dtype, tp=parallel.tp)
            self.layers = nn.ModuleList(
                Block(config, i, dtype=self.dtype, parallel=parallel) for i in range(config.n_layers)
            )
            self.norm = RMSNorm(config.dim, config.norm_eps, dtype=self.act_dtype)
            self.head = Head(config, dtype=self.act_dtype, parallel=parallel)
            self.mtp = nn.ModuleList(
                MTP(config, k, dtype=self.dtype, parallel=parallel) for k in range(config.n_mtp_layers)
            )
        # A plain tensor on purpose: a buffer would be rounded by model.bfloat16(), and positions need its FP32.
        self.inv_freq = inverse_frequencies(config)
        if self.embed.weight.device.type != "meta":
            self.reset_parameters()

    def forward(self, tokens: Tensor, ctx: Context = None) -> Tensor:
        """Logits in FP32 for every position: (B, S, V), or (T, V) with a cache."""
        return self.logits(self.hidden(tokens, ctx))

    def hidden(self, tokens: Tensor, ctx: Context = None) -> Tensor:
        """The final, normalised hidden states, (B, S, D) or (T, D) with a cache: what head and MTP start from."""
        with _grad_unless_cached(ctx):
            turns = self._turns(tokens, ctx)
            h = self.embed(tokens)
            for block in self.layers:
                h = block(h, turns, ctx)
            return self.norm(h)

    def logits(self, h: Tensor) -> Tensor:
        """(..., D) from ``hidden`` or ``predict_next`` -> (..., V) in FP32."""
        return self.head(h)

    def predict_next(self, k: int, h: Tensor, next_tokens: Tensor, ctx: Context = None) -> Tensor:
        """MTP module k (Eq. 21-23): h of position i with token i+1+k -> hidden state that predicts token i+2+k.

        h (..., D) is ``hidden`` for k = 0 and the previous module's result for k > 0; next_tokens (...) are ids. With a
        cache the module writes its own layer of the cache, at the position of h.
        """
        with _grad_unless_cached(ctx):
            return self.mtp[k](h, self.embed(next_tokens), self._turns(next_tokens, ctx), ctx)

    def _turns(self, tokens: Tensor, ctx: Context) -> Tensor:
        if self.inv_freq.device != tokens.device:
            self.inv_freq = self.inv_freq.to(tokens.device)
        if isinstance(ctx, AttnContext):
            return rotations(ctx.positions_T, self.inv_freq)
        turns = rotations(torch.arange(tokens.shape[-1], device=tokens.device), self.inv_freq)
        return torch.view_as_real(turns) if ctx is not None else turns  # packed rows are for training: to be compiled

    def prepare(self) -> "Transformer":
        """Derive what inference needs (absorbed attention matrices). Call again after changing weights in place."""
        for module in self.modules():
            if isinstance(module, MLA):
                module.prepare()
        return self

    @torch.no_grad()
    def reset_parameters(self, std: float = 0.006) -> None:
        """Random start: normal with ``std`` (0.006: V3 §4.2), norms 1, gate biases 0; FP8 weights are quantised.

        Matrices that write to the residual stream are not scaled down by depth; the report does not do it either.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif parameter.dtype == FP8:
                owner, leaf = name.rsplit(".", 1)
                scales = getattr(self.get_submodule(owner), "scale" if leaf == "weight" else f"{leaf}_scale")
                # One matrix at a time: all experts of a layer in FP32 would take 30 GB at 671B.
                matrices = zip(
                    parameter.view(-1, *parameter.shape[-2:]), scales.view(-1, *scales.shape[-2:]), strict=True
                )
                for codes, scale in matrices:
                    random = torch.randn(codes.shape, device=codes.device) * std
                    found = kernels.weight_quant(random, BLOCK, self.config.scale_fmt)
                    codes.copy_(found[0])
                    scale.copy_(found[1])
            elif not name.endswith("scale"):
                parameter.normal_(0.0, std)
        for name, buffer in self.named_buffers():
            if name.endswith("gate.bias"):
                buffer.zero_()

    def n_parameters(self) -> int:
        """Weights of this rank, without FP8 scales and gate biases (counted as the reports count)."""
        return sum(math.prod(p.shape) for name, p in self.named_parameters() if not name.endswith("scale"))
