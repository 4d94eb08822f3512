"""What the pages tell a reader to type is typed here: shell commands, Python examples, make targets, pins."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dsv3.cli import COMMANDS, _parser
from tests.docs.markdown import PAGES, ROOT, code_spans, fences

SHELL_LINES = [line for block in fences("README.md", "bash") for line in block.splitlines()]
DSV3_LINES = [line for line in SHELL_LINES if "dsv3 " in line and not line.startswith(".venv")]
# A line that needs another checkpoint, or a person, is checked for its arguments only.
RUNNABLE = [line for line in DSV3_LINES if "/path/to/" not in line and "--interactive" not in line]


def run(command: str | list[str], cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    shell = isinstance(command, str)
    done = subprocess.run(
        command, shell=shell, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("line", DSV3_LINES)
def test_readme_commands_have_valid_arguments(line: str) -> None:
    words = shlex.split(line[line.index("dsv3 ") :])[1:]
    assert words[0] in COMMANDS
    assert callable(_parser(words).parse_args(words).run)


@pytest.mark.parametrize("line", RUNNABLE)
def test_readme_commands_run(line: str, tmp_path: Path) -> None:
    if "generate" in line:
        line += " --max-new-tokens 4"
    assert run(line.replace("dsv3 ", f"{shlex.quote(sys.executable)} -m dsv3 ", 1), tmp_path).strip()


@pytest.mark.parametrize("page", ["README.md", "docs/weights.md", "docs/teaching.md"])
def test_python_examples_run(page: str) -> None:
    blocks = fences(page, "python")
    assert blocks
    for block in blocks:
        run([sys.executable, "-W", "error", "-c", block], ROOT)


def test_make_targets_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    texts = [*SHELL_LINES, *(span for page in PAGES for span in code_spans(page))]
    named = {match[1] for text in texts if (match := re.match(r"make ([a-z-]+)", text))}
    assert {"demo", "test"} <= named <= targets


def test_requirements_pin_every_dependency_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if line and not line.startswith("#")}
    assert all("==" in line for line in lines if line and not line.startswith("#"))

    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(d for extra in extras.keys() - {"lab"} for d in extras[extra])]
    named = {re.split(r"[\[<>=;]", dependency)[0].lower() for dependency in wanted} - {"dsv3"}
    assert named <= pinned


def test_requirements_of_the_lab_pin_what_it_adds() -> None:
    lines = (ROOT / "requirements-lab.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all("==" in pin for pin in pins)
    assert {"jupyterlab", "playwright"} <= {pin.split("==")[0] for pin in pins}
    base = (ROOT / "requirements.txt").read_text(encoding="utf-8").lower().replace("_", "-")
    assert [pin for pin in pins if f"\n{pin.split('==')[0].lower().replace('_', '-')}==" in base] == []
