"""`dsv3.kernels.reference`: the golden values of the official kernels, and the properties its lesson claims."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dsv3.kernels import BLOCK, E4M3, E4M3_MAX, reference
from tests.kernels.tolerances import (
    E4M3_ROUND,
    E4M3_SUBNORMAL,
    FP8_LINEAR,
    GEMM_FP32,
    GOLDEN_GEMM,
    SCALE_AGAIN,
    relative_error,
    same_bits,
    worst_row_error,
)

FORMATS = [None, "ue8m0"]


@pytest.fixture(scope="module")
def golden(shared_dir: Path) -> dict[str, torch.Tensor]:
    """The official Triton kernels' inputs and outputs on an H100; codes are stored as bytes."""
    return {
        name: tensor.view(E4M3) if tensor.dtype == torch.uint8 else tensor
        for name, tensor in load_file(shared_dir / "golden" / "fp8_ops.safetensors").items()
    }


# --- against the official kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale_fmt", "suffix"), [(None, ""), ("ue8m0", "_ue8m0")])
def test_act_quant_equals_the_official_kernel_bit_for_bit(golden, scale_fmt, suffix):
    q, s = reference.act_quant(golden["x"], scale_fmt=scale_fmt)
    assert torch.equal(s, golden[f"act_s{suffix}"])
    assert same_bits(q, golden[f"act_q{suffix}"])


def test_weight_dequant_equals_the_official_kernel_bit_for_bit(golden):
    assert torch.equal(reference.weight_dequant(golden["w_q"], golden["w_s"]), golden["w_dequant"])


@pytest.mark.parametrize("suffix", ["", "_ue8m0"])
def test_gemm_equals_the_official_kernel(golden, suffix):
    a, a_s = golden[f"act_q{suffix}"], golden[f"act_s{suffix}"]
    y = reference.fp8_gemm(a, a_s, golden["w_q"], golden["w_s"])
    assert worst_row_error(y, golden[f"gemm{suffix}"]) < GOLDEN_GEMM


def test_released_weights_survive_requantisation(golden):
    """FP8 -> FP32 -> FP8 gives back the codes, as every block's largest code is 448."""
    w = reference.weight_dequant(golden["w_q"], golden["w_s"], dtype=torch.float32)
    q, s = reference.weight_quant(w)
    assert same_bits(q, golden["w_q"])
    torch.testing.assert_close(s, golden["w_s"], rtol=SCALE_AGAIN, atol=0)


# --- the round trip -------------------------------------------------------------------------------------------------


def assert_round_trip(x: torch.Tensor, q: torch.Tensor, s_of_each: torch.Tensor) -> None:
    """|x - q s| within half a unit in the last place of e4m3, and in its subnormal range within half its spacing."""
    restored = q.float() * s_of_each
    bound = torch.maximum(x.abs() * E4M3_ROUND, s_of_each * E4M3_SUBNORMAL)
    assert ((x - restored).abs() <= bound * (1 + 1e-6)).all()


@given(
    shape=st.lists(st.integers(1, 4), max_size=2),
    width=st.integers(1, 300),
    exponent=st.integers(-20, 20),
    scale_fmt=st.sampled_from(FORMATS),
    seed=st.integers(0, 2**31),
)
def test_act_quant_round_trip(shape, width, exponent, scale_fmt, seed):
    x = torch.randn(*shape, width, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    q, s = reference.act_quant(x, scale_fmt=scale_fmt)
    assert q.shape == x.shape
    assert s.shape == (*shape, -(-width // BLOCK))
    assert_round_trip(x, q, s.repeat_interleave(BLOCK, -1)[..., :width])


@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    n=st.integers(1, 270),
    k=st.integers(1, 270),
    scale_fmt=st.sampled_from(FORMATS),
    seed=st.integers(0, 2**31),
)
def test_weight_quant_round_trip(lead, n, k, scale_fmt, seed):
    w = torch.randn(*lead, n, k, generator=torch.Generator().manual_seed(seed)) * 0.02
    q, s = reference.weight_quant(w, scale_fmt=scale_fmt)
    assert q.shape == w.shape
    assert s.shape == (*lead, -(-n // BLOCK), -(-k // BLOCK))
    s_of_each = s.repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)[..., :n, :k]
    assert_round_trip(w, q, s_of_each)
    assert torch.equal(reference.weight_dequant(q, s, dtype=torch.float32), q.float() * s_of_each)


@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_stacked_weights_are_quantised_one_by_one(scale_fmt):
    w = torch.randn(3, 2, 130, 200)
    q, s = reference.weight_quant(w, scale_fmt=scale_fmt)
    restored = reference.weight_dequant(q, s)
    for e in range(3):
        for i in range(2):
            q_alone, s_alone = reference.weight_quant(w[e, i], scale_fmt=scale_fmt)
            assert same_bits(q[e, i], q_alone)
            assert torch.equal(s[e, i], s_alone)
            assert torch.equal(restored[e, i], reference.weight_dequant(q_alone, s_alone))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_float_type_is_quantised_through_fp32(dtype):
    x = torch.randn(3, 200).to(dtype)
    q, s = reference.act_quant(x)
    q_float, s_float = reference.act_quant(x.float())
    assert same_bits(q, q_float)
    assert torch.equal(s, s_float)


def test_views_quantise_like_their_copies():
    x = torch.randn(200, 3).T
    assert same_bits(reference.act_quant(x)[0], reference.act_quant(x.contiguous())[0])
    assert reference.act_quant(x)[0].is_contiguous()


# --- scales ---------------------------------------------------------------------------------------------------------


@given(st.floats(2.0**-60, 2.0**60, width=32))
def test_ceil_pow2_is_the_least_power_of_two_above(value):
    s = torch.tensor([value], dtype=torch.float32)
    rounded = reference.ceil_pow2(s)
    mantissa, _ = torch.frexp(rounded)
    assert mantissa.item() == 0.5
    assert rounded.item() >= s.item() > rounded.item() / 2


@pytest.mark.parametrize("exponent", range(-30, 31))
def test_ceil_pow2_keeps_powers_and_lifts_their_successors(exponent):
    power = torch.tensor(2.0**exponent)
    assert reference.ceil_pow2(power) == power
    assert reference.ceil_pow2(torch.nextafter(power, torch.tensor(torch.inf))) == 2 * power


def test_the_largest_code_fills_the_range():
    x = torch.randn(64, 512)
    largest = reference.act_quant(x)[0].float().unflatten(-1, (-1, BLOCK)).abs().amax(-1)
    assert (largest == E4M3_MAX).all()
    largest = reference.act_quant(x, scale_fmt="ue8m0")[0].float().unflatten(-1, (-1, BLOCK)).abs().amax(-1)
    assert (largest >= E4M3_MAX / 2).all()
    assert (largest <= E4M3_MAX).all()
    assert (largest < E4M3_MAX).any()


@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_blocks_of_zeros_become_zeros(scale_fmt):
    w = torch.randn(256, 300)
    w[:128, 128:256] = 0
    for quantise in (reference.act_quant, reference.weight_quant):
        q, s = quantise(w, scale_fmt=scale_fmt)
        assert s.isfinite().all()
        assert (s > 0).all()
        assert (q[:128, 128:256].float() == 0).all()
        assert (q.float() != 0).any()


def test_an_outlier_costs_only_its_own_block():
    """The reason for blocks: beside an outlier small values vanish; in the next block they keep their precision."""
    x = torch.full((1, 256), 1e-3)
    x[0, 0] = 1e4
    q, s = reference.act_quant(x)
    restored = q.float() * s.repeat_interleave(BLOCK, -1)
    assert (restored[0, 1:BLOCK] == 0).all()
    torch.testing.assert_close(restored[0, BLOCK:], x[0, BLOCK:])


@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_nan_stays_visible(scale_fmt):
    x = torch.randn(2, 128)
    x[0, 5] = torch.nan
    q, _ = reference.act_quant(x, scale_fmt=scale_fmt)
    assert q[0, 5].float().isnan()
    assert q[1].float().isfinite().all()


# --- the product ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 130, 300), (3, 64, 576), (7, 256, 128)])
@pytest.mark.parametrize("scale_fmt", FORMATS)
def test_gemm_is_the_product_of_the_restored_factors(m, n, k, scale_fmt):
    a, a_s = reference.act_quant(torch.randn(m, k), scale_fmt=scale_fmt)
    b, b_s = reference.weight_quant(torch.randn(n, k), scale_fmt=scale_fmt)
    a_full = a.double() * a_s.double().repeat_interleave(BLOCK, -1)[:, :k]
    b_full = b.double() * b_s.double().repeat_interleave(BLOCK, -1).repeat_interleave(BLOCK, -2)[:n, :k]
    y = reference.fp8_gemm(a, a_s, b, b_s, torch.float32)
    assert worst_row_error(y, a_full @ b_full.T) < GEMM_FP32


def test_gemm_is_close_to_the_unquantised_product():
    x, w = torch.randn(64, 1000), torch.randn(200, 1000)
    y = reference.fp8_gemm(*reference.act_quant(x), *reference.weight_quant(w), torch.float32)
    assert relative_error(y, x @ w.T) < FP8_LINEAR


def test_gemm_keeps_leading_dimensions_and_the_output_type():
    a, a_s = reference.act_quant(torch.randn(2, 3, 200))
    b, b_s = reference.weight_quant(torch.randn(40, 200))
    y = reference.fp8_gemm(a, a_s, b, b_s)
    assert y.dtype == torch.bfloat16
    assert y.shape == (2, 3, 40)
    flat = reference.fp8_gemm(a.reshape(6, 200), a_s.reshape(6, 2), b, b_s)
    assert torch.equal(y.reshape(6, 40), flat)


def test_no_rows_give_no_rows():
    q, s = reference.act_quant(torch.randn(0, 200))
    b, b_s = reference.weight_quant(torch.randn(40, 200))
    assert reference.fp8_gemm(q, s, b, b_s).shape == (0, 40)


# --- wrong arguments ------------------------------------------------------------------------------------------------


def codes(*shape: int) -> torch.Tensor:
    return torch.zeros(shape).to(E4M3)


def test_quant_refuses_wrong_arguments():
    x = torch.randn(4, 128)
    with pytest.raises(ValueError, match="scale_fmt is 'e8m0'; expected"):
        reference.act_quant(x, scale_fmt="e8m0")
    with pytest.raises(ValueError, match="block is 100; expected a power of two"):
        reference.act_quant(x, block=100)
    with pytest.raises(TypeError, match="int64"):
        reference.act_quant(torch.arange(128))
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        reference.weight_quant(codes(4, 128))
    with pytest.raises(ValueError, match=r"shape \(128,\).*at least 2"):
        reference.weight_quant(x[0])


def test_dequant_refuses_wrong_arguments():
    with pytest.raises(TypeError, match=r"q is torch\.uint8"):
        reference.weight_dequant(torch.zeros(130, 128, dtype=torch.uint8), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"s has shape \(1, 1\).*need scales of shape \(2, 1\)"):
        reference.weight_dequant(codes(130, 128), torch.ones(1, 1))
    with pytest.raises(TypeError, match=r"s is torch\.bfloat16"):
        reference.weight_dequant(codes(130, 128), torch.ones(2, 1).bfloat16())


def test_gemm_refuses_wrong_arguments():
    with pytest.raises(ValueError, match=r"a is \(2, 128\) and b is \(3, 256\)"):
        reference.fp8_gemm(codes(2, 128), torch.ones(2, 1), codes(3, 256), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"b_s has shape \(3, 1\).*\(1, 1\)"):
        reference.fp8_gemm(codes(2, 128), torch.ones(2, 1), codes(3, 128), torch.ones(3, 1))
    with pytest.raises(TypeError, match=r"a is torch\.float32"):
        reference.fp8_gemm(torch.zeros(2, 128), torch.ones(2, 1), codes(3, 128), torch.ones(1, 1))
    with pytest.raises(ValueError, match="a is on cpu and b is on meta"):
        reference.fp8_gemm(codes(2, 128), torch.ones(2, 1), codes(3, 128).to("meta"), torch.ones(1, 1))
