"""The import rules that pyproject.toml's contracts cannot state: what is loaded at run time, and torch.distributed.

import-linter sees other packages by their top-level name only, and reads files rather than running them.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dsv3"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imported_names(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file: ``from torch import distributed`` included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter, so that nothing this process has loaded counts."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_only_parallel_and_the_executors_use_torch_distributed():
    users = {
        path.relative_to(PACKAGE).parts[0]
        for path in SOURCES
        if any(name.startswith("torch.distributed") for name in imported_names(path))
    }
    assert users <= {"parallel", "train"}


def test_no_environment_variable_is_read_below_the_command_line():
    allowed = {"cli", "parallel"}
    readers = {
        path.relative_to(PACKAGE).parts[0]
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in {"environ", "getenv"}
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    assert readers <= allowed


@pytest.mark.parametrize("module", ["dsv3", "dsv3.config", "dsv3.errors", "dsv3.cost", "dsv3.cli"])
def test_light_modules_load_no_torch(module):
    heavy = {"torch", "triton", "matplotlib", "transformers", "tokenizers", "safetensors"}
    loaded = run_python(f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})").split()
    assert module.split(".")[0] in loaded
    assert not heavy & set(loaded)


def test_the_engine_loads_neither_triton_nor_matplotlib_nor_transformers():
    loaded = run_python("import sys, dsv3; dsv3.LLM, dsv3.load; print(*sys.modules)").split()
    assert "torch" in loaded
    assert not {"matplotlib", "transformers", "IPython", "ipywidgets", "polib"} & set(loaded)
    assert not [name for name in loaded if re.match(r"dsv3\.(viz|learn)\b", name)]


def test_the_walkthroughs_helpers_load_what_they_need_when_they_need_it():
    loaded = run_python("import sys, dsv3.learn; print(*sys.modules)").split()
    assert not {"torch", "matplotlib", "ipywidgets", "IPython", "polib"} & set(loaded)
    loaded = run_python("import sys, dsv3.learn.labels; print(*sys.modules)").split()
    assert not {"ipywidgets", "IPython", "nbformat", "nbclient"} & set(loaded)


def test_everything_but_the_gpu_kernels_works_without_triton():
    # A None in sys.modules makes every `import triton` fail as if it were not installed.
    code = """
import importlib, pkgutil, sys
sys.modules["triton"] = None
import torch, dsv3, dsv3.kernels
for module in pkgutil.walk_packages(dsv3.__path__, "dsv3."):
    if not module.name.startswith("dsv3.kernels.") and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
values, scales = dsv3.kernels.act_quant(torch.ones(2, 256))
print(values.shape, scales.shape)
"""
    assert run_python(code).strip() == "torch.Size([2, 256]) torch.Size([2, 2])"
