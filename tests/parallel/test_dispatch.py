"""Tokens to experts and back: nothing lost, rows sorted, sums in the tokens' own order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3.parallel.dispatch import LocalDispatcher, count_experts


@st.composite
def routes(draw: st.DrawFn) -> tuple[int, Tensor]:
    """E experts and indices (T, K) with K different experts for each token, T = 0 included."""
    n_experts = draw(st.integers(1, 9))
    k = draw(st.integers(1, n_experts))
    tokens = draw(st.integers(0, 7))
    rows = [draw(st.permutations(range(n_experts)))[:k] for _ in range(tokens)]
    return n_experts, torch.tensor(rows, dtype=torch.int64).view(tokens, k)


@settings(deadline=None)
@given(routes())
def test_round_trip(route: tuple[int, Tensor]) -> None:
    n_experts, indices_TK = route
    T, K = indices_TK.shape
    x_TD = torch.arange(T * 3.0).view(T, 3) + 1
    weights_TK = torch.rand(T, K) + 0.5
    dispatcher = LocalDispatcher(n_experts)
    rows_MD, counts_E, record = dispatcher.dispatch(x_TD, weights_TK, indices_TK)
    assert rows_MD.shape == (T * K, 3)
    assert counts_E.tolist() == [int((indices_TK == e).sum()) for e in range(n_experts)]
    # Each expert's run holds exactly its tokens, in the tokens' order.
    for e, run in enumerate(rows_MD.split(counts_E.tolist())):
        assert torch.equal(run, x_TD[(indices_TK == e).any(dim=1)])
    # Experts that multiply by a number of their own: the sum must find each row's way home.
    factor_E = 10.0 ** torch.arange(n_experts).double()
    expert_M = torch.repeat_interleave(torch.arange(n_experts), counts_E)
    out_TD = dispatcher.combine(rows_MD.double() * factor_E[expert_M].unsqueeze(1), record)
    expected_TD = (weights_TK.double() * factor_E[indices_TK]).sum(1, keepdim=True) * x_TD
    torch.testing.assert_close(out_TD, expected_TD, rtol=1e-6, atol=0)


def test_gradients_reach_tokens_and_weights() -> None:
    x_TD = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    weights_TK = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    indices_TK = torch.tensor([[0, 2], [2, 1], [0, 1], [2, 0]])
    dispatcher = LocalDispatcher(3)

    def through(x_TD: Tensor, weights_TK: Tensor) -> Tensor:
        rows_MD, _, record = dispatcher.dispatch(x_TD, weights_TK, indices_TK)
        return dispatcher.combine(rows_MD.sin(), record)

    assert torch.autograd.gradcheck(through, (x_TD, weights_TK))


def test_rows_of_one_expert_keep_the_order_of_tokens() -> None:
    x_TD = torch.arange(300.0).unsqueeze(1)
    rows_MD, counts_E, _ = LocalDispatcher(4).dispatch(x_TD, torch.ones(300, 1), torch.full((300, 1), 2))
    assert torch.equal(rows_MD, x_TD)
    assert counts_E.tolist() == [0, 0, 300, 0]


@pytest.mark.parametrize("shape", [(0,), (5,), (4, 3), (2, 3, 4)])
def test_count_experts_equals_bincount(shape: tuple[int, ...]) -> None:
    indices = torch.randint(7, shape)
    counts_E = count_experts(indices, 9)
    assert counts_E.dtype == torch.int64
    assert torch.equal(counts_E, torch.bincount(indices.flatten(), minlength=9))
