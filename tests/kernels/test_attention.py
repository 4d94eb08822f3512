"""MLA decoding on pages against its statement in torch; on a GPU, or in the interpreter (test_interpreted)."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsv3 import kernels
from dsv3.kernels import attention
from tests.gpu import never_waiting
from tests.kernels.tolerances import ATTENTION_BF16, ATTENTION_FP32, worst_row_error

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

if INTERPRETED:
    from tests import interpreter_shim

    interpreter_shim.install()
else:
    pytestmark = pytest.mark.gpu


def inputs(lens: list[int], S: int, H: int, C: int, R: int, page_size: int, spare: int, dtype: torch.dtype):
    """Sequences in random pages of a cache that is NaN wherever nobody wrote; queries that are views."""
    B, pages = len(lens), max(1, *(-(-n // page_size) for n in lens)) + spare
    order = torch.randperm(B * pages)
    table = order.view(B, pages).to(torch.int32)
    latents = torch.full((B * pages * page_size, C + R), float("nan"))
    for b, n in enumerate(lens):
        places = torch.arange(n)
        latents[table[b, places // page_size].long() * page_size + places % page_size] = torch.randn(n, C + R)
    q = torch.randn(H, B * S, C).transpose(0, 1)
    q_pe = torch.randn(B * S, H, R + 3)[..., 3:]
    kv_lens = torch.tensor(lens, dtype=torch.int32)
    return [*(x.to(DEVICE, dtype) for x in (q, q_pe, latents)), table.to(DEVICE), kv_lens.to(DEVICE)]


def attend(
    lens: list[int], S: int, H: int, C: int, R: int, page_size: int, spare: int, dtype: torch.dtype, shape=None,
    in_fp8: bool = False,
):  # fmt: skip
    """Result and expectation; `shape` None: as the op table has it."""
    tensors, options = inputs(lens, S, H, C, R, page_size, spare, dtype), {"page_size": page_size}
    if in_fp8:
        latents = tensors[2].float()
        tensors[2] = kernels.pack_latents(latents[:, :C], latents[:, C:])
    options["scale"] = (C + R) ** -0.5
    if shape is None:
        got = kernels.latent_attention(*tensors, **options, backend="triton")
    else:
        got = attention.latent_attention(*tensors, **options, shape=shape)
    assert got.transpose(0, 1).is_contiguous()
    return got, kernels.latent_attention(*tensors, **options, backend="reference")


CASES = [
    ([520], 1, 16, 512, 64, 64),
    ([1, 64, 65, 0], 1, 16, 32, 16, 64),
    ([130, 3], 1, 5, 20, 12, 8),
    ([77, 200], 2, 128, 64, 16, 64),
    ([9, 150, 64], 8, 3, 16, 16, 16),
]


@pytest.mark.parametrize(("lens", "S", "H", "C", "R", "page_size"), CASES)
@pytest.mark.parametrize("spare", [0, 40])
def test_equals_the_statement(lens, S, H, C, R, page_size, spare):
    got, expected = attend(lens, S, H, C, R, page_size, spare, torch.bfloat16)
    assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16


@pytest.mark.parametrize(
    ("block_x", "block_l", "splits", "page_size"),
    [(16, 64, 7, 64), (16, 32, 2, 64), (16, 32, 1, 8), (32, 64, 2, 16), (64, 32, 7, 16), (64, 64, 1, 64)],
)
def test_every_cut(block_x, block_l, splits, page_size):
    shape = attention.Shape(block_x, block_l, splits, warps=4 if block_x == 16 else 8, stages=2)
    got, expected = attend([200, 2, 0, 65], 3, 11, 64, 16, page_size, 1, torch.bfloat16, shape)
    assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16


@pytest.mark.parametrize(
    ("C", "R", "splits", "page_size", "block_l"),
    [(512, 64, 2, 64, 32), (128, 32, 1, 16, 64), (20, 6, 3, 64, 64), (200, 16, 1, 8, 32)],
)
def test_a_cache_in_fp8(C, R, splits, page_size, block_l):
    shape = attention.Shape(16, block_l, splits, warps=4, stages=2)
    got, expected = attend([100, 0, 65, 3], 2, 5, C, R, page_size, 1, torch.bfloat16, shape, in_fp8=True)
    assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16


def test_the_op_table_reads_a_cache_in_fp8():
    got, expected = attend([130], 1, 16, 128, 32, 64, 0, torch.bfloat16, in_fp8=True)
    assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16


def test_a_sequence_does_not_depend_on_its_neighbours():
    q, q_pe, latents, table, lens = inputs([300, 100, 40], 2, 4, 32, 16, 16, 0, torch.bfloat16)
    options = {"page_size": 16, "scale": 0.2, "backend": "triton"}
    before = kernels.latent_attention(q, q_pe, latents, table, lens, **options)
    lens[1:] = torch.tensor([7, 0])
    after = kernels.latent_attention(q, q_pe, latents, table, lens, **options)
    assert torch.equal(after[:2], before[:2])
    assert not torch.equal(after[2:4], before[2:4])
    assert (after[4:] == 0).all()


@pytest.mark.parametrize(("B", "rows"), [(1, 16), (1, 128), (7, 48), (64, 16), (300, 16), (128, 1024)])
@pytest.mark.parametrize("context", [1, 64, 4096, 163840])
@pytest.mark.parametrize("hopper", [False, True])
def test_splits_fill_the_gpu_and_each_may_have_a_tile(B, rows, context, hopper):
    shape = attention.choose_shape(B, rows, context, 132, hopper)
    tiles = -(-context // shape.block_l)
    assert 1 <= shape.splits <= tiles
    programs = B * -(-rows // shape.block_x)
    assert shape.splits == 1 or programs * shape.splits <= 2 * 132
    assert tiles == 1 or programs * (shape.splits + 1) > 132 or shape.splits in (tiles, attention.MAX_SPLITS)


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_any_lengths(data: st.DataObject):
    S, H = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    lens = data.draw(st.lists(st.sampled_from([0, S, S + 1, 63 + S, 100, 129]), min_size=1, max_size=4))
    page_size = data.draw(st.sampled_from([1, 16, 64, 128]))
    # On a GPU the tensor cores would take FP32 as TF32; the model's caches are BF16.
    dtype, tolerance = (torch.float32, ATTENTION_FP32) if INTERPRETED else (torch.bfloat16, ATTENTION_BF16)
    splits = data.draw(st.integers(1, 5))
    shape = attention.choose_shape(len(lens), S * H, 1000, 132)._replace(splits=splits)
    got, expected = attend(lens, S, H, 16, 16, page_size, data.draw(st.integers(0, 3)), dtype, shape)
    assert worst_row_error(got.float(), expected.float()) <= tolerance


def test_no_tokens():
    empty = torch.empty(0, 4, 16, device=DEVICE)
    lens, table = torch.zeros(0, dtype=torch.int32, device=DEVICE), torch.zeros(0, 2, dtype=torch.int32, device=DEVICE)
    latents = torch.zeros(8, 32, device=DEVICE)
    assert kernels.latent_attention(
        empty, empty, latents, table, lens, page_size=4, scale=1.0, backend="triton"
    ).shape == (0, 4, 16)


if not INTERPRETED:  # too large for it

    @pytest.mark.parametrize(
        ("lens", "S", "H", "splits", "page_size"),
        [
            ([1], 1, 1, 1, 64),
            ([4096, 4095, 130], 1, 128, 3, 64),
            ([520, 0, 64, 65], 1, 16, 1, 128),
            ([700, 2, 9, 0], 8, 16, 4, 64),
            ([300, 1000], 3, 50, 20, 192),
        ],
    )
    def test_on_hopper(lens, S, H, splits, page_size):
        if torch.cuda.get_device_capability()[0] != 9:
            pytest.skip("needs Hopper's instructions")
        shape = attention.Shape(64, 64, splits, warps=16, stages=1, hopper=True)
        got, expected = attend(lens, S, H, 512, 64, page_size, 1, torch.bfloat16, shape)
        assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16

    @pytest.mark.parametrize(("B", "S", "H", "context"), [(1, 1, 16, 4096), (4, 2, 128, 1000), (64, 1, 16, 520)])
    def test_real_shapes(B, S, H, context):
        got, expected = attend([context - 7 * b for b in range(B)], S, H, 512, 64, 64, 3, torch.bfloat16)
        assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16

    @pytest.mark.parametrize("S", [1, 4])
    def test_a_recorded_step_serves_all_lengths(S):
        lens = [700, 64, 1]
        q, q_pe, latents, table, lens_B = inputs(lens, S, 16, 512, 64, 64, 2, torch.bfloat16)
        options = {"page_size": 64, "scale": 0.05}
        kernels.latent_attention(q, q_pe, latents, table, lens_B, **options)  # compiles
        graph = torch.cuda.CUDAGraph()
        with never_waiting(), torch.cuda.graph(graph):
            got = kernels.latent_attention(q, q_pe, latents, table, lens_B, **options)
        for new in (lens, [699, 0, 1], [1, 30, 0]):
            lens_B.copy_(torch.tensor(new))
            graph.replay()
            expected = kernels.latent_attention(q, q_pe, latents, table, lens_B, **options, backend="reference")
            assert worst_row_error(got.float(), expected.float()) <= ATTENTION_BF16
