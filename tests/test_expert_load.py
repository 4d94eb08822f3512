import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3.expert_load import (
    LayerLoad,
    count_experts,
    loads_from_records,
    max_violation,
    relative_entropy,
    relative_load,
)

counts = st.lists(st.integers(0, 10_000), min_size=1, max_size=64).map(torch.tensor)


def test_counts_are_of_routed_copies() -> None:
    indices = [torch.tensor([[0, 2], [2, 3]]), torch.tensor([[2, 0]])]
    assert count_experts(indices, 5).tolist() == [2, 0, 3, 1, 0]
    assert count_experts([], 3).tolist() == [0, 0, 0]


def test_figures_of_a_known_load() -> None:
    load = LayerLoad("layer 1", torch.tensor([4, 2, 2, 0]))
    assert load.busiest == (0, 0.5)
    assert load.idlest == (3, 0.0)
    assert load.max_violation == pytest.approx((4 - 2) / 2)
    assert load.entropy == pytest.approx(1.5 * math.log(2) / math.log(4))
    assert relative_load(load.counts_E).tolist() == [2.0, 1.0, 1.0, 0.0]


def test_extremes_of_evenness() -> None:
    even, collapsed = torch.full((8,), 7), torch.tensor([0, 0, 9, 0, 0, 0, 0, 0])
    assert (max_violation(even), relative_entropy(even)) == pytest.approx((0.0, 1.0))
    assert (max_violation(collapsed), relative_entropy(collapsed)) == pytest.approx((7.0, 0.0))


@given(counts)
def test_bounds_hold_for_any_load(counts_E: torch.Tensor) -> None:
    assert -1e-9 <= relative_entropy(counts_E) <= 1 + 1e-9
    assert -1e-9 <= max_violation(counts_E) <= counts_E.numel() - 1 + 1e-9
    assert float(relative_load(counts_E).mean()) == pytest.approx(1.0)


def test_records_become_layers_in_order_of_depth() -> None:
    one = [torch.tensor([[0, 1]])]
    names = ["mtp.0.ffn.gate", "layers.10.ffn.gate", "layers.9.ffn.gate"]
    records = {f"{name}.indices_TK": one for name in names} | {"layers.9.ffn.gate.scores_TE": [torch.ones(1, 4)]}
    loads = loads_from_records(records, 4)
    assert [load.name for load in loads] == ["layer 9", "layer 10", "MTP 0"]
    assert loads[0].counts_E.tolist() == [1, 1, 0, 0]
