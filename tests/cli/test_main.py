"""The frame around the subcommands: exit codes, errors without a traceback, what is imported, how a run ends early."""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dsv3
from dsv3 import cli
from dsv3.cli.configs import load_config, named_configs
from dsv3.errors import ConfigError

from .conftest import ENVIRONMENT, command, run_process


def test_help_lists_every_command(run) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(name in result.out for name in cli.COMMANDS)


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_explains_itself(run, name: str) -> None:
    result = run(name, "--help")
    assert result.code == 0
    assert "--debug" in result.out


@pytest.mark.parametrize(
    "arguments", [[], ["converse"], ["cost"], ["cost", "config_16B", "--context", "0"], ["generate", "--dtype", "int3"]]
)
def test_a_wrong_command_line_exits_with_two(run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert "error" in result.err


def test_a_failure_is_one_line_and_exits_with_one(run, tmp_path: Path) -> None:
    result = run("generate", "x", "--ckpt-path", tmp_path / "absent")
    assert result.code == 1
    assert result.err.startswith("dsv3: error: ")
    assert result.err.count("\n") == 1


def test_debug_shows_the_traceback(run, tmp_path: Path) -> None:
    result = run("generate", "x", "--debug", "--ckpt-path", tmp_path / "absent")
    assert result.code == 1
    assert "Traceback" in result.err
    assert "dsv3: error: " in result.err


def test_version_names_what_it_runs_on(run) -> None:
    result = run("version")
    assert result.code == 0
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert rows["dsv3"] == dsv3.__version__
    assert {"python", "torch", "triton", "device"} <= rows.keys()


def test_python_m_dsv3_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "dsv3", "version"], capture_output=True, text=True, check=True)
    assert dsv3.__version__ in done.stdout


def test_names_of_configurations_and_paths_both_work(tmp_path: Path) -> None:
    assert {"config_16B", "config_236B", "config_671B", "config_v3.1", "config_tiny"} <= named_configs().keys()
    path = named_configs()["config_671B"]
    assert load_config("config_671B") == load_config("config_671B.json") == load_config(str(path))
    (tmp_path / "config.json").write_bytes(path.read_bytes())
    assert load_config(str(tmp_path)) == load_config("config_671B")
    with pytest.raises(ConfigError, match=r"'config_17B'.*config_16B"):
        load_config("config_17B")


def test_a_reader_that_leaves_early_ends_the_run_quietly() -> None:
    # A line-buffered stdout meets the closed end in the write itself, not only in the last flush.
    process = subprocess.Popen(
        command("cost", *["config_671B"] * 2, "--json", before="import os, sys; sys.stdout = os.fdopen(1, 'w', 1)"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == cli.PIPE_CLOSED
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_exits_with_130(checkpoint: Path) -> None:
    process = subprocess.Popen(
        # 100 tokens one by one, each held up, so that the interrupt arrives in the middle of the answer.
        command(
            *("generate", "once", "--ckpt-path", checkpoint, "--max-new-tokens", 100),
            before="import time\nfrom dsv3.engine.engine import Engine\nstep = Engine.step\n"
            "Engine.step = lambda self: (time.sleep(0.2), step(self))[1]",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)  # the answer has begun
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == cli.INTERRUPTED
    assert b"Traceback" not in errors


def test_cost_and_version_need_no_torch() -> None:
    for arguments in (["cost", "config_16B", "config_671B"], ["--help"], ["generate", "--help"]):
        result = run_process(*arguments, before="import sys; sys.modules['torch'] = None")
        assert result.code == 0, result.err
    result = run_process("generate", "x", "--top-p", "7", before="import sys; sys.modules['torch'] = None")
    assert result.code == 2, "a bad value is refused before torch is needed"


@pytest.mark.skipif(sys.platform == "win32", reason="closing a stream in a POSIX shell")
@pytest.mark.parametrize(("closed", "code"), [("<&-", 2), (">&-", 0), ("2>&-", 2)])
def test_closed_streams_are_no_crash(closed: str, code: int) -> None:
    line = shlex.join(command(*(["version"] if code == 0 else ["generate"])))
    done = subprocess.run(
        f"{line} {closed}", shell=True, input=b"", capture_output=True, env=ENVIRONMENT, timeout=60, check=False
    )
    assert done.returncode == code
    assert b"Traceback" not in done.stderr


def test_a_number_beyond_every_index_is_a_usage_error(run) -> None:
    result = run("cost", "config_16B", "--context", "9" * 400)
    assert result.code == 2
    assert "too large" in result.err
