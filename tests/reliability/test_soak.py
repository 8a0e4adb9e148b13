"""Cycles of fit, save, load and predict leave nothing behind, in a process that does nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read in /proc")
@pytest.mark.parametrize("cycles", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_grows(cycles):
    done = subprocess.run([sys.executable, str(PATH), str(cycles)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    first, last = found["first"], found["last"]
    for kind in ("open_files", "threads", "tensors", "temporary_files"):
        assert last[kind] <= first[kind], found
    assert last["memory_kib"] - first["memory_kib"] < 8 * 1024, found
