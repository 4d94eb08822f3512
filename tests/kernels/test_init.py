"""The op table: which implementation it picks, and that it needs triton only for CUDA tensors."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsv3 import kernels
from dsv3.kernels import grouped_gemm, reference

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> None:
    """Runs `code` in a fresh interpreter: what this process has imported by now must not count."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


EVERY_OP = """
import torch
from dsv3 import kernels

q, s = kernels.act_quant(torch.randn(4, 200))
w, w_s = kernels.weight_quant(torch.randn(3, 130, 200), scale_fmt="ue8m0")
assert kernels.weight_dequant(w, w_s).shape == (3, 130, 200)
assert kernels.fp8_gemm(q, s, w[0], w_s[0]).shape == (4, 130)
assert kernels.fp8_linear(torch.randn(2, 2, 200), w[0], w_s[0]).shape == (2, 2, 130)
assert kernels.linear(torch.randn(4, 8), torch.randn(16, 8)).shape == (4, 16)
counts = torch.tensor([1, 0, 3])
assert kernels.fp8_grouped_linear(torch.randn(4, 200), w, w_s, counts).shape == (4, 130)
assert kernels.grouped_linear(torch.randn(4, 8), torch.randn(3, 16, 8), counts).shape == (4, 16)
"""


def test_everything_works_where_triton_is_absent():
    run_python(
        "import sys\n"
        "sys.modules['triton'] = None  # importing it now raises ImportError\n"
        f"{EVERY_OP}\n"
        "assert not kernels.triton_available()\n"
        "try:\n"
        "    kernels.act_quant(torch.randn(4, 128), backend='triton')\n"
        "except ValueError as error:\n"
        "    assert 'triton cannot be imported' in str(error)\n"
        "else:\n"
        "    raise AssertionError('backend=triton was accepted')\n"
    )


def test_cpu_tensors_never_load_the_kernels():
    run_python(
        f"{EVERY_OP}\n"
        "import sys\n"
        "kernels_of_gpus = {'dsv3.kernels.' + name for name in ('quant', 'dense', 'gemm')}\n"
        "assert not kernels_of_gpus & set(sys.modules)\n"
    )


def test_the_table_gives_the_reference_on_cpu():
    x, w, counts = torch.randn(4, 200), torch.randn(3, 130, 200), torch.tensor([1, 0, 3])
    q, s = kernels.act_quant(x, scale_fmt="ue8m0")
    assert torch.equal(s, reference.act_quant(x, scale_fmt="ue8m0")[1])
    w_q, w_s = kernels.weight_quant(w)
    assert torch.equal(w_s, reference.weight_quant(w)[1])
    assert torch.equal(kernels.weight_dequant(w_q, w_s), reference.weight_dequant(w_q, w_s))
    assert torch.equal(kernels.fp8_gemm(q, s, w_q[0], w_s[0]), reference.fp8_gemm(q, s, w_q[0], w_s[0]))
    grouped = kernels.fp8_grouped_linear(x, w_q, w_s, counts)
    assert torch.equal(grouped, grouped_gemm.fp8_grouped_linear(x, w_q, w_s, counts))


def test_linear_is_torchs_own_where_a_gradient_is_needed():
    x = torch.randn(1, 8, dtype=torch.bfloat16, requires_grad=True)
    w = torch.randn(4, 8, dtype=torch.bfloat16)
    y = kernels.linear(x, w, backend="triton")
    y.sum().backward()
    assert torch.equal(y, torch.nn.functional.linear(x, w))
    assert x.grad is not None


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend is 'cuda'; expected None, 'reference' or 'triton'"):
        kernels.act_quant(torch.randn(4, 128), backend="cuda")  # pyright: ignore[reportArgumentType]


@pytest.mark.gpu
def test_the_table_gives_triton_on_a_recent_gpu(monkeypatch):
    pytest.importorskip("triton")
    from dsv3.kernels import quant

    monkeypatch.setattr(quant, "act_quant", lambda *_: "triton")
    x = torch.randn(4, 128, device="cuda")
    expected_triton = torch.cuda.get_device_capability() >= (8, 9)
    assert (kernels.act_quant(x) == "triton") == expected_triton
    assert kernels.act_quant(x, backend="reference") != "triton"
