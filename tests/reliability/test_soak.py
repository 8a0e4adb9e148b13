"""Cycles of fit, save, load and predict do not leak memory, files, threads or tensors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parent / "soak.py"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read in /proc")
@pytest.mark.slow
@pytest.mark.parametrize("cycles", [10, 200])
def test_resources_are_constant(cycles):
    done = subprocess.run([sys.executable, str(PATH), str(cycles)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    first, last = result["first"], result["last"]
    for kind in ("open_files", "threads", "tensors", "temporary_files"):
        assert last[kind] <= first[kind], result
    assert last["memory_kib"] - first["memory_kib"] < 8 * 1024, result
