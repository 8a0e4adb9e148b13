"""benchmarks/gpu.py: tasks fail, hang and crash one at a time, and the report says how each one ended."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def modules(monkeypatch):
    """Import modules of the folder of benchmarks; the worker process gets the same path."""
    for folder in (Path(__file__).parent, BENCHMARKS):
        monkeypatch.syspath_prepend(folder)
    return importlib.import_module


@pytest.fixture
def run(modules, tmp_path):
    """Run tasks in sections of equal budgets; return the report that is on disk."""
    runner, report = modules("gpu_runner"), modules("gpu_report")

    def run_tasks(sections, seconds):
        tasks = {
            section: (seconds / len(sections), [runner.Task(name, f"gpu_tasks:{name}", limit=1.0) for name in names])
            for section, names in sections.items()
        }
        worker = runner.Worker({"device": "cpu"})
        kept = report.Report(tmp_path / "gpu.json", {"sections": {}})
        try:
            for _ in runner.run_sections(tasks, worker, kept, seconds):
                json.loads((tmp_path / "gpu.json").read_text())  # complete after every task
        finally:
            worker.stop()
        sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
        return {task: record for section in sections.values() for task, record in section["tasks"].items()}

    return run_tasks


def test_each_task_ends_in_its_own_way_and_the_others_go_on(run, modules, monkeypatch):
    monkeypatch.setattr(modules("gpu_runner"), "MIN_TASK_SECONDS", 1.0)
    monkeypatch.setattr(modules("gpu_runner"), "GRACE_SECONDS", 0.5)
    names = ["succeed", "fail", "skip", "crash", "repeat", "hang", "fail_fatally", "report_process"]
    records = run({"first": names}, 120.0)
    assert {name: record["status"] for name, record in records.items()} == {
        "succeed": "passed",
        "fail": "failed",
        "skip": "skipped",
        "crash": "failed",
        "repeat": "skipped",
        "hang": "skipped",
        "fail_fatally": "failed",
        "report_process": "passed",
    }
    assert records["succeed"]["result"] == {"first": 1.0, "device": "cpu", "second": None}
    assert records["fail"]["message"] == "ArithmeticError: wrong on purpose"
    assert "fail" in records["fail"]["traceback"][-1]
    assert records["fail"]["result"] == {"first": 1.0}
    assert records["skip"]["reason"] == "this needs something else"
    assert "exit code 3" in records["crash"]["message"]
    assert records["repeat"]["reason"].startswith("out of time after")
    assert records["repeat"]["result"]["count"] > 0
    assert records["hang"]["reason"].startswith("out of time: its process was stopped after")
    # a CUDA context that an error has broken is not used again
    assert records["fail_fatally"]["result"]["process"] != records["report_process"]["result"]["process"]


def test_a_section_past_its_budget_is_skipped_and_the_limit_holds(run, modules, monkeypatch):
    monkeypatch.setattr(modules("gpu_runner"), "STOP_SECONDS", 1.0)
    start = time.monotonic()
    records = run({"first": ["hang", "succeed"], "second": ["repeat"], "third": ["hang", "fail"]}, 6.0)
    assert time.monotonic() - start < 6.0
    assert records["succeed"]["status"] == "skipped"
    assert "the time of the section is spent (1 s)" in records["succeed"]["reason"]
    assert all(record["status"] == "skipped" and record["reason"] for record in records.values())


def test_every_task_of_the_command_exists(modules):
    sections = modules("gpu").SECTIONS
    assert list(sections) == ["ceilings", "checks", "benchmarks", "recipe"]
    assert sum(budget for budget, _ in sections.values()) <= 520
    assert sections.keys() == modules("gpu").DRY_BUDGETS.keys()
    for _, tasks in sections.values():
        for task in tasks:
            module, _, function = task.target.partition(":")
            assert callable(getattr(modules(module), function))


def test_without_the_device_nothing_runs(modules, tmp_path, capsys):
    if modules("torch").cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert modules("gpu").main(["--seconds", "60", "--out", str(tmp_path / "gpu.json")]) == 2
    assert "--device cpu" in capsys.readouterr().err
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert (report["status"], report["sections"]) == ("no device", {})


@pytest.mark.slow
def test_the_dry_run_has_a_result_or_a_reason_everywhere(tmp_path):
    path, start = tmp_path / "gpu.json", time.monotonic()
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--seconds", "60", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - start < 60
    report = json.loads(path.read_text())
    assert report["status"] == "complete"
    assert list(report["sections"]) == ["ceilings", "checks", "benchmarks", "recipe"]
    for section in report["sections"].values():
        for record in section["tasks"].values():
            assert record["result"] if record["status"] == "passed" else record["reason"]
