"""The router against an independent statement of V3 Eq. 12-16 in plain Python, and by its properties."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dsv3.config import ModelConfig
from dsv3.layers.gate import Gate


def gate_config(
    score_func: str = "sigmoid",
    *,
    experts: int = 8,
    active: int = 3,
    groups: int = 1,
    limited: int = 1,
    route_scale: float = 1.0,
    gate_bias: bool | None = None,
) -> ModelConfig:
    return ModelConfig(
        dim=experts,  # with an identity as weight, the input is the logits
        n_layers=1,
        n_dense_layers=0,
        n_routed_experts=experts,
        n_activated_experts=active,
        n_expert_groups=groups,
        n_limited_groups=limited,
        score_func=score_func,  # type: ignore[arg-type]
        route_scale=route_scale,
        gate_bias=gate_bias,
    )


def make_gate(config: ModelConfig, bias: list[float] | None = None) -> Gate:
    gate = Gate(config)
    torch.nn.init.eye_(gate.weight)
    if bias is not None:
        assert gate.bias is not None
        gate.bias.copy_(torch.tensor(bias))
    return gate


def routed(gate: Gate, logits: Tensor) -> list[dict[int, float]]:
    """Expert -> weight for each token."""
    weights_TK, indices_TK = gate(logits)
    assert weights_TK.dtype == torch.float32
    assert indices_TK.dtype == torch.int64
    return [dict(zip(i, w, strict=True)) for i, w in zip(indices_TK.tolist(), weights_TK.tolist(), strict=True)]


def stated(config: ModelConfig, logits: list[float], bias: list[float]) -> dict[int, float]:
    """One token by the report's words: Eq. 15 scores, Eq. 16 chooses with the bias, Eq. 13-14 weigh without it; the
    choice is limited to the best groups (§2.1.2: a node's score is the sum of its best two)."""
    if config.score_func == "sigmoid":
        scores = [1 / (1 + math.exp(-x)) for x in logits]
    else:
        exponentials = [math.exp(x - max(logits)) for x in logits]
        scores = [x / sum(exponentials) for x in exponentials]
    chosen_by = [s + b for s, b in zip(scores, bias, strict=True)]
    size = config.n_routed_experts // config.n_expert_groups
    best = 2 if config.has_gate_bias else 1

    def worth(group: int) -> float:
        return sum(sorted(chosen_by[group * size : (group + 1) * size], reverse=True)[:best])

    open_groups = sorted(range(config.n_expert_groups), key=worth, reverse=True)[: config.n_limited_groups]
    candidates = [e for e in range(config.n_routed_experts) if e // size in open_groups]
    chosen = sorted(candidates, key=lambda e: chosen_by[e], reverse=True)[: config.n_activated_experts]
    total = sum(scores[e] for e in chosen) if config.score_func == "sigmoid" else 1.0
    return {e: scores[e] / total * config.route_scale for e in chosen}


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelConfig, list[list[float]], list[float]]:
    limited = draw(st.integers(1, 3))
    groups = limited + draw(st.integers(0, 3))
    size = draw(st.integers(2, 4))
    config = gate_config(
        draw(st.sampled_from(["sigmoid", "softmax"])),
        experts=groups * size,
        groups=groups,
        limited=limited,
        active=draw(st.integers(1, limited * size)),
        route_scale=draw(st.sampled_from([1.0, 2.5])),
        gate_bias=draw(st.booleans()),
    )
    # Logits at different multiples of 1/4 and biases at other steps: no ties, and no near-ties that FP32 could swap.
    E = config.n_routed_experts
    steps = st.permutations(range(-12, 13))
    logits = [[x / 4 for x in draw(steps)[:E]] for _ in range(draw(st.integers(1, 3)))]
    bias = [x * 0.31415 for x in draw(steps)[:E]] if config.has_gate_bias else [0.0] * E
    return config, logits, bias


@settings(deadline=None, max_examples=300)
@given(cases())
def test_equals_the_report(case: tuple[ModelConfig, list[list[float]], list[float]]) -> None:
    config, logits, bias = case
    gate = make_gate(config, bias if config.has_gate_bias else None)
    for ours, row in zip(routed(gate, torch.tensor(logits)), logits, strict=True):
        expected = stated(config, row, bias)
        assert set(ours) == set(expected)
        for expert, weight in expected.items():
            assert ours[expert] == pytest.approx(weight, rel=1e-5)


def test_the_bias_chooses_and_never_weighs() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    gate = make_gate(gate_config(experts=4, active=2), [0.0, 0.0, 0.0, 5.0])
    (weights,) = routed(gate, logits)
    assert list(weights) == [3, 0]  # in the order of s + b
    low, high = torch.tensor([-1.0, 2.0]).sigmoid().tolist()
    assert weights == pytest.approx({3: low / (low + high), 0: high / (low + high)})


def test_sigmoid_weights_sum_to_route_scale_and_softmax_weights_are_left_alone() -> None:
    logits = torch.randn(50, 8)
    for scale in (1.0, 2.5):
        sums = [sum(w.values()) for w in routed(make_gate(gate_config(route_scale=scale)), logits)]
        assert sums == pytest.approx([scale] * 50)
    chosen = logits.softmax(-1).topk(3).values.sum(-1) * 16
    sums = [sum(w.values()) for w in routed(make_gate(gate_config("softmax", route_scale=16.0)), logits)]
    assert sums == pytest.approx(chosen.tolist())


def test_closed_groups_stay_closed_when_every_open_choice_is_negative() -> None:
    # Masking with 0.0 instead of -inf would prefer the closed group's masked 0.0 to the open one's negative values.
    gate = make_gate(gate_config(experts=8, active=3, groups=2, limited=1), [-3.0] * 4 + [-2.0] * 4)
    for weights in routed(gate, torch.randn(20, 8)):
        assert set(weights) <= {4, 5, 6, 7}


def test_a_group_is_worth_its_best_two_with_a_bias_and_its_best_one_without() -> None:
    logits = torch.tensor([[3.0, -9.0, -9.0, -9.0, 2.0, 2.0, -9.0, -9.0]])
    two = gate_config(experts=8, active=2, groups=2, limited=1)
    one = gate_config("softmax", experts=8, active=2, groups=2, limited=1)
    assert set(routed(make_gate(two), logits)[0]) == {4, 5}
    assert 0 in routed(make_gate(one), logits)[0]


@pytest.mark.parametrize(("groups", "limited"), [(1, 1), (4, 2)])
@pytest.mark.parametrize("score_func", ["sigmoid", "softmax"])
def test_ties_still_give_different_experts(score_func: str, groups: int, limited: int) -> None:
    config = gate_config(score_func, experts=16, active=6, groups=groups, limited=limited)
    for weights in routed(make_gate(config), torch.zeros(10, 16)):
        assert len(weights) == 6
        assert len({e // (16 // groups) for e in weights}) <= limited or groups == 1


def test_inside_a_bf16_model_everything_is_fp32() -> None:
    # Two experts whose scores differ by less than BF16 can tell: the wrong one would win on rounding.
    x_TD = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.bfloat16)
    for best in (0, 3):
        gate = make_gate(gate_config(experts=4, active=1))
        with torch.no_grad():
            gate.weight[best, best] = 1.0001
        assert gate(x_TD)[1].item() == best
    assert gate.weight.dtype == torch.float32
    assert gate.bias is not None
    assert gate.bias.dtype == torch.float32


def test_gradient_reaches_the_weight_and_the_input_and_never_the_bias() -> None:
    gate = make_gate(gate_config(), [0.1] * 8)
    x_TD = torch.randn(5, 8, requires_grad=True)
    weights_TK, _ = gate(x_TD)
    weights_TK[:, 0].sum().backward()
    assert gate.weight.grad is not None
    assert gate.weight.grad.norm() > 0
    assert x_TD.grad is not None
    assert [name for name, _ in gate.named_parameters()] == ["weight"]
    assert [name for name, _ in gate.named_buffers()] == ["bias"]


def test_no_bias_where_the_config_says_none() -> None:
    assert make_gate(gate_config("softmax")).bias is None
    assert "bias" not in make_gate(gate_config(gate_bias=False)).state_dict()


def test_no_tokens() -> None:
    weights_TK, indices_TK = make_gate(gate_config(groups=2, limited=1))(torch.zeros(0, 8))
    assert weights_TK.shape == indices_TK.shape == (0, 3)
