"""Linear in FP32, BF16 and FP8. The FP8 product itself is tested in tests/kernels; here, what the layer makes of it."""

import pytest
import torch

from dsv3 import kernels
from dsv3.config import BLOCK
from dsv3.errors import ConfigError
from dsv3.layers.linear import FP8, Linear, RowParallelLinear, blocks, column_parallel
from dsv3.parallel.group import Group
from tests.model_helpers import assert_close, randomise, relative_error

# Rounding to e4m3 (three stored bits) moves a value by at most 2^-4 of itself, by 2.6% in the root mean square. Terms
# of a dot product err independently, so the relative error of a result stays the same: 2.6% for one rounded factor.
FP8_TOLERANCE = 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_weights_multiply(dtype: torch.dtype) -> None:
    linear = Linear(24, 10, dtype=dtype)
    randomise(linear)
    x = torch.randn(2, 3, 24, dtype=dtype)
    y = linear(x)
    assert y.dtype == dtype
    assert_close(y, x.double() @ linear.weight.double().T, 1e-6 if dtype == torch.float32 else 2**-8)
    assert linear.scale is None
    assert linear.dequantised(dtype).data_ptr() == linear.weight.data_ptr()


@pytest.mark.parametrize("shape", [(256, 128), (200, 130), (1, 1), (64, 344)], ids=str)
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_fp8_equals_the_product_of_what_was_stored(shape: tuple[int, int], scale_fmt: str | None) -> None:
    n, k = shape  # 344 = 2 * 128 + 88: the last block is partial as 10944's is
    linear = Linear(k, n, dtype=FP8, scale_fmt=scale_fmt)
    randomise(linear)
    assert linear.scale is not None
    assert linear.scale.shape == (blocks(n), blocks(k)) == (-(-n // 128), -(-k // 128))
    x = torch.randn(2, 3, k) * torch.logspace(-2, 2, k)
    codes, scale = kernels.act_quant(x, BLOCK, scale_fmt)
    columns = torch.arange(k) // BLOCK
    x_stored = codes.double() * scale.double()[..., columns]
    w_stored = linear.weight.double() * linear.scale.double()[torch.arange(n) // BLOCK][:, columns]
    y = linear(x)
    assert y.shape == (2, 3, n)
    assert_close(y, x_stored @ w_stored.T, 1e-5)  # FP32 accumulation of exact products
    assert_close(linear.dequantised(torch.float32), w_stored, 1e-6)
    assert relative_error(y, x.double() @ w_stored.T) < FP8_TOLERANCE


def test_fp8_scales_restore_blocks_of_any_size() -> None:
    values = torch.randn(256, 256)
    values[:128, 128:] *= 1e3
    values[128:, :128] *= 1e-3
    linear = Linear(256, 256, dtype=FP8)
    codes, scale = kernels.weight_quant(values)
    linear.weight.data.copy_(codes)
    linear.scale.data.copy_(scale)  # type: ignore[union-attr]
    for rows in (slice(0, 128), slice(128, 256)):
        for columns in (slice(0, 128), slice(128, 256)):
            restored = linear.dequantised(torch.float32)[rows, columns]
            assert relative_error(restored, values[rows, columns]) < FP8_TOLERANCE


def test_scale_fmt_changes_the_scales_of_x() -> None:
    linear = Linear(128, 128, dtype=FP8)
    randomise(linear)
    x = torch.randn(4, 128)
    plain = linear(x)
    linear.scale_fmt = "ue8m0"
    assert relative_error(linear(x), plain) > 1e-3


def test_output_keeps_the_type_of_x() -> None:
    linear = Linear(128, 8, dtype=FP8)
    randomise(linear)
    for dtype in (torch.float32, torch.bfloat16):
        assert linear(torch.randn(2, 128, dtype=dtype)).dtype == dtype


def test_fp8_weights_are_not_trained() -> None:
    assert not any(p.requires_grad for p in Linear(128, 8, dtype=FP8).parameters())
    assert all(p.requires_grad for p in Linear(128, 8, dtype=torch.bfloat16).parameters())


def test_slices_of_a_rank() -> None:
    group = Group(rank=1, size=2)
    column = column_parallel(24, 10, dtype=torch.float32, tp=group)
    row = RowParallelLinear(24, 10, dtype=torch.float32, tp=group)
    assert column.weight.shape == (5, 24)
    assert row.weight.shape == (10, 12)


def test_a_rank_never_cuts_through_a_scale_block() -> None:
    group = Group(rank=0, size=2)
    fp8 = column_parallel(128, 512, dtype=FP8, tp=group)
    assert fp8.scale is not None
    assert fp8.scale.shape == (2, 1)
    with pytest.raises(ConfigError, match="out_features = 10944 over 2 ranks is 5472 each, which cuts through an FP8"):
        column_parallel(128, 10944, dtype=FP8, tp=group)
    with pytest.raises(ConfigError, match="in_features = 128 over 2 ranks is 64 each"):
        RowParallelLinear(128, 10, dtype=FP8, tp=group)
    column_parallel(128, 10944, dtype=torch.bfloat16, tp=group)  # without blocks there is nothing to cut
    column_parallel(128, 10944, dtype=FP8, tp=Group())
