"""The MoE layer's kernels compile for Hopper without a GPU: the real shapes' tiles, within its registers and memory."""

import pytest
import torch

from tests.kernels.test_compile import HOPPER, fresh_cache  # noqa: F401 (the fixture applies here too)

pytest.importorskip("triton", reason="triton is not installed")

import triton
from triton.compiler import ASTSource

from dsv3.kernels import expert_rows, experts, one_token, router

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
SHAPES = [  # T, K, E of config_16B and config_671B
    (1, 6, 64),
    (8, 6, 64),
    (64, 6, 64),
    (256, 6, 64),
    (64, 8, 256),
    (4096, 6, 64),
]


def ptx(kernel, signature: dict[str, str], constants: dict[str, object], **options: int) -> str:
    """As for real tensors: addresses and sizes are multiples of 16, without which nothing is copied asynchronously."""
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    assert signature.keys() <= types.keys()
    constants = {name: constants.get(name) for name, it in types.items() if it == "constexpr"}
    aligned = [it.startswith("*") or name in ("d", "f", "f_shared") for name, it in types.items()]
    attributes = {(i,): [["tt.divisibility", 16]] for i, it in enumerate(aligned) if it}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=HOPPER, options=options).asm["ptx"]


def pointers(kernel, types: dict[str, str]) -> dict[str, str]:
    """Signature of a kernel: pointers by name, integers else; what has no type is a constant."""
    return {name: types[name] for name in kernel.arg_names if name in types}


def types_of_experts(dtype: torch.dtype, quantised_rows: bool, by_order: bool) -> dict[str, str]:
    fp8 = dtype == FP8
    weight = "*fp8e4nv" if fp8 else "*bf16"
    rows = "*fp8e4nv" if quantised_rows else "*bf16"
    types = dict.fromkeys(("w13_ptr", "w1_ptr", "w3_ptr", "w2_ptr", "w2_shared_ptr"), weight)
    types |= {"places_ptr": "*u8", "x_ptr": rows, "y_ptr": "*bf16"}
    types |= dict.fromkeys(("n_tokens", "top_k", "d", "f", "f_shared", "shared_programs"), "i32")
    if fp8:
        names = ("w13_s_ptr", "w1_s_ptr", "w3_s_ptr", "w2_s_ptr", "w2_shared_s_ptr")
        types |= dict.fromkeys(names, "*fp32")
    if quantised_rows:
        types |= dict.fromkeys(("x_s_ptr", "h_s_ptr", "h_shared_s_ptr"), "*fp32")
    if by_order:
        types |= {"order_ptr": "*i32", "tiles_ptr": "*i32"}
    return types


@pytest.mark.parametrize(("T", "K", "E"), SHAPES)
@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_experts_compile(T, K, E, dtype):
    by_order = T > experts.BY_PLACE
    types = types_of_experts(dtype, dtype == FP8, by_order)
    for kernel, tile in zip((experts._gate_up_kernel, experts._down_kernel), experts.choose_tiles(T, K, E, dtype)):
        rows = types["x_ptr"] if kernel is experts._down_kernel else "*bf16"
        signature = pointers(kernel, {**types, "h_ptr": rows, "h_shared_ptr": rows})
        constants = {"FP8": dtype == FP8, "TOKENS": 0 if by_order else max(64, T), "OVERLAP": True}
        constants |= {"EVEN_K": True, **experts._meta(tile)}
        code = ptx(kernel, signature, constants, **experts._launch(tile))
        assert "griddepcontrol.wait" in code
        assert "cp.async" in code
        assert ("wgmma" in code) == (tile.swap or tile.block_m >= 64)


@pytest.mark.parametrize("dtype", [BF16, FP8])
def test_one_token_compiles(dtype):
    weight = "*fp8e4nv" if dtype == FP8 else "*bf16"
    types = types_of_experts(dtype, False, False)
    types |= {
        "h_ptr": "*bf16",
        "indices_ptr": "*i64",
        "weights_ptr": "*fp32",
        "residual_ptr": "*bf16",
        "w2_ptr": weight,
    }
    for kernel, strip in zip(
        (one_token._gate_up_kernel, one_token._down_kernel), one_token.choose_strips(dtype == FP8)
    ):
        signature = pointers(kernel, types)
        meta = one_token._meta(strip)
        warps = meta.pop("num_warps")
        constants = {
            "FP8": dtype == FP8,
            "UE8M0": True,
            "SHARED": True,
            "EVEN": True,
            "K_POW2": 8,
            "OVERLAP": True,
            **meta,
        }
        assert ("cp.async" in ptx(kernel, signature, constants, num_warps=warps)) == (strip.stages > 1)


def test_combine_compiles():
    signature = {"rows_ptr": "*bf16", "weights_ptr": "*fp32", "residual_ptr": "*bf16", "y_ptr": "*bf16"}
    signature |= {"n_tokens": "i32", "d": "i32"}
    constants = {"K": 8, "SHARED": True, "BLOCK": 1024, "OVERLAP": True}
    assert "st.global" in ptx(experts._combine_kernel, signature, constants, num_warps=4)


@pytest.mark.parametrize(("block_t", "block_e", "block_d"), [(16, 16, 128), (32, 32, 64), (64, 64, 64)])
def test_logits_compile(block_t, block_e, block_d):
    signature = {"x_ptr": "*bf16", "w_ptr": "*fp32", "logits_ptr": "*fp32"}
    signature |= dict.fromkeys(("n_tokens", "n_experts", "d", "slice_d"), "i32")
    constants = {"BLOCK_T": block_t, "BLOCK_E": block_e, "BLOCK_D": block_d, "OVERLAP": True}
    code = ptx(router._logits_kernel, signature, constants, num_warps=4, num_stages=3)
    assert ("wgmma" if block_t == 64 else "mma.sync") in code


@pytest.mark.parametrize(("E", "K", "groups", "limited", "sigmoid"), [(64, 6, 1, 1, False), (256, 8, 8, 4, True)])
def test_choice_compiles(E, K, groups, limited, sigmoid):
    signature = {"logits_ptr": "*fp32", "weights_ptr": "*fp32", "indices_ptr": "*i64", "places_ptr": "*u8"}
    signature |= {
        "bias_ptr": "*fp32",
        **dict.fromkeys(("n_tokens", "n_experts", "n_slices"), "i32"),
        "route_scale": "fp32",
    }
    constants = {"TOP_K": K, "GROUPS": groups, "LIMITED": limited, "SIGMOID": sigmoid, "GROUPS_POW2": groups}
    constants |= {"IN_GROUP_POW2": E // groups, "SLICES_POW2": 16, "OVERLAP": True}
    assert "st.global" in ptx(router._choose_kernel, signature, constants, num_warps=1 if E <= 128 else 2)


def test_sort_compiles():
    pointers = {"counts_ptr": "*i32", "order_ptr": "*i32", "tiles_ptr": "*i32", "places_ptr": "*u8"}
    integers = dict.fromkeys(("n_tokens", "top_k", "n_experts", "n_tiles"), "i32")
    constants = {"E_POW2": 256, "BLOCK_M": 128, "CHUNK": 1024, "OVERLAP": True}
    for kernel in (expert_rows._count_kernel, expert_rows._sort_kernel):
        signature = {name: it for name, it in {**pointers, **integers}.items() if name in kernel.arg_names}
        assert "st.global" in ptx(kernel, signature, constants)
