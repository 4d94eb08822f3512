"""Run as a program by test_interrupt.py: a tiny run that is ended by signals again and again, each time resumed.

    python interrupted_runs.py PRESET OUT KILLS

The children are forked from a process that has imported everything but trained nothing, which costs no start.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

from dsv3.cli import main
from dsv3.train import trainer  # noqa: F401 (imported once, for all children)


def start(arguments: list[str], output: Path) -> int:
    """A child that runs ``dsv3 train``; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        with output.open("w") as file, contextlib.redirect_stderr(file), contextlib.redirect_stdout(io.StringIO()):
            try:
                code = main(["train", "--quiet", *arguments])
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def steps_saved(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "states").glob("*.pt"))


def wait_for_a_state(out: Path, pid: int, at_most: float = 60.0) -> None:
    """Until the run has saved one more state, or for so many seconds."""
    known, until = steps_saved(out), time.monotonic() + at_most
    while steps_saved(out) == known and time.monotonic() < until:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the run ended before it had saved a state"
        time.sleep(0.003)


def report() -> None:
    preset, out, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    output = out.with_suffix(".stderr")
    arguments = ["--config", preset, "--out", str(out), "--resume"]
    random.seed(0)
    results = []
    for kill in range(kills):
        pid = start([*arguments, "--save-every", "1"], output)
        if kill % 2:  # in the loop, most of which is saving here
            wait_for_a_state(out, pid)
            time.sleep(random.uniform(0, 0.05))
        else:  # anywhere, the start included
            wait_for_a_state(out, pid, at_most=random.uniform(0, 0.4))
        os.kill(pid, signal.SIGKILL)
        results.append({"code": ended(pid), "said": output.read_text(), "states": steps_saved(out)})
    for number, times in ((signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2)):
        pid = start([*arguments, "--save-every", "3"], output)
        wait_for_a_state(out, pid)
        for _ in range(times):
            os.kill(pid, number)
            time.sleep(0.001)
        results.append({"code": ended(pid), "said": output.read_text(), "states": steps_saved(out)})
    pid = start(arguments, output)
    results.append({"code": ended(pid), "said": output.read_text(), "states": steps_saved(out)})
    print(json.dumps(results))


if __name__ == "__main__":
    report()
