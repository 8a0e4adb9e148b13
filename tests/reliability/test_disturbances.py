"""Random commands, interrupts, full disks and unusual environments, by the scripts in this folder."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded by /proc")


@pytest.fixture
def outcome(tmp_path):
    """What a script prints; what it complains of is in the message if it fails."""
    return partial(run_script, {**os.environ, "TMPDIR": str(tmp_path)})


def run_script(environment, script, *arguments):
    command = [sys.executable, HERE / script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def test_small_sample_of_each_disturbance(outcome):
    result, complaints = outcome("quick.py")
    for kind in ("commands", "configurations"):
        assert not [end for end in result[kind] if end.startswith("bad")], complaints[-3000:]
    assert result["commands"]["ran"] >= 2
    assert result["commands"]["refused in words"] >= 2
    for kind in ("hyperparameters", "interruptions", "writes", "places"):
        assert result[kind]["bad"] == []
    assert result["hyperparameters"]["refused"] > 1000
    assert result["interruptions"]["counts"]["fit"]["went on to the same end"] == 3
    assert result["writes"]["counts"]["fit"]["ended with our message"] >= 3
    assert result["places"]["places"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["commands", "configurations"])
def test_random_commands_run_or_give_a_message(kind, outcome):
    result, complaints = outcome("commands.py", kind, 1000, 150)
    assert not [end for end in result if end.startswith("bad")], complaints[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "compare", "evaluate", "predict", "report", "tune"])
def test_interrupt_at_random_moments(name, outcome):
    result, _ = outcome("interrupting.py", 20, 1, name)
    assert result["bad"] == []
    assert result["counts"][name]["interrupted"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "compare", "evaluate", "predict", "report"])
def test_full_disk_at_each_write(name, outcome):
    result, _ = outcome("breaking.py", 1000, 4, name)
    assert result["bad"] == []
    assert result["counts"][name]["ended with our message"] >= 2


@pytest.mark.slow
def test_unusual_environments(outcome):
    result, _ = outcome("surroundings.py")
    assert result["bad"] == []


@pytest.mark.skipif(shutil.which("cc") is None or sys.platform != "linux", reason="compiles a library for LD_PRELOAD")
@pytest.mark.parametrize(
    ("number", "names"),
    [(4, ["evaluate, BatchNorm"]), pytest.param(60, [], marks=pytest.mark.slow)],
    ids=["sample", "all"],
)
def test_faults_of_single_operations_lose_nothing(number, names, outcome):
    result, _ = outcome("faults.py", number, 0, *names)
    assert result["bad"] == []
    assert all(counts["operations"] > 5 for counts in result["counts"].values())
    assert sum(
        counts.get("ended with a message", 0) + counts.get("killed", 0) for counts in result["counts"].values()
    )


@pytest.mark.slow
def test_power_cuts_lose_nothing_that_was_announced(outcome):
    sys.path.insert(0, str(HERE))
    from power_cuts import can_mount

    if not can_mount():
        pytest.skip("needs Linux, mkfs.ext4 and the right to mount")
    result, _ = outcome("power_cuts.py", 10, 0)
    assert result["bad"] == []
    assert all(counts["after the end"] + counts["before the end"] == 10 for counts in result["counts"].values())


@pytest.mark.slow
def test_readers_and_writers_at_once_lose_nothing(outcome):
    result, _ = outcome("races.py", 50)
    assert result["bad"] == []
