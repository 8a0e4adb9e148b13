"""SIGKILL of a worker process of a comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = ["compare", "--data=digits", "--data.train_size=60", "--model=mlp", "--posteriors=[MAP]", "--epochs=300",
           "--num_seeds=6", "--num_draws=2", "--num_jobs=2", "--out=cmp"]  # fmt: skip


def workers(parent):
    """The processes of joblib below a process, by what they were started as."""
    result = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words, status = (path / "cmdline").read_bytes(), (path / "stat").read_text()
        except OSError:  # it has just ended
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and b"popen_loky" in words:
            result.append(int(path.name))
    return result


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_comparison_continues_after_a_killed_worker(tmp_path):
    start = [sys.executable, "-m", "flatbayes", *COMMAND]
    with subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while len(list(tmp_path.glob("cmp/runs/*.json"))) < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (
        "flatbayes: A process was killed, as happens when memory runs out. Finished runs are kept in cmp/runs" in said
    )
    assert "Traceback" not in said
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cmp/runs/*.json")}
    assert 2 <= len(kept) < 12
    assert not (tmp_path / "cmp" / "results.json").exists()
    assert subprocess.run(start, cwd=tmp_path, check=False, capture_output=True).returncode == 0
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert len(json.loads((tmp_path / "cmp" / "results.json").read_text())["runs"]) == 12


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_workers_end_with_a_killed_comparison(tmp_path):
    start = [sys.executable, "-m", "flatbayes", *COMMAND]
    with subprocess.Popen(start, cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not (children := workers(process.pid)):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.kill()  # while the workers start
    end = time.monotonic() + 30
    while any(is_running(child) for child in children):
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process):
    """Whether a process exists and is no zombie."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
