"""SIGKILL of a worker process of a comparison."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMANDS = {
    "compare": ["compare", "--data=digits", "--data.train_size=60", "--model=mlp", "--posteriors=[MAP]",
                "--epochs=100", "--num_seeds=6", "--num_draws=2", "--num_jobs=2", "--out=out"],
    "fit": ["fit", "--data=digits", "--data.train_size=60", "--model=mlp", "--posterior=Ensemble",
            "--posterior.member=MAP", "--posterior.size=6", "--epochs=100", "--num_draws=2", "--resume",
            "--distribution.members=workers", "--checkpoint_steps=5", "--checkpoint_seconds=0.1", "--out=out"],
}  # fmt: skip
KEPT = {
    "compare": ("runs/*.json", "flatbayes: A process was killed, as happens when memory runs out. Finished runs are "
                "kept in out/runs, and the same command goes on with them"),
    "fit": ("checkpoints/????.pt", "flatbayes: A process that trains members of the ensemble was killed, as "
            "happens when memory runs out. Finished members are kept in out/checkpoints, and the same call "
            "goes on with them"),
}  # fmt: skip
"""Finished work, and the message."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc"),
]


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


def start(verb, folder):
    """Start a command in a session of its own, with a folder for temporary files."""
    (folder / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "flatbayes", *COMMANDS[verb]]
    environment = os.environ | {"TMPDIR": str(folder / "tmp")}
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )


def wait_until(condition, seconds=120):
    """Poll a condition, and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value


def list_temporary(folder):
    """Folders and semaphores of joblib."""
    paths = [*(folder / "tmp").glob("*"), *Path("/dev/shm").glob("*")]
    return {path.name for path in paths if "joblib" in path.name or path.name.startswith("sem.loky")}


@pytest.mark.parametrize("verb", COMMANDS)
def test_command_continues_after_a_killed_worker(tmp_path, verb):
    pattern, message = KEPT[verb]
    with start(verb, tmp_path) as process:
        wait_until(lambda: process.poll() is not None or len(list(tmp_path.glob(f"out/{pattern}"))) >= 2)
        os.kill(workers(process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert message in said
    assert "Traceback" not in said
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"out/{pattern}")}
    assert len(kept) >= 2
    assert not (tmp_path / "out" / "results.json").exists()
    if verb == "fit":
        kept = {}  # they are removed at the end
        assert not (tmp_path / "out" / "posterior.json").exists()
    with start(verb, tmp_path) as process:
        _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    if verb == "compare":
        assert len(json.loads((tmp_path / "out" / "results.json").read_text())["runs"]) == 12
    else:
        assert len(json.loads((tmp_path / "out" / "posterior.json").read_text())["num_data"]) == 6


@pytest.mark.parametrize("verb", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("is_training", [False, True], ids=["start", "training"])
def test_workers_end_with_their_parent_and_leave_nothing(tmp_path, verb, number, is_training):
    before = list_temporary(tmp_path)
    with start(verb, tmp_path) as process:
        wait_until(lambda: workers(process.pid) or process.poll() is not None)
        pattern = "checkpoints/*.pt" if verb == "fit" else "runs/*.json"
        wait_until(lambda: not is_training or list(tmp_path.glob(f"out/{pattern}")) or process.poll() is not None)
        children = workers(process.pid)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert children
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), said
    wait_until(lambda: not any(is_running(child) for child in children), 30)
    wait_until(lambda: list_temporary(tmp_path) <= before, 30)
    if number != signal.SIGKILL:
        assert "Traceback" not in said
        assert "flatbayes: terminated: " in said
        if is_training:
            assert "goes on from the checkpoints" in said or "the same command does the others" in said


def is_running(process):
    """Whether a process exists and is no zombie."""
    try:
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
