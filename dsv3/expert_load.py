"""How evenly the router spreads tokens over the experts of each MoE layer: counts and the figures drawn from them.

Pure functions on tensors. The records come from ``dsv3.probe.capture``:

    with capture(model, "gate.indices_TK") as records:
        model(tokens)
    loads = loads_from_records(records, config.n_routed_experts)

What is counted is a routed copy: a token sent to K experts counts K times. Four figures describe a layer. With load_e
copies for expert e, E experts and share_e = load_e / Σ load:

    MaxVio   = (max load - mean load) / mean load            0 when even; arXiv 2408.15664 §4.1
    entropy  = -Σ share_e log share_e / log E                1 when even, 0 when one expert does all
    busiest, idlest: the experts with the largest and the smallest load, each with its share
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TAP = re.compile(r"(?P<stack>layers|mtp)\.(?P<index>\d+)\.ffn\.gate\.indices_TK$")


@dataclass(frozen=True)
class LayerLoad:
    """Routed copies per expert of one MoE layer: ``counts_E`` int64 on the CPU; ``name`` is "layer 3" or "MTP 0"."""

    name: str
    counts_E: Tensor

    @property
    def share_E(self) -> Tensor:
        """Each expert's part of the layer's routed copies, FP64; uniform where nothing was routed."""
        return shares(self.counts_E)

    @property
    def busiest(self) -> tuple[int, float]:
        """The expert with the largest load, and its share."""
        expert = int(self.counts_E.argmax())
        return expert, float(self.share_E[expert])

    @property
    def idlest(self) -> tuple[int, float]:
        """The expert with the smallest load, and its share."""
        expert = int(self.counts_E.argmin())
        return expert, float(self.share_E[expert])

    @property
    def entropy(self) -> float:
        return relative_entropy(self.counts_E)

    @property
    def max_violation(self) -> float:
        return max_violation(self.counts_E)


def count_experts(indices: Iterable[Tensor], n_experts: int) -> Tensor:
    """Routed copies per expert, ``counts_E`` int64, over any number of index tensors (T, K), on their device."""
    flat = [indices_TK.reshape(-1) for indices_TK in indices]
    return torch.bincount(torch.cat(flat) if flat else torch.empty(0, dtype=torch.int64), minlength=n_experts)


def shares(counts_E: Tensor) -> Tensor:
    """``counts_E`` as parts of their sum, FP64; 1 / E each where the sum is zero, so that no figure becomes NaN."""
    counts_E = counts_E.double()
    total = counts_E.sum()
    return torch.where(total > 0, counts_E / total.clamp(min=1.0), 1.0 / counts_E.numel())


def relative_load(counts_E: Tensor) -> Tensor:
    """Load in multiples of the uniform load, FP64: 1 is an expert's fair share, 0 an idle one, E the only busy one."""
    return shares(counts_E) * counts_E.numel()


def max_violation(counts_E: Tensor) -> float:
    """MaxVio (arXiv 2408.15664 §4.1): by how much of the mean load the busiest expert exceeds it."""
    return float(relative_load(counts_E).max()) - 1.0


def relative_entropy(counts_E: Tensor) -> float:
    """Entropy of the load as a part of its maximum log E, in [0, 1]; 1 for a single expert, which is trivially even."""
    if counts_E.numel() == 1:
        return 1.0
    return float(torch.special.entr(shares(counts_E)).sum()) / math.log(counts_E.numel())


def loads_from_records(records: Mapping[str, Iterable[Tensor]], n_experts: int) -> list[LayerLoad]:
    """The load of every MoE layer in what ``capture(model, "gate.indices_TK")`` recorded, main layers first, then MTP.

    Speculative drafts that were rejected count too: their experts did the work.
    """
    found = [(match, indices) for name, indices in records.items() if (match := _TAP.search(name))]
    found.sort(key=lambda entry: (entry[0]["stack"] == "mtp", int(entry[0]["index"])))
    return [
        LayerLoad(
            f"{'MTP' if match['stack'] == 'mtp' else 'layer'} {match['index']}", count_experts(indices, n_experts).cpu()
        )
        for match, indices in found
    ]
