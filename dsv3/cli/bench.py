"""``dsv3 bench kernels``: run the repository's benchmarks of one kind on this GPU, print their tables, keep their rows.

The benchmarks are scripts in ``benchmarks/`` of a clone: a measurement belongs to a commit, and an installed package
carries none. Each runs in a process of its own, so that one's memory and compiled kernels do not disturb the next.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from dsv3.errors import Dsv3Error, RequestError

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"

SUITES = {
    "kernels": ("fp8_gemm", "moe_decode", "mla_decode"),
    "model": ("model_decode",),
}
"""Scripts in benchmarks/, each of which prints a table and writes results/<its name>.<device>.json."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", choices=sorted(SUITES), help="what to measure: single kernels, or whole models")
    names = sorted(name for suite in SUITES.values() for name in suite)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all rows into this file")


def run(args: argparse.Namespace) -> None:
    names = [name for name in SUITES[args.suite] if not args.only or name in args.only]
    if not names:
        raise RequestError(f"--only {' '.join(args.only)} leaves nothing of the suite {args.suite!r}; it has "
                           f"{', '.join(SUITES[args.suite])}")  # fmt: skip
    if args.json and not args.json.parent.is_dir():
        raise RequestError(f"cannot save {args.json}: there is no directory {args.json.parent}; create it first")
    _check_device()
    if not BENCHMARKS.is_dir():
        raise Dsv3Error(f"there is no {BENCHMARKS}: an installed package has no benchmarks; run this from a clone")
    failed = [name for name in names if not _run_script(name)]
    if args.json:
        rows = [row for name in names if name not in failed for row in _rows(name)]
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise Dsv3Error(f"{', '.join(failed)} failed; the messages above say why")


def _check_device() -> None:
    import torch

    from dsv3.kernels import triton_available

    if not torch.cuda.is_available():
        raise Dsv3Error(f"the benchmarks need a CUDA GPU, and torch {torch.__version__} sees none here")
    if not triton_available():
        raise Dsv3Error("the benchmarks need triton, which cannot be imported: pip install 'dsv3[kernels]'")


def _run_script(name: str) -> bool:
    print(f"{name}: benchmarks/{name}.py", file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, str(BENCHMARKS / f"{name}.py")], check=False).returncode == 0


def _rows(name: str) -> list[dict[str, object]]:
    """What the script has just written: the newest of its results, which are one for each device."""
    files = sorted((BENCHMARKS / "results").glob(f"{name}.*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(files[-1].read_text(encoding="utf-8")) if files else []
