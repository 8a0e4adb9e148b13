"""The command line, disturbed in every way: the scripts beside this file say how."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded by /proc")


def outcome(script, *arguments):
    """What a script prints; what it complains of is in the message if it fails."""
    done = subprocess.run(
        [sys.executable, HERE / script, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout), done.stderr


def test_a_little_of_everything():
    found, complaints = outcome("quick.py")
    for kind in ("commands", "configurations"):
        assert not [end for end in found[kind] if end.startswith("bad")], complaints[-3000:]
    assert found["commands"]["ran"] >= 2
    assert found["commands"]["refused in words"] >= 2
    for kind in ("hyperparameters", "interruptions", "writes", "places"):
        assert found[kind]["bad"] == []
    assert found["hyperparameters"]["refused"] > 1000
    assert found["interruptions"]["counts"]["fit"]["went on to the same end"] == 3
    assert found["writes"]["counts"]["fit"]["ended with our message"] >= 3
    assert found["places"]["places"] == 7


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["commands", "configurations"])
def test_hundreds_of_random_commands_run_or_say_why_not(kind):
    found, complaints = outcome("commands.py", kind, 1000, 150)
    assert not [end for end in found if end.startswith("bad")], complaints[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "compare", "evaluate", "predict", "report", "tune"])
def test_ctrl_c_at_any_moment(name):
    found, _ = outcome("interrupting.py", 20, 1, name)
    assert found["bad"] == []
    assert found["counts"][name]["interrupted"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fit", "compare", "evaluate", "predict", "report"])
def test_a_full_disk_at_any_write(name):
    found, _ = outcome("breaking.py", 1000, 4, name)
    assert found["bad"] == []
    assert found["counts"][name]["ended with our message"] >= 2


@pytest.mark.slow
def test_every_odd_place():
    found, _ = outcome("surroundings.py")
    assert found["bad"] == []
