"""The router's kernels against the reference, and the reference against the layer; on a GPU or in the interpreter."""

import dataclasses
import os

import pytest
import torch

from dsv3 import kernels
from dsv3.config import ModelConfig
from dsv3.kernels import moe_reference
from dsv3.layers.gate import Gate
from tests.kernels.tolerances import ROUTE_FP32, relative_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
    # numpy warns where a GPU quietly goes on: exp(-x) of a large x, and NaN
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
else:
    pytestmark = pytest.mark.gpu

V2_LITE = {"top_k": 6, "sigmoid": False}
V2 = {"top_k": 6, "n_groups": 8, "n_limited": 3, "sigmoid": False, "route_scale": 16.0}
V3 = {"top_k": 8, "n_groups": 8, "n_limited": 4, "route_scale": 2.5}

CASES = [  # T, E, D, options
    (1, 64, 256, V2_LITE),
    (7, 64, 200, V2_LITE),  # D is no multiple of a tile
    (83, 160, 128, V2),  # nor is E a power of two
    (1, 256, 512, V3),
    (16, 256, 384, V3),
    (260, 16, 64, {"top_k": 2, "n_groups": 4, "n_limited": 2}),
    (5, 6, 40, {"top_k": 2, "n_groups": 3, "n_limited": 2}),
]


def tensors(T: int, E: int, D: int, dtype: torch.dtype, biased: bool) -> list[torch.Tensor | None]:
    bias = (0.1 * torch.randn(E)).to(DEVICE) if biased else None
    return [torch.randn(T, D).to(DEVICE, dtype), (torch.randn(E, D) / D**0.5).to(DEVICE), bias]


def assert_same_choice(got: kernels.Routed, expected: kernels.Routed) -> None:
    assert (got.weights_TK.dtype, got.indices_TK.dtype, got.places_ET.dtype) == (
        torch.float32,
        torch.int64,
        torch.uint8,
    )
    assert torch.equal(got.indices_TK, expected.indices_TK)
    assert torch.equal(got.places_ET, expected.places_ET)
    assert relative_error(got.weights_TK, expected.weights_TK) <= ROUTE_FP32


@pytest.mark.parametrize(("T", "E", "D", "options"), CASES)
@pytest.mark.parametrize(("dtype", "biased"), [(torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_route(T, E, D, options, dtype, biased):
    x, weight, bias = tensors(T, E, D, dtype, biased)
    got = kernels.route(x, weight, bias, **options, backend="triton")
    assert_same_choice(got, kernels.route(x, weight, bias, **options, backend="reference"))
    again = kernels.route(x, weight, bias, **options, backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


def test_no_tokens():
    x, weight, bias = tensors(0, 16, 32, torch.bfloat16, True)
    weights_TK, indices_TK, places_ET = kernels.route(x, weight, bias, top_k=3, backend="triton")
    assert (weights_TK.shape, indices_TK.shape, places_ET.shape) == ((0, 3), (0, 3), (16, 0))


@pytest.mark.parametrize("groups", [{}, {"n_groups": 4, "n_limited": 2}])
def test_of_equals_the_lower_number_comes_first(groups):
    x = torch.randn(3, 32).to(DEVICE, torch.bfloat16)
    weight = torch.zeros(16, 32, device=DEVICE)
    for bias in (None, torch.zeros(16, device=DEVICE)):
        routed = kernels.route(x, weight, bias, top_k=5, **groups, backend="triton")
        assert_same_choice(routed, kernels.route(x, weight, bias, top_k=5, **groups, backend="reference"))
        assert routed.indices_TK.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_the_bias_chooses_and_does_not_weigh():
    x, weight, _ = tensors(4, 16, 32, torch.bfloat16, False)
    bias = torch.zeros(16, device=DEVICE)
    bias[11] = 10.0
    weights_TK, indices_TK, _ = kernels.route(x, weight, bias, top_k=4, backend="triton")
    assert (indices_TK[:, 0] == 11).all()
    assert (weights_TK < 1).all()
    assert weights_TK.sum(1).allclose(torch.ones(4, device=DEVICE))


def test_nan_still_gives_different_experts_that_exist():
    x, weight, bias = tensors(4, 16, 32, torch.bfloat16, True)
    x[1], x[2] = float("nan"), float("-inf")
    _, indices_TK, places_ET = kernels.route(x, weight, bias, top_k=4, n_groups=4, n_limited=2, backend="triton")
    assert all(len(set(row)) == 4 and set(row) <= set(range(16)) for row in indices_TK.tolist())
    assert ((places_ET > 0).sum(0) == 4).all()


def gate_options(config: ModelConfig) -> dict[str, object]:
    return {
        "top_k": config.n_activated_experts,
        "n_groups": config.n_expert_groups,
        "n_limited": config.n_limited_groups,
        "sigmoid": config.score_func == "sigmoid",
        "route_scale": config.route_scale,
    }


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_equals_the_layer(any_small_config, backend):
    config = dataclasses.replace(any_small_config, gate_bias=None)
    gate = Gate(config).to(DEVICE)
    torch.nn.init.normal_(gate.weight)
    if gate.bias is not None:
        torch.nn.init.normal_(gate.bias, std=0.1)
    x = torch.randn(20, config.dim).to(DEVICE)
    with torch.no_grad():
        weights_TK, indices_TK = gate(x)
        routed = kernels.route(x, gate.weight, gate.bias, **gate_options(config), backend=backend)
    expected = kernels.Routed(weights_TK, indices_TK, moe_reference.places(indices_TK, config.n_routed_experts))
    assert_same_choice(routed, expected)
