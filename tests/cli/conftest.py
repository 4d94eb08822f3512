"""A small random checkpoint with the embedded model's tokenizer, and the command run in this process or in its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3 import cli
from tests.checkpoints import ROOT, write_small_checkpoint

CHAT_TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"

Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3-shaped model with random weights, an MTP module, and no chat template."""
    return write_small_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def chat_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    directory = tmp_path_factory.mktemp("chat") / "checkpoint"
    shutil.copytree(checkpoint, directory)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return directory


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("cost", "config_16B")`` in this process: an object with ``code``, ``out`` and ``err``."""

    def run_here(*arguments: object) -> SimpleNamespace:
        capsys.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # argparse's own way out
            code = exit_.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run_here


def command(*arguments: object, before: str = "") -> list[str]:
    """The command line that runs ``dsv3`` in a process of its own, with Python code to run before it."""
    return [
        sys.executable,
        "-c",
        f"{before}\nimport sys\nfrom dsv3.cli import main\nsys.exit(main())",
        *map(str, arguments),
    ]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_process(*arguments: object, stdin: str | bytes = b"", before: str = "") -> SimpleNamespace:
    """``run`` in a process of its own, with something on stdin."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        command(*arguments, before=before), input=data, capture_output=True, env=ENVIRONMENT, timeout=120, check=False
    )
    return SimpleNamespace(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())
