"""The small fused kernels against what the layers do in torch; on a GPU, or in the interpreter (test_interpreted)."""

import os

import pytest
import torch

from dsv3 import kernels
from dsv3.kernels.latent_bytes import views
from dsv3.layers.rope import rotate
from tests.kernels.tolerances import FUSED_BF16, FUSED_FP32, relative_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
else:
    pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: FUSED_FP32, torch.bfloat16: FUSED_BF16}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


@pytest.mark.parametrize("shape", [(1, 256), (3, 2048), (7, 200), (2, 7168), (0, 64)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_add_rms_norm(shape, dtype):
    h, x, weight = random(*shape, dtype=dtype), 3 * random(*shape, dtype=dtype), random(shape[1], dtype=dtype)
    total, y = kernels.add_rms_norm(h, x, weight, 1e-6, backend="triton")
    expected, y_expected = kernels.add_rms_norm(h, x, weight, 1e-6, backend="reference")
    assert torch.equal(total, expected)
    assert relative_error(y, y_expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rms_norm_of_columns(dtype):
    wide, weight = random(5, 300, dtype=dtype), random(200, dtype=dtype)
    y = kernels.rms_norm(wide[:, :200], weight, 1e-6, backend="triton")
    assert y.is_contiguous()
    assert relative_error(y, kernels.rms_norm(wide[:, :200], weight, 1e-6, backend="reference")) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("T", "H", "N", "R", "C"), [(1, 16, 128, 64, 512), (5, 3, 8, 6, 20), (2, 33, 16, 16, 64)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_rotate_and_cache(T, H, N, R, C, dtype):
    q, kv = random(T, H, N + R, dtype=dtype), random(T, C + R, dtype=dtype)
    weight, angles = random(C, dtype=dtype), random(T, R // 2)
    turns = torch.polar(torch.ones_like(angles), angles)
    cache = torch.full((9, C + R), float("nan"), dtype=dtype, device=DEVICE)
    slots = torch.randperm(9)[:T].to(DEVICE)

    q_pe = kernels.rotate_and_cache(q, kv, weight, 1e-6, torch.view_as_real(turns), cache, slots)

    assert relative_error(q_pe, rotate(q[..., N:], turns.unsqueeze(1))) <= TOLERANCE[dtype]
    written = cache[slots]
    latent = torch.nn.functional.rms_norm(kv[:, :C], (C,), weight, 1e-6)
    assert relative_error(written[:, :C], latent) <= TOLERANCE[dtype]
    assert relative_error(written[:, C:], rotate(kv[:, C:], turns)) <= TOLERANCE[dtype]
    others = torch.ones(9, dtype=torch.bool, device=DEVICE)
    others[slots] = False
    assert cache[others].isnan().all()


@pytest.mark.parametrize(("R", "C"), [(64, 512), (32, 128), (6, 20), (16, 200)])
def test_writes_the_bytes_of_a_cache_in_fp8(R, C):
    T, H = 5, 2
    q, kv, weight = random(T, H, R, dtype=torch.bfloat16), random(T, C + R, dtype=torch.bfloat16), random(C)
    kv[0] = 0  # a block of zeros
    kv[1] *= 1000
    slots, turns = torch.randperm(9)[:T].to(DEVICE), random(T, R // 2, 2)
    numbers = torch.zeros(9, C + R, dtype=torch.bfloat16, device=DEVICE)
    got = torch.full((9, kernels.row_bytes(C, R)), 77, dtype=torch.uint8, device=DEVICE)
    results = [kernels.rotate_and_cache(q, kv, weight, 1e-6, turns, cache, slots) for cache in (numbers, got)]
    assert torch.equal(*results)
    expected = torch.full_like(got, 77)
    expected[slots] = kernels.pack_latents(numbers[slots, :C], numbers[slots, C:])
    for written, wanted in zip(views(got, C, R), views(expected, C, R), strict=True):
        assert torch.equal(*(x.contiguous().view(torch.uint8) for x in (written, wanted)))


def test_no_tokens_write_nothing():
    cache = torch.zeros(4, 20, device=DEVICE)
    q = kernels.rotate_and_cache(
        random(0, 2, 12), random(0, 20), random(16), 1e-6, random(0, 2, 2), cache, torch.zeros(0).long().to(DEVICE)
    )
    assert q.shape == (0, 2, 4)
    assert not cache.any()
