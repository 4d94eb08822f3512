"""MLA decoding on pages against its statement in torch; on a GPU, or in the interpreter (test_interpreted)."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3 import kernels
from tests.kernels.tolerances import ATTENTION_BF16, ATTENTION_FP32, worst_row_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
else:
    pytestmark = pytest.mark.gpu


def attend(lens: list[int], S: int, H: int, C: int, R: int, page_size: int, spare: int, dtype: torch.dtype, **options):
    """Result and expectation for sequences in random pages of a cache that is NaN wherever nobody wrote."""
    B, pages = len(lens), max(1, *(-(-n // page_size) for n in lens)) + spare
    order = torch.randperm(B * pages)
    table = order.view(B, pages).to(torch.int32)
    latents = torch.full((B * pages * page_size, C + R), float("nan"))
    for b, n in enumerate(lens):
        places = torch.arange(n)
        latents[table[b, places // page_size].long() * page_size + places % page_size] = torch.randn(n, C + R)
    q = torch.randn(H, B * S, C).transpose(0, 1)
    q_pe = torch.randn(B * S, H, R + 3)[..., 3:]
    tensors = [x.to(DEVICE, dtype) for x in (q, q_pe, latents)] + [x.to(DEVICE) for x in (table, torch.tensor(lens))]
    got, expected = (
        kernels.latent_attention(*tensors, page_size=page_size, scale=(C + R) ** -0.5, backend=backend)
        for backend in ("triton", "reference")
    )
    assert got.transpose(0, 1).is_contiguous()
    return got, expected


CASES = [
    ([520], 1, 16, 512, 64, 64),
    ([1, 64, 65, 0], 1, 16, 32, 16, 64),
    ([130, 3], 1, 5, 20, 6, 8),
    ([77, 200], 2, 128, 64, 16, 64),
    ([9, 150, 64], 8, 3, 16, 16, 16),
]


@pytest.mark.parametrize(("lens", "S", "H", "C", "R", "page_size"), CASES)
@pytest.mark.parametrize("spare", [0, 40])
def test_equals_the_statement(lens, S, H, C, R, page_size, spare):
    got, expected = attend(lens, S, H, C, R, page_size, spare, torch.bfloat16)
    assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_lengths(data: st.DataObject):
    S, H = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    lens = data.draw(st.lists(st.sampled_from([0, S, S + 1, 63 + S, 100, 129]), min_size=1, max_size=4))
    page_size = data.draw(st.sampled_from([1, 16, 64, 128]))
    # On a GPU the tensor cores would take FP32 as TF32; the model's caches are BF16.
    dtype, tolerance = (torch.float32, ATTENTION_FP32) if INTERPRETED else (torch.bfloat16, ATTENTION_BF16)
    got, expected = attend(lens, S, H, 16, 16, page_size, data.draw(st.integers(0, 3)), dtype)
    assert worst_row_error(got.float(), expected.float()) <= tolerance


def test_no_tokens():
    empty = torch.empty(0, 4, 16, device=DEVICE)
    lens, table = torch.zeros(0, dtype=torch.int32, device=DEVICE), torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)
    latents = torch.zeros(8, 32, device=DEVICE)
    assert kernels.latent_attention(
        empty, empty, latents, table, lens, page_size=4, scale=1.0, backend="triton"
    ).shape == (0, 4, 16)


if not INTERPRETED:  # too large for it

    @pytest.mark.parametrize(("B", "S", "H", "context"), [(1, 1, 16, 4096), (4, 2, 128, 1000), (64, 1, 16, 520)])
    def test_real_shapes(B, S, H, context):
        got, expected = attend([context - 7 * b for b in range(B)], S, H, 512, 64, 64, 3, torch.bfloat16)
        assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16
