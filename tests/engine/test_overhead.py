import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "engine_overhead.py"


@pytest.mark.slow
def test_the_overhead_benchmark_reports_every_kind_of_request() -> None:
    """That it runs; its figures mean something only on a quiet machine."""
    done = subprocess.run([sys.executable, SCRIPT, "--tokens", "6"], capture_output=True, text=True, check=True)
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows][:2] == ["greedy", "temperature"]
    assert rows[-1][0] == "greedy, one draft"
    assert all(float(value) > 0 for row in rows for value in row[1:])
