"""The experts' kernels against their reference, and the reference against the layer; on a GPU or in the interpreter."""

import os

import pytest
import torch

from dsv3 import kernels
from dsv3.kernels import ExpertWeights, Routed, SharedWeights, experts, moe_reference, one_token
from dsv3.layers.moe import MoE
from dsv3.parallel.group import Parallel
from tests.kernels.test_router import gate_options
from tests.kernels.tolerances import MOE_BF16, MOE_FP8, MOE_FP32, relative_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
    # numpy warns where a GPU quietly goes on: exp(-x) of a large x, and NaN
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
else:
    pytestmark = pytest.mark.gpu

FP32, BF16, FP8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
TOLERANCE = {FP32: MOE_FP32, BF16: MOE_BF16, FP8: MOE_BF16 if INTERPRETED else MOE_FP8}
KINDS = [(FP32, FP32), (BF16, BF16), (FP8, BF16)]  # weights, activations


def random(*shape: int) -> torch.Tensor:
    """Weights whose outputs are about as large as their inputs, and whose rows differ in size by up to 2^±3."""
    return torch.randn(*shape) / shape[-1] ** 0.5 * torch.exp2(torch.randint(-3, 4, (*shape[:-1], 1)))


def weights(E: int, D: int, F: int, F_shared: int, dtype: torch.dtype) -> tuple[ExpertWeights, SharedWeights]:
    matrices = [random(*s) for s in ((E, 2, F, D), (E, D, F), (F_shared, D), (F_shared, D), (D, F_shared))]
    if dtype != FP8:
        w13, w2, *shared = (m.to(DEVICE, dtype) for m in matrices)
        return ExpertWeights(w13, w2), SharedWeights(*shared)
    codes, scales = zip(*(kernels.weight_quant(m.to(DEVICE)) for m in matrices), strict=True)
    return ExpertWeights(*codes[:2], *scales[:2]), SharedWeights(*codes[2:], *scales[2:])


def routed_to(indices_TK: torch.Tensor, n_experts: int) -> Routed:
    indices_TK = indices_TK.to(DEVICE)
    return Routed(torch.rand(indices_TK.shape).to(DEVICE), indices_TK, moe_reference.places(indices_TK, n_experts))


def spread(T: int, K: int, E: int) -> Routed:
    return routed_to(torch.rand(T, E).topk(K, dim=1).indices, E)


def assert_equals_reference(x, routed, w, shared, residual=None, scale_fmt=None, **options) -> None:
    """Compares the op; with `options` (a tile) the kernels themselves."""
    expected = kernels.moe_experts(x, routed, w, shared, residual, scale_fmt, backend="reference")
    if options:
        y = experts.moe_experts(x, routed, w, shared, residual, scale_fmt, **options)
    else:
        y = kernels.moe_experts(x, routed, w, shared, residual, scale_fmt, backend="triton")
    assert y.dtype == x.dtype
    assert relative_error(y, expected) <= TOLERANCE[w.w13.dtype]


def tokens(T: int, D: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(T, D) * torch.exp2(torch.randint(-4, 5, (T, 1)))).to(DEVICE, dtype)


@pytest.mark.parametrize("T", [0, 1, 7, 83, 270])
@pytest.mark.parametrize(("dtype", "act"), KINDS)
def test_moe_experts(T, dtype, act):
    x = tokens(T, 128, act)
    w, shared = weights(8, 128, 64, 128, dtype)
    assert_equals_reference(x, spread(T, 3, 8), w, shared, torch.randn_like(x))


@pytest.mark.parametrize(("T", "D", "F", "F_shared"), [(1, 200, 136, 272), (5, 200, 136, 272), (270, 72, 40, 24)])
@pytest.mark.parametrize(("dtype", "act"), KINDS)
def test_sizes_that_are_no_multiple_of_a_tile(T, D, F, F_shared, dtype, act):
    x = tokens(T, D, act)
    w, shared = weights(5, D, F, F_shared, dtype)
    assert_equals_reference(x, spread(T, 2, 5), w, shared)
    assert_equals_reference(x, spread(T, 2, 5), w, None, torch.randn_like(x))


@pytest.mark.parametrize("T", [20, 270])
@pytest.mark.parametrize(("dtype", "act"), KINDS)
def test_all_tokens_to_the_same_experts(T, dtype, act):
    x = tokens(T, 64, act)
    w, shared = weights(8, 64, 32, 64, dtype)
    assert_equals_reference(x, routed_to(torch.tensor([[6, 2]]).expand(T, 2), 8), w, shared)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("block_m", [16, 32])
@pytest.mark.parametrize(("dtype", "act"), KINDS)
def test_tiles(dtype, act, block_m, swap):
    tile = experts.Tile(block_m, 32, 128, 4, 2, swap)
    w, shared = weights(6, 160, 96, 128, dtype)
    for T in (1, 40):
        assert_equals_reference(tokens(T, 160, act), spread(T, 3, 6), w, shared, tiles=(tile, tile))


@pytest.mark.parametrize(("dtype", "act"), KINDS)
def test_strips(dtype, act):
    x, routed = tokens(1, 160, act), spread(1, 3, 6)
    w, shared = weights(6, 160, 72, 140, dtype)
    expected = kernels.moe_experts(x, routed, w, shared, backend="reference")
    for strip in (one_token.Strip(4, 128, 4, 1), one_token.Strip(32, 256, 4, 3)):
        y = one_token.moe_experts(x, routed, w, shared, strips=(strip, strip))
        assert relative_error(y, expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("T", [1, 9, 270])
def test_power_of_two_scales(T):
    w, shared = weights(4, 256, 128, 128, FP8)
    assert_equals_reference(tokens(T, 256, BF16), spread(T, 2, 4), w, shared, scale_fmt="ue8m0")


@pytest.mark.parametrize("T", [1, 9, 270])
def test_every_block_is_scaled_by_its_own_scale(T):
    """Codes are all 1: what differs are the scales, by powers of two up to 2^12."""
    w, shared = weights(3, 256, 256, 128, FP8)

    def powers(s: torch.Tensor | None) -> torch.Tensor | None:
        return None if s is None else torch.exp2(torch.randint(-12, 1, s.shape).float()).to(DEVICE)

    for codes in (w.w13, w.w2, shared.w1, shared.w3, shared.w2):
        codes.fill_(1.0)
    w = w._replace(w13_scale=powers(w.w13_scale), w2_scale=powers(w.w2_scale))
    shared = shared._replace(**{f"{n}_scale": powers(getattr(shared, f"{n}_scale")) for n in ("w1", "w3", "w2")})
    assert_equals_reference(tokens(T, 256, BF16).abs(), spread(T, 2, 3), w, shared)


@pytest.mark.parametrize("T", [1, 30, 270])
def test_repeats_bit_by_bit(T):
    x, routed = tokens(T, 128, BF16), spread(T, 3, 8)
    w, shared = weights(8, 128, 64, 128, BF16)
    first, second = (kernels.moe_experts(x, routed, w, shared, x, backend="triton") for _ in range(2))
    assert torch.equal(first, second)


def test_sorted_tiles_cover_every_pair_once():
    for T, K, E, block_m in ((50, 3, 7, 16), (1, 2, 9, 32), (64, 1, 2, 16), (40, 4, 4, 8)):
        routed = spread(T, K, E)
        order_M, tiles_X3 = experts.where_rows(routed, E, block_m, by_place=False)[0][1:]
        rows = []
        for expert, first, end in tiles_X3.tolist():
            assert 0 <= end - first <= block_m
            assert (routed.indices_TK.flatten()[order_M[first:end].long()] == expert).all()
            rows += range(first, end)
        assert rows == list(range(T * K))


def test_bad_arguments_are_named():
    x, routed = tokens(2, 64, BF16), spread(2, 2, 4)
    w, shared = weights(4, 64, 32, 32, BF16)
    for backend in ("reference", "triton"):
        with pytest.raises(ValueError, match="w2 has shape"):
            kernels.moe_experts(x, routed, w._replace(w2=w.w13), backend=backend)
        with pytest.raises(ValueError, match="places_ET"):
            kernels.moe_experts(x, routed._replace(places_ET=routed.places_ET[:3]), w, backend=backend)
        with pytest.raises(TypeError, match="the shared w1 is"):
            kernels.moe_experts(x, routed, w, shared._replace(w1=shared.w1.float()), backend=backend)
        with pytest.raises(TypeError, match="scale is missing"):
            kernels.moe_experts(x, routed, w._replace(w13=w.w13.to(FP8), w2=w.w2.to(FP8)), backend=backend)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_equals_the_layer(any_small_config, backend):
    config = any_small_config
    moe = MoE(config, dtype=FP32, parallel=Parallel()).to(DEVICE)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    if moe.gate.bias is not None:
        torch.nn.init.zeros_(moe.gate.bias)
    x = torch.randn(20, config.dim).to(DEVICE)
    mlp = moe.shared_experts
    assert mlp is not None
    with torch.no_grad():
        routed = kernels.route(x, moe.gate.weight, moe.gate.bias, **gate_options(config), backend=backend)
        w, shared = (
            ExpertWeights(moe.experts.w13, moe.experts.w2),
            SharedWeights(*(m.weight for m in (mlp.w1, mlp.w3, mlp.w2))),
        )
        y = kernels.moe_experts(x, routed, w, shared, x, backend=backend)
        assert relative_error(y, x + moe(x)) <= 10 * MOE_FP32


if not INTERPRETED:

    @pytest.mark.parametrize("T", [1, 8, 64, 300])
    @pytest.mark.parametrize("dtype", [BF16, FP8])
    def test_recorded_steps_equal_single_ones(T, dtype):
        """Launches in a graph follow each other as closely as they may, and use the same buffers again and again: what
        starts before its input is ready, or writes what is still read, shows here."""
        w, shared = weights(32, 256, 128, 256, dtype)
        gate = torch.randn(32, 256, device=DEVICE) / 16
        inputs = [tokens(T, 256, BF16) for _ in range(20)]

        def layer(x: torch.Tensor) -> torch.Tensor:
            return kernels.moe_experts(x, kernels.route(x, gate, top_k=4), w, shared, x)

        expected = []
        for x in inputs:
            expected.append(layer(x))
            torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = [layer(x) for x in inputs]
        for _ in range(5):
            for y in got:
                y.fill_(float("nan"))
            graph.replay()
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
