"""The comparison with the dense model: read from two logs, written to one file, rendered as a table."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import ROOT


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """benchmarks/embedded_runs.py, with its file in a directory of the test's own."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import embedded_runs

    monkeypatch.setattr(embedded_runs, "RUNS", tmp_path / "embedded-runs.json")
    return embedded_runs


def log(path: Path, en: float, *, verses: bool = True, final: bool = True) -> str:
    def bits(value: float) -> dict:
        return {"bits_per_byte": {"en": value, "es": value + 0.1, "zh": value + 0.2}}

    records = [{"kind": "eval", "step": 1, **bits(9)}, {"kind": "train", "step": 2, "loss": 3}]
    if final:
        records.append({"kind": "eval", "step": 2, "final": True, **bits(en), "mtp_agreement": 0.5})
    if verses:
        records.append({"kind": "eval", "step": 2, "final": True, "text": "heldout", **bits(en - 0.5)})
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def test_two_logs_become_a_file_and_a_table(runs, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    final, dense = log(tmp_path / "final.jsonl", 1.2), log(tmp_path / "dense.jsonl", 1.25)
    assert runs.main([f"final={final}", f"dense={dense}"]) == 0
    printed = capsys.readouterr().out
    assert "| validation text | en | 1.200 | 1.250 | -0.050 | -4.0% |" in printed
    assert "| held-out verses | zh | 0.900 | 0.950 | -0.050 | -5.3% |" in printed
    written = json.loads(runs.RUNS.read_text(encoding="utf-8"))
    assert written["final"]["step"] == 2
    assert written["final"]["validation"]["mtp_agreement"] == 0.5
    assert runs.main([]) == 0
    assert capsys.readouterr().out == printed


def test_a_text_that_one_run_lacks_is_left_out(runs, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    final, dense = log(tmp_path / "final.jsonl", 1.2), log(tmp_path / "dense.jsonl", 1.25, verses=False)
    assert runs.main([f"final={final}", f"dense={dense}"]) == 0
    assert "held-out" not in capsys.readouterr().out


def test_what_is_missing_is_named(runs, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    unfinished = log(tmp_path / "log.jsonl", 1.2, verses=False, final=False)
    for arguments, message in (
        ([f"final={unfinished}", f"dense={unfinished}"], "log.jsonl has no final evaluation"),
        (["final=x"], "expected final=LOG and dense=LOG"),
        ([], "embedded-runs.json"),
    ):
        assert runs.main(arguments) == 1
        assert message in capsys.readouterr().err
    assert not runs.RUNS.exists()
