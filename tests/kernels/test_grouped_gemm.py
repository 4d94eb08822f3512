"""`grouped_linear` and the reference of `fp8_grouped_linear` against one product per row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsv3 import kernels
from dsv3.kernels import grouped_gemm, grouped_linear, reference
from tests.gpu import never_waiting
from tests.kernels.tolerances import FP8_LINEAR, GEMM_BF16, GROUPED_BF16, GROUPED_FP32, relative_error

COUNTS = [
    [3, 0, 5, 2, 0],
    [0, 0, 0, 0, 10],
    [2, 2, 2, 2, 2],
    [0, 0, 0, 0, 0],
    [1, 0, 0, 0, 0],
]


def row_by_row(x_MD: torch.Tensor, w_EFD: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    expert_M = torch.repeat_interleave(torch.arange(len(counts_E), device=counts_E.device), counts_E)
    return torch.einsum("md,mfd->mf", x_MD, w_EFD[expert_M])


def case(counts: list[int], f: int, d: int, device: str = "cpu", dtype: torch.dtype = torch.float32):
    x = torch.randn(sum(counts), d).to(device, dtype).requires_grad_()
    w = torch.randn(len(counts), f, d).to(device, dtype).requires_grad_()
    return x, w, torch.tensor(counts, device=device)


def assert_equal_with_gradients(x, w, counts_E, tolerance: float) -> None:
    y, expected = grouped_linear(x, w, counts_E), row_by_row(x, w, counts_E)
    assert y.dtype == x.dtype
    assert relative_error(y, expected) < tolerance
    for loss in (lambda t: t.sum(), lambda t: t.square().sum()):  # sum() sends back an expanded, strideless gradient
        y, expected = grouped_linear(x, w, counts_E), row_by_row(x.float(), w.float(), counts_E)
        gradients = torch.autograd.grad(loss(y.float()), (x, w))
        for gradient, reference_gradient in zip(gradients, torch.autograd.grad(loss(expected), (x, w)), strict=True):
            assert relative_error(gradient, reference_gradient) < tolerance
    with torch.no_grad():
        inference = grouped_linear(x, w, counts_E)
    assert torch.equal(inference, grouped_linear(x, w, counts_E))


@pytest.mark.parametrize("counts", COUNTS)
def test_equals_row_by_row_with_gradients(counts):
    assert_equal_with_gradients(*case(counts, 16, 24), tolerance=GROUPED_FP32)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 9))
def test_equals_row_by_row_for_any_counts(counts, f, d):
    x, w, counts_E = case(counts, f, d)
    assert relative_error(grouped_linear(x, w, counts_E), row_by_row(x, w, counts_E)) < GROUPED_FP32


def test_only_one_side_needs_a_gradient():
    for frozen in (0, 1):
        x, w, counts_E = case([3, 0, 5], 16, 24)
        (x, w)[frozen].requires_grad_(False)
        grouped_linear(x, w, counts_E).square().sum().backward()
        assert (x, w)[frozen].grad is None
        assert (w, x)[frozen].grad is not None


def test_experts_without_rows_get_zero_gradients():
    x, w, counts_E = case([3, 0, 5], 16, 24)
    grouped_linear(x, w, counts_E).square().sum().backward()
    assert (w.grad[1] == 0).all()
    assert (w.grad[[0, 2]] != 0).any()


def test_no_rows_keep_the_graph():
    x, w, counts_E = case([0, 0], 16, 24)
    y = grouped_linear(x, w, counts_E)
    assert y.shape == (0, 16)
    y.sum().backward()
    assert (w.grad == 0).all()


def test_wrong_arguments_are_refused():
    x, w, counts_E = case([3, 0, 5], 16, 24)
    with pytest.raises(ValueError, match=r"x is \(8, 20\) and w is \(3, 16, 24\)"):
        grouped_linear(x[:, :20], w, counts_E)
    with pytest.raises(ValueError, match="sums to 9"):
        grouped_linear(x, w, torch.tensor([3, 1, 5]))
    with pytest.raises(ValueError, match="smallest -1"):
        grouped_linear(x, w, torch.tensor([4, -1, 5]))
    with pytest.raises(ValueError, match="3 integers, one per expert"):
        grouped_linear(x, w, torch.tensor([3, 5]))
    with pytest.raises(ValueError, match="3 integers, one per expert"):
        grouped_linear(x, w, torch.tensor([3.0, 0.0, 5.0]))
    with pytest.raises(TypeError, match="cast one of them"):
        grouped_linear(x.bfloat16(), w, counts_E)


# --- the path that a GPU takes. torch's grouped_mm runs on the CPU as well, so its arithmetic is tested here ---------


@pytest.mark.parametrize("counts", COUNTS[:3])
@pytest.mark.parametrize(("f", "d"), [(16, 24), (13, 24), (16, 21), (13, 21)])
def test_device_path_equals_the_loop(counts, f, d):
    """Sizes that are not multiples of 8 are padded for the kernel, and their gradients are not."""
    x, w, counts_E = case(counts, f, d, dtype=torch.bfloat16)
    y, expected = grouped_gemm._grouped_on_device(x, w, counts_E), grouped_linear(x, w, counts_E)
    assert y.shape == expected.shape
    assert relative_error(y, expected) < GROUPED_BF16
    for loss in (lambda t: t.sum(), lambda t: t.square().sum()):
        y, expected = grouped_gemm._grouped_on_device(x, w, counts_E), grouped_linear(x, w, counts_E)
        gradients = torch.autograd.grad(loss(y), (x, w))
        for gradient, reference_gradient in zip(gradients, torch.autograd.grad(loss(expected), (x, w)), strict=True):
            assert relative_error(gradient, reference_gradient) < 2 * GROUPED_BF16


@pytest.mark.gpu
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("f", "d"), [(16, 24), (13, 21)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, GROUPED_BF16), (torch.float32, GROUPED_FP32)])
def test_equals_row_by_row_on_a_gpu(counts, f, d, dtype, tolerance):
    assert_equal_with_gradients(*case(counts, f, d, "cuda", dtype), tolerance=tolerance)


@pytest.mark.gpu
def test_bf16_on_a_gpu_never_waits_for_the_host():
    x, w, counts_E = case([3, 0, 5, 2, 0], 64, 128, "cuda", torch.bfloat16)
    grouped_linear(x, w, counts_E).square().sum().backward()  # loads the kernels
    with never_waiting():
        grouped_linear(x, w, counts_E).square().sum().backward()


@pytest.mark.gpu
def test_fp8_on_a_gpu_can_be_captured_and_follows_new_counts():
    """A CUDA graph records no host code: replayed with other counts, it must still find each row's expert."""
    pytest.importorskip("triton")
    x, w, counts_E = case([3, 0, 5, 2, 0], 64, 128, "cuda", torch.bfloat16)
    x, (q, s) = x.detach(), kernels.weight_quant(w.detach())
    kernels.fp8_grouped_linear(x, q, s, counts_E)  # compiles and tunes
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernels.fp8_grouped_linear(x, q, s, counts_E)
    for counts in ([3, 0, 5, 2, 0], [0, 1, 0, 0, 9]):
        counts_E.copy_(torch.tensor(counts))
        graph.replay()
        assert relative_error(y, kernels.fp8_grouped_linear(x, q, s, counts_E, backend="reference")) < GEMM_BF16


# --- FP8 weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_fp8_is_one_fp8_gemm_per_expert(counts, scale_fmt):
    x, w, counts_E = case(counts, 130, 200)
    x = x.detach()
    q, s = reference.weight_quant(w.detach(), scale_fmt=scale_fmt)
    y = grouped_gemm.fp8_grouped_linear(x, q, s, counts_E, scale_fmt)
    assert y.dtype == torch.bfloat16
    assert y.shape == (len(x), 130)
    expert_M = torch.repeat_interleave(torch.arange(len(counts)), counts_E)
    for m, e in enumerate(expert_M.tolist()):
        row = reference.fp8_gemm(*reference.act_quant(x[m : m + 1], scale_fmt=scale_fmt), q[e], s[e])
        assert relative_error(y[m : m + 1], row) < GEMM_BF16
    if len(x):
        assert relative_error(y, row_by_row(x, w.detach(), counts_E)) < FP8_LINEAR


def test_fp8_scales_must_fit_the_weights():
    x, w, counts_E = case([3, 0, 5], 130, 200)
    q, s = reference.weight_quant(w.detach())
    with pytest.raises(ValueError, match=r"need scales of shape \(3, 2, 2\)"):
        grouped_gemm.fp8_grouped_linear(x, q, s[:, :1], counts_E)
