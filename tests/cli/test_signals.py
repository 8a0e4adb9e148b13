"""Killed and interrupted commands, in subprocesses."""

import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

from flatbayes.cli import main

COMMON = ["--data", "digits", "--data.train_size", "60", "--model", "mlp", "--batch_size", "20", "--num_draws", "2"]


@contextmanager
def start_command(*arguments):
    """Run the command in a subprocess that handles SIGINT even if the tests run in the background."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flatbayes", *arguments],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the process ended before it was to be stopped"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_killed_comparison_continues_with_the_same_result(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["compare", *COMMON, "--posteriors", "[map]", "--num_seeds", "2", "--epochs", "60", "--num_jobs", "1"]
    with start_command(*command, "--out", "killed") as process:
        wait_until(lambda: len(list(tmp_path.glob("killed/runs/*.json"))) >= 1, process)
    assert not (tmp_path / "killed" / "results.json").exists()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("killed/runs/*.json")}
    assert len(done) < 4

    assert main([*command, "--out", "killed"]) == 0
    assert main([*command, "--out", "whole"]) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    outcomes = []
    for name in ("killed", "whole"):
        runs = json.loads((tmp_path / name / "results.json").read_text())["runs"]
        outcomes.append([(r["flatness"], r["seed"], r["metrics"], r["history"]) for r in runs])
    assert len(outcomes[0]) == 4
    assert outcomes[0] == outcomes[1]


def test_interrupted_fit_is_saved(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    posterior = ["--posterior", "swag", "--posterior.rank", "2", "--collection.start_fraction", "0"]
    log = tmp_path / "run" / "metrics.jsonl"
    with start_command(
        "fit", *COMMON, *posterior, "--epochs", "100000", "--num_validations", "0", "--out", "run"
    ) as process:
        wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= 3, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert main(["evaluate", "run", "--num_draws", "2"]) == 0
    assert "test examples" in capsys.readouterr().out
