"""Rows, tables and the page made from them; the CPU benchmark itself on a small random model."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import ROOT, write_small_checkpoint

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def common(monkeypatch: pytest.MonkeyPatch):
    """benchmarks/common.py, imported as the scripts beside it do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import common

    return common


@pytest.fixture
def render(common):
    import render

    return render


@pytest.fixture
def setting(common):
    return common.Setting(name="speed", device="a CPU", versions={"torch": "2.13"}, commit="abc", date="2026-01-02")


def test_ratio_above_one_means_better_in_both_directions(common, setting) -> None:
    ours, peer = common.Samples.of([30, 20, 25]), common.Samples.of([10])
    faster = setting.row("decode", ours, "tokens/s", "higher", peer="p", peer_samples=peer, limit=100.0)
    assert (faster.ours, faster.ours_spread, faster.ratio, faster.share) == (25, 0.2, 2.5, 0.25)
    slower = setting.row("first token", ours, "s", "lower", peer="p", peer_samples=peer)
    assert (slower.ratio, slower.share) == (0.4, None)


def test_page_is_filled_between_the_markers_only(common, render, setting) -> None:
    page = "before\n<!-- results: speed -->\nold\n<!-- end -->\nafter\n"
    rows = [setting.row("decode, batch 1", common.Samples.of([1234.0]), "tokens/s", "higher")]
    new = render.render(page, {"speed": [rows]})
    assert new.startswith("before\n<!-- results: speed -->\na CPU; torch 2.13; commit abc, 2026-01-02\n\n| case")
    assert new.endswith("|\n<!-- end -->\nafter\n")
    assert "1,234 ± 0%" in new
    assert "old" not in new
    assert render.render(new, {"speed": [rows]}) == new
    assert render.NOT_MEASURED in render.render(new, {})


def test_agreement_and_acceptance_are_shown(common, render, setting) -> None:
    notes = {"batch": 8, "equal_sequences": 7, "sequences": 8}
    rows = [
        setting.row("decode", common.Samples.of([2.0]), "tokens/s", "higher", notes=notes),
        setting.row("with MTP", common.Samples.of([3.0]), "tokens/s", "higher", notes=notes | {"acceptance": 0.625}),
    ]
    text = render.section(rows)
    assert "7 of 8 generated sequences equal" in text, "rows of one batch count once"
    assert "with MTP (62% of drafts accepted)" in text


def test_a_result_without_a_marker_is_an_error(render, setting, common) -> None:
    rows = [setting.row("x", common.Samples.of([1.0]), "s", "lower")]
    with pytest.raises(ValueError, match="no marker for hidden"):
        render.render("no markers", {"hidden": [rows]})


def test_rows_survive_the_file(common, render, setting, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    rows = [setting.row("x", common.Samples.of([1.0, 3.0]), "s", "lower", notes={"batch": 1})]
    path = common.write(rows, "speed", "cpu2")
    assert path.name == "speed.cpu2.json"
    assert [path] == list(tmp_path.iterdir())
    ((read,),) = render.read_results(tmp_path).values()
    assert [dataclasses.asdict(row) for row in read] == [dataclasses.asdict(row) for row in rows]


def test_the_page_is_what_the_results_say() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "render.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_cpu_decode_compares_both_sides_on_equal_tokens(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    arguments = "--dry-run --threads 1 --batch 1 2 --prompt 12 --new 6 --repetitions 1".split()
    done = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "cpu_decode.py"),
            "--ckpt-path",
            str(write_small_checkpoint(tmp_path)),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "batch 1: 1 of 1 sequences equal" in done.stderr
    assert "batch 2: 2 of 2 sequences equal" in done.stderr
    for case in ("decode", "decode with MTP speculation", "prefill of 12", "time to first token"):
        assert f"| {case}, batch 2" in done.stdout
