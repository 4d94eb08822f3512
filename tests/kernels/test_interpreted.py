"""Runs the tests of the Triton kernels and of the shim under triton's interpreter, in a process of their own.

TRITON_INTERPRET counts when triton is first imported, and it would change torch.compile and every other user of
triton in this process too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


NAMES = [
    "test_triton.py",
    "test_dense.py",
    "test_attention.py",
    "test_fused.py",
    "test_router.py",
    "test_experts.py",
    "test_interpreter_shim.py",
]


@pytest.mark.parametrize("name", NAMES)
def test_in_the_interpreter(name: str, tmp_path: Path):
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [f"--basetemp={tmp_path}", str(ROOT / "tests" / "kernels" / name)]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout, done.stdout[-2000:]
