"""How good a model is on held-out text: bits per byte by language, its MTP module, the load of its experts.

Bits per byte compare languages and tokenizers, which loss per token does not: a token of a large vocabulary says more.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dsv3.expert_load import max_violation
from dsv3.model.transformer import Transformer
from dsv3.train.balance import Router
from dsv3.train.data import Batch, ValidationSet
from dsv3.train.loss import hidden_states, score_tokens, shifted_targets


@torch.no_grad()
def evaluate(
    model: Transformer, validation: Mapping[str, ValidationSet], router: Router, *, chunk: int = 8192
) -> dict[str, Any]:
    """``bits_per_byte`` by language; ``max_vio`` by gate over all languages; with MTP modules ``mtp_loss`` (nats) and
    ``mtp_agreement`` of the first.

    Agreement is the share of positions where the module's greedy choice for token i + 2 is the main model's own, which
    is made from the same tokens one position later: what greedy speculative decoding accepts. Reads the device once a
    language.
    """
    bits: dict[str, float] = {}
    device = router.load_GE.device
    load_GE = torch.zeros_like(router.load_GE)
    mtp = torch.zeros(3, dtype=torch.float64, device=device)  # nats, agreements, targets
    for language, batches in validation.items():
        nats = torch.zeros((), dtype=torch.float64, device=device)
        for batch, scored_BS in batches:
            with router.listen() as heard:
                scores = _score(model, batch, chunk)
            load_GE += router.load(heard, len(scored_BS))
            nll_BS, best_BS = scores[0]
            nats += (nll_BS * scored_BS).sum()
            for mtp_nll_BS, mtp_best_BS in scores[1:2]:
                # At i: token i + 2 is scored, the main model's target at i + 1, and belongs to the document of token i.
                S = scored_BS.shape[1]
                scored = scored_BS[:, 1:] & (batch.documents_BS[:, 2 : S + 1] == batch.documents_BS[:, : S - 1])
                agrees = mtp_best_BS[:, :-1] == best_BS[:, 1:]
                mtp_nats = (mtp_nll_BS[:, :-1] * scored).sum()
                mtp += torch.stack((mtp_nats, (agrees & scored).sum(), scored.sum()))
        bits[language] = float(nats) / math.log(2) / batches.n_bytes
    result: dict[str, Any] = {"bits_per_byte": bits, "max_vio": max_violations(router.names, load_GE)}
    if model.mtp:
        nats_sum, agreements, targets = mtp.tolist()
        result |= {"mtp_loss": nats_sum / targets, "mtp_agreement": agreements / targets}
    return result


def max_violations(names: list[str], load_GE: Tensor) -> dict[str, float]:
    """MaxVio by block: "layers.3", "mtp.0". ``names`` are those of the gates that the rows of ``load_GE`` belong to."""
    loads = zip(names, load_GE.cpu(), strict=True)
    return {name.removesuffix(".ffn.gate"): max_violation(load_E) for name, load_E in loads}


def _score(model: Transformer, batch: Batch, chunk: int) -> list[tuple[Tensor, Tensor]]:
    """(nll_BS in nats, best_BS) of the main model and of each MTP module; documents do not see one another."""
    n_mtp = len(model.mtp)
    results = []
    for depth, x_BSD in enumerate(hidden_states(model, batch.tokens_BS[:, :-1], batch.documents_BS[:, :-1])):
        targets_T = shifted_targets(batch.tokens_BS, depth, n_mtp, batch.documents_BS)
        nll_T, best_T = score_tokens(x_BSD.flatten(0, 1), model.head.weight, targets_T, chunk=chunk)
        results.append((nll_T.view(x_BSD.shape[:2]), best_T.view(x_BSD.shape[:2])))
    return results
