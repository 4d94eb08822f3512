"""The warp-specialised attention: its barriers and indices on threads, its compiled form for sm_90. No GPU needed.

Its numbers on a GPU are cases of test_attention.py."""

import re
import subprocess

import pytest
import torch

from dsv3.kernels import reference
from tests.kernels.test_compile import HOPPER, fresh_cache  # noqa: F401 (skips without triton; the fixture is used)

import triton  # isort: skip (after the skip)

pytest.importorskip("triton.experimental.gluon.language.nvidia.hopper")

from triton.experimental.gluon import language as gl
from triton.experimental.gluon._runtime import GluonASTSource

from dsv3.kernels import attention, attention_hopper
from tests.kernels import gluon_threads
from tests.kernels.tolerances import ATTENTION_FP32, worst_row_error

C, R = attention_hopper.LATENT, attention_hopper.KEY


@pytest.mark.parametrize(
    ("lens", "S", "H", "splits", "page_size"),
    [
        ([64 * 13 + 5], 1, 16, 1, 64),  # the ring goes round several times
        ([1, 0, 64, 65], 1, 5, 1, 128),
        ([300, 0, 2, 700], 3, 50, 2, 64),  # three tiles of query rows
        ([200], 8, 8, 5, 64),  # a split without tokens
    ],
)
def test_partitions_agree_on_every_buffer(lens, S, H, splits, page_size):
    B, pages = len(lens), max(-(-n // page_size) for n in lens) + 1
    table = torch.randperm(B * pages).view(B, pages).to(torch.int32)
    latents = torch.full((B * pages * page_size, C + R), float("nan"))
    for b, n in enumerate(lens):
        places = torch.arange(n)
        latents[table[b, places // page_size].long() * page_size + places % page_size] = torch.randn(n, C + R)
    q, q_pe = torch.randn(B * S, H, C), torch.randn(B * S, H, R)
    kv_lens, T = torch.tensor(lens, dtype=torch.int32), B * S
    o = torch.full((H, T, C), float("nan"))
    parts, sums = torch.full((splits, T * H, C), float("nan")), torch.full((splits, T * H), float("nan"))
    tiles = [gluon_threads.Tiles(latents, (64, width)) for width in (C // 2, R)]
    pointers = [gluon_threads.Pointer(x) for x in (q, q_pe, table, kv_lens, o, parts, sums)]
    strides = [q.stride(0), q.stride(1), q_pe.stride(0), q_pe.stride(1), table.stride(0)]
    scale = (C + R) ** -0.5
    gluon_threads.run(
        attention_hopper._attend_kernel, [], (-(-S * H // 64), splits, B),
        [*pointers[:2], *tiles, *pointers[2:], scale * attention.LOG2E, S, T, splits, *strides],
        H=H, PAGE=page_size, WHOLE=splits == 1, OVERLAP=False,
    )  # fmt: skip
    if splits > 1:  # what _add_splits_kernel does
        shares = torch.exp2(sums - sums.amax(0).clamp_min(-1e30))
        shares = (shares / shares.sum(0).clamp_min(1e-30)).unsqueeze(-1)
        o = torch.where(shares > 0, parts * shares, 0.0).sum(0).view(T, H, C).transpose(0, 1)
    expected = reference.latent_attention(q, q_pe, latents, table, kv_lens, page_size=page_size, scale=scale)
    assert worst_row_error(o.transpose(0, 1), expected) <= ATTENTION_FP32


@pytest.mark.parametrize(("heads", "splits", "page_size"), [(16, 8, 64), (128, 1, 64), (128, 2, 128), (7, 1, 64)])
def test_it_compiles_without_spilling_in_its_loops(heads, splits, page_size, tmp_path):
    def tile_type(columns: int) -> str:
        layout = gl.NVMMASharedLayout.get_default_for([64, columns], gl.bfloat16)
        return f"tensordesc<bf16[64, {columns}],{layout!r}>"

    kernel = attention_hopper._attend_kernel
    integers = ("S", "T", "splits", "q_stride_t", "q_stride_h", "pe_stride_t", "pe_stride_h", "table_stride")
    constants = {"H": heads, "PAGE": page_size, "WHOLE": splits == 1, "OVERLAP": True}
    signature = {
        **dict.fromkeys(("q_ptr", "q_pe_ptr", "o_ptr"), "*bf16"),
        **dict.fromkeys(("parts_ptr", "sums_ptr"), "*fp32" if splits > 1 else "*bf16"),
        **dict.fromkeys(("table_ptr", "lens_ptr"), "*i32"),
        **dict.fromkeys(integers, "i32"),
        **dict.fromkeys(constants, "constexpr"),
        "latent_tiles": tile_type(C // 2),
        "key_tiles": tile_type(R),
        "scale": "fp32",
    }
    signature = {name: signature[name] for name in kernel.arg_names}
    aligned = [name for name in kernel.arg_names if "ptr" in name or ("stride" in name and name != "table_stride")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    options = {"num_warps": 4, "maxnreg": attention_hopper.REGISTERS[0]}
    compiled = triton.compile(
        GluonASTSource(kernel, signature, constants, attrs=attributes), target=HOPPER, options=options
    )
    code = compiled.asm["ptx"]
    assert "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16" in code
    assert "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16" in code
    assert code.count("cp.async.bulk.tensor") == 9  # a tile in pieces of 64 columns
    for registers in attention_hopper.REGISTERS[1:]:
        assert re.search(rf"setmaxnreg\.(inc|dec)\.sync\.aligned\.u32 \t{registers};", code)
    assert compiled.metadata.shared <= 227 * 1024
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    stack = re.findall(r" STACK:(\d+) ", usage)
    assert [int(size) for size in stack if int(size) > 16] == [], usage  # registers that do not fit go there
    assert stack
