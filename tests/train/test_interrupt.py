"""Whatever ends a run, and whenever: the newest state loads, and the resumed run ends with the same bits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dsv3.train import train
from dsv3.train.checkpoint import load_state
from dsv3.train.interrupt import StopRequest
from dsv3.train.log import read_log

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("interrupted_runs.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_again_and_again_ends_like_one_that_was_not(micro_run, tmp_path):
    config = micro_run(total_steps=60, batch_tokens=128, log_every=7)
    whole = train(config, progress=False)

    preset, out, kills = tmp_path / "preset.json", tmp_path / "killed", 10
    preset.write_text(json.dumps(config.to_dict()))
    done = subprocess.run(
        [sys.executable, PROGRAM, preset, out, str(kills)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *runs, interrupted, terminated, twice, last = json.loads(done.stdout)
    assert [run["code"] for run in runs] == [-signal.SIGKILL] * kills, runs
    assert all("rror" not in run["said"] for run in runs)

    for run, name, code in ((interrupted, "SIGINT", 130), (terminated, "SIGTERM", 143)):
        assert run["code"] == code, run
        *_, notice, report = run["said"].splitlines()
        assert notice.startswith(f"{name}: saving after this step")
        assert run["states"][-1] in report
        assert f"stopped by {name}, go on with --resume" in report
        assert "Traceback" not in run["said"]
    assert twice["code"] == 130
    assert "Traceback" not in twice["said"]
    assert "--resume" in twice["said"]

    assert last["code"] == 0, last
    assert not list((out / "states").glob("*.tmp"))
    a, b = load_state(whole.state), load_state(out / "states" / last["states"][-1])
    assert a["step"] == b["step"] == 60
    for part in ("masters", "first", "second"):
        assert all(torch.equal(tensor, b["optimizer"][part][name]) for name, tensor in a["optimizer"][part].items())
    assert all(torch.equal(bias, b["biases"][name]) for name, bias in a["biases"].items())
    steps = [record["step"] for record in read_log(out / "log.jsonl") if record["kind"] == "train"]
    assert steps == list(range(7, 61, 7))
    assert (
        read_log(out / "log.jsonl")[-1]["bits_per_byte"]
        == read_log(Path(config.out) / "log.jsonl")[-1]["bits_per_byte"]
    )


def test_handlers_are_there_only_while_a_run_goes_on():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    stop = StopRequest()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not stop()
    signal.raise_signal(signal.SIGTERM)
    assert stop()
    assert stop.exit_code == 143
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)  # the second
    stop.restore()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_notebook_can_stop_a_run_too(micro_run):
    asked = []

    def stop() -> bool:
        asked.append(True)
        return len(asked) > 3

    result = train(micro_run(), progress=False, stop=stop)
    assert not result.finished
    assert result.steps == 3
    assert load_state(result.state)["step"] == 3
