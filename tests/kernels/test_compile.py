"""Every Triton kernel compiles for Hopper (sm_90) on a machine without a GPU, with each tile the tuner may choose."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter is on, and nothing compiles then", allow_module_level=True)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dsv3.kernels import attention, fused, gemm, quant

HOPPER = GPUTarget("cuda", 90, 32)


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """Compiled files of an earlier run would hide an error, and these would stay in the user's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def ptx(kernel, signature: dict[str, str], constants: dict[str, object], **options: int) -> str:
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    assert set(signature) == set(kernel.arg_names)
    signature = {name: signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=HOPPER, options=options).asm["ptx"]


@pytest.mark.parametrize(("dtype", "ue8m0"), [("bf16", False), ("fp32", True)])
def test_quantisation_divides_exactly_and_converts_to_e4m3(dtype, ue8m0):
    act = ptx(
        quant._act_quant_kernel,
        {"x_ptr": f"*{dtype}", "q_ptr": "*fp8e4nv", "s_ptr": "*fp32", "n_rows": "i32", "n_cols": "i32"},
        {"ROWS": 16, "BLOCK": 128, "UE8M0": ue8m0, "OVERLAP": True},
    )
    weight = ptx(
        quant._weight_quant_kernel,
        {"w_ptr": f"*{dtype}", "q_ptr": "*fp8e4nv", "s_ptr": "*fp32", "n": "i32", "k": "i32"},
        {"BLOCK": 128, "UE8M0": ue8m0},
        num_warps=8,
    )
    for code in (act, weight):
        assert "div.rn.f32" in code
        assert "div.full.f32" not in code
        assert "cvt.rn.satfinite.e4m3x2.f32" in code


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_weight_dequant_compiles(dtype):
    signature = {"q_ptr": "*fp8e4nv", "s_ptr": "*fp32", "w_ptr": f"*{dtype}", "n": "i32", "k": "i32"}
    assert "ld.global" in ptx(quant._weight_dequant_kernel, signature, {"BLOCK": 128}, num_warps=8)


MATRICES = {"a_ptr": "*fp8e4nv", "a_s_ptr": "*fp32", "b_ptr": "*fp8e4nv", "b_s_ptr": "*fp32", "y_ptr": "*bf16"}


def assert_uses_the_tensor_cores(code: str, block_m: int) -> None:
    """Hopper's warp-group instruction takes 64 rows; smaller tiles use the warp's own."""
    assert ("wgmma.mma_async" if block_m >= 64 else "mma.sync") in code


@pytest.mark.parametrize("counts", ["i32", "i64"])
def test_grouped_gemm_compiles(counts):
    config = gemm.gemm_configs(interpreted=False)[0 if counts == "i32" else -1]
    sizes = {"counts_ptr": f"*{counts}", **dict.fromkeys(("n_experts", "n", "k", "m_bucket"), "i32")}
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    constants = {"EXPERTS_POW2": 256, **config.kwargs}
    code = ptx(gemm._fp8_grouped_kernel.fn, {**MATRICES, **sizes}, constants, **options)
    assert_uses_the_tensor_cores(code, config.kwargs["BLOCK_M"])


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 100, 4096, 10**6])
def test_the_tuner_compares_a_few_tiles_for_every_bucket(rows):
    bucket = gemm.row_bucket(rows)
    assert bucket & (bucket - 1) == 0
    assert min(max(rows, 16), 4096) <= bucket <= 4096
    kept = gemm._prune_configs(gemm.gemm_configs(interpreted=False), {"m_bucket": bucket})
    assert 2 <= len(kept) <= 5


def test_the_interpreter_gets_one_configuration():
    assert len(gemm.gemm_configs(interpreted=True)) == 1


@pytest.mark.parametrize(("d", "warps"), [(2048, 4), (7168, 16)])
def test_add_rms_norm_compiles(d, warps):
    pointers = dict.fromkeys(("h_ptr", "x_ptr", "weight_ptr", "sum_ptr", "y_ptr"), "*bf16")
    signature = {**pointers, "d": "i32", "h_stride": "i32", "eps": "fp32"}
    block = triton.next_power_of_2(d)
    assert "rsqrt" in ptx(
        fused._norm_kernel, signature, {"BLOCK": block, "ADD": True, "OVERLAP": True}, num_warps=warps
    )


@pytest.mark.parametrize("slots", ["i32", "i64"])
@pytest.mark.parametrize("in_fp8", [False, True])
def test_rotate_and_cache_compiles(slots, in_fp8):
    integers = ("h", "n_nope", "c", "q_stride_t", "q_stride_h", "kv_stride", "latents_stride", "scales_stride")
    signature = {
        **dict.fromkeys(("q_ptr", "kv_ptr", "weight_ptr", "keys_ptr", "q_pe_ptr"), "*bf16"),
        **dict.fromkeys((*integers, "keys_stride"), "i32"),
        **({"scales_ptr": "*fp32"} if in_fp8 else {}),
        "latents_ptr": "*fp8e4nv" if in_fp8 else "*bf16",
        "turns_ptr": "*fp32",
        "slots_ptr": f"*{slots}",
        "eps": "fp32",
    }
    constants = {"HALF": 32, "HEADS": 16, "BLOCK_C": 512, "BLOCK_HALF": 32, "OVERLAP": True}
    constants |= {} if in_fp8 else {"scales_ptr": None}
    code = ptx(fused._rotate_and_cache_kernel, signature, constants, num_warps=4)
    assert ("cvt.rn.satfinite.e4m3x2.f32" in code) == in_fp8
    assert ("div.rn.f32" in code) == in_fp8


@pytest.mark.parametrize("B", [1, 64])
@pytest.mark.parametrize("heads", [16, 32, 128])
@pytest.mark.parametrize("in_fp8", [False, True])
def test_attention_compiles(B, heads, in_fp8):
    shape = attention.choose_shape(B, heads, 4096, 132, in_fp8=in_fp8)
    integers = ("S", "T", "splits", "q_stride_t", "q_stride_h", "pe_stride_t", "pe_stride_h", "table_stride")
    signature = {
        **dict.fromkeys(("q_ptr", "q_pe_ptr", "keys_ptr", "o_ptr"), "*bf16"),
        **dict.fromkeys(("table_ptr", "lens_ptr"), "*i32"),
        **dict.fromkeys(("parts_ptr", "sums_ptr"), "*fp32" if shape.splits > 1 else "*bf16"),
        **dict.fromkeys(integers, "i32"),
        **({"scales_ptr": "*fp32"} if in_fp8 else {}),
        "latents_ptr": "*fp8e4nv" if in_fp8 else "*bf16",
        "scale": "fp32",
    }
    strides = (656, 164, 328) if in_fp8 else (576, 0, 576)
    constants = dict(zip(("LATENT_STRIDE", "SCALE_STRIDE", "KEY_STRIDE"), strides, strict=True))
    constants |= {"H": heads, "C": 512, "R": 64, "PAGE": 64, "WHOLE": shape.splits == 1, "BLOCK_C": 512, "BLOCK_R": 64}
    constants |= {"BLOCK_X": shape.block_x, "BLOCK_L": shape.block_l, "OVERLAP": True}
    constants |= {} if in_fp8 else {"scales_ptr": None}
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    assert_uses_the_tensor_cores(ptx(attention._attend_kernel, signature, constants, **options), shape.block_x)
