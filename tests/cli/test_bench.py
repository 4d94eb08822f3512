"""`dsv3 bench` without a GPU, and with small scripts in the place of the benchmarks."""

import json
from pathlib import Path

import pytest
import torch

from dsv3.cli import bench

SCRIPT = """
import json, pathlib, sys
name = pathlib.Path(__file__).stem
print("table of", name)
results = pathlib.Path(__file__).parent / "results"
results.mkdir(exist_ok=True)
(results / f"{name}.H100.json").write_text(json.dumps([{"name": name}]))
sys.exit(name == "moe_decode")
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(bench, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(bench, "_check_device", lambda: None)
    for name in bench.SUITES["kernels"]:
        (tmp_path / f"{name}.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(run) -> None:
    result = run("bench", "kernels")
    assert result.code == 1
    assert "need a CUDA GPU" in result.err
    assert result.err.count("\n") == 1


def test_every_suite_names_scripts_that_exist() -> None:
    for suite in bench.SUITES.values():
        for name in suite:
            assert (bench.BENCHMARKS / f"{name}.py").is_file()


@pytest.mark.parametrize("arguments", [[], ["kernels", "--only", "nothing"], ["kernels", "--only", "model_decode"]])
def test_a_wrong_request_exits_with_two(run, arguments: list[str]) -> None:
    assert run("bench", *arguments).code == 2


def test_rows_of_every_script_go_to_one_file(run, scripts: Path) -> None:
    target = scripts / "all.json"
    assert run("bench", "kernels", "--only", "fp8_gemm", "--json", target).code == 0
    assert json.loads(target.read_text(encoding="utf-8")) == [{"name": "fp8_gemm"}]


def test_a_script_that_fails_is_named_and_the_others_still_run(run, scripts: Path) -> None:
    target = scripts / "all.json"
    result = run("bench", "kernels", "--json", target)
    assert result.code == 1
    assert "moe_decode failed" in result.err
    assert {"name": "fp8_gemm"} in json.loads(target.read_text(encoding="utf-8"))


def test_a_package_without_benchmarks_says_where_they_are(run, scripts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BENCHMARKS", scripts / "absent")
    result = run("bench", "kernels")
    assert result.code == 1
    assert "from a clone" in result.err
