import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from flatbayes.core.files import read_json, write_json
from flatbayes.models import MLP
from flatbayes.posteriors import SWAG
from flatbayes.training import TrainingConfig, fit
from studies.defaults import baselines, runner
from studies.defaults.__main__ import main
from studies.defaults.page import (
    FLAT,
    TaskResult,
    count_plain_choices,
    load_results,
    render_claim,
    render_goals,
    write_page,
    write_summary,
)
from studies.defaults.runner import Job, measure, run_jobs
from studies.defaults.tasks import TASKS, Rows, Task, select_tasks

ROOT = Path(__file__).parents[2]
BY_NAME = {task.name: task for task in TASKS}


@pytest.fixture(autouse=True)
def short_training(monkeypatch):
    monkeypatch.setattr(runner, "TrainingConfig", partial(TrainingConfig, min_epochs=10, min_steps=20))


def truncate_task(task: Task, num_rows: int) -> Task:
    """A task with only its first rows, for a quick try."""

    def load(seed: int) -> Rows:
        rows = task.load(seed)
        return replace(
            rows,
            inputs=rows.inputs[:num_rows],
            targets=rows.targets[:num_rows],
            truth=None if rows.truth is None else rows.truth[:num_rows],
        )

    return replace(task, load=load)


def make_job(name, folder, only, num_rows=80):
    return Job(truncate_task(BY_NAME[name], num_rows), 0, folder, only)


def test_benchmark_runs_resumes_and_renders_its_page(tmp_path):
    folder, summary, page = tmp_path / "runs", tmp_path / "summary.json", tmp_path / "page.md"
    job = make_job("two-columns", folder, ("SWAG", "linear", "truth"))
    assert run_jobs([job]) == []
    first = read_json(job.path)["records"]
    assert set(first) == {"SWAG plain", "SWAG flat", "SWAG fixed", "linear", "truth"}
    content = read_json(job.path)
    removed = content["records"].pop("SWAG flat")
    write_json(job.path, {**content, "records": {**content["records"], "linear": {"metrics": {"nll": 7.0}}}})
    run_jobs([job])
    again = read_json(job.path)["records"]
    assert again["SWAG flat"]["metrics"] == removed["metrics"]  # fitted again, to the same numbers
    assert again["linear"] == {"metrics": {"nll": 7.0}}  # not fitted again
    page.write_text("# Page\n<!-- begin nll held-out -->\nold\n<!-- end nll held-out -->\nend\n")
    write_summary(folder, summary)
    write_page(page, summary, None)
    text = page.read_text()
    assert "two-columns" in text
    assert "old" not in text
    assert f"{removed['metrics']['nll']:.3f}" in text
    elsewhere = make_job("two-columns", tmp_path / "elsewhere", job.only)
    main(
        [
            str(elsewhere.folder),
            "--restore",
            str(summary),
            "--tasks",
            "two-columns",
            "--seeds",
            "1",
            "--only",
            *job.only,
        ]
    )
    restored = read_json(elsewhere.path)["records"]
    assert restored["SWAG flat"]["metrics"]["nll"] == pytest.approx(removed["metrics"]["nll"], rel=1e-4)
    assert restored["linear"] == {"metrics": {"nll": 7.0}}  # nothing is fitted again


def test_results_are_those_of_fit(tmp_path):
    job = make_job("wide-numbers", tmp_path, ("SWAG",))
    run_jobs([job])
    data = job.task.split(0).splits
    fitted = fit(MLP, data, SWAG(), config=runner.TrainingConfig(), seed=0)
    metrics = measure(fitted.predict(data.test.inputs, seed=0), data.test.targets)
    assert read_json(job.path)["records"]["SWAG flat"]["metrics"] == pytest.approx(metrics, rel=1e-9)


def test_a_method_that_fails_has_a_record_and_the_others_run(tmp_path, monkeypatch):
    def fail(*_):
        raise ValueError("no good")

    monkeypatch.setattr(baselines, "fit_baseline", fail)
    job = make_job("two-columns", tmp_path, ("linear", "truth"))
    assert run_jobs([job]) == ["two-columns 0 linear: ValueError: no good"]
    assert "metrics" in read_json(job.path)["records"]["truth"]


def test_a_fit_that_takes_too_long_is_stopped(tmp_path):
    job = replace(make_job("two-columns", tmp_path, ("SWAG",)), timeout=1e-3)
    assert len(run_jobs([job])) == len(runner.list_flatnesses())


def test_a_time_limit_ends_code_that_catches_errors():
    caught = 0
    with pytest.raises(TimeoutError), runner.time_limit(1e-3):
        while True:
            try:
                time.sleep(1)
            except TimeoutError:
                caught += 1
                if caught == 2:
                    raise


def test_halves_are_fixed_and_of_equal_size():
    halves = {half: [task.name for task in select_tasks(half=half)] for half in ("choice", "held-out")}
    assert len(TASKS) >= 20
    assert {task.half for task in TASKS} == set(halves)
    assert {"breast-cancer", "digits", "high-noise"} <= set(halves["choice"])
    assert {"wine", "two-columns", "low-noise"} <= set(halves["held-out"])
    assert abs(sum(task.half == "choice" for task in TASKS) - len(TASKS) / 2) < 1


@pytest.mark.parametrize("name", ["two-columns", "heteroscedastic", "table-classes"])
def test_splits_are_disjoint_and_differ_by_seed(name):
    task = truncate_task(BY_NAME[name], 100)
    rows = [
        torch.cat([split.inputs for split in (data.train, data.val, data.test)])
        for data in (task.split(seed).splits for seed in range(2))
    ]
    assert len(rows[0].unique(dim=0)) == len(rows[0])
    assert not torch.equal(rows[0], rows[1])


def test_truth_is_the_best_prediction():
    data = BY_NAME["heteroscedastic"].split(0)
    nll = measure(data.truth, data.splits.test.targets)["nll"]
    wrong = replace(data.truth, member_stds=1.5 * data.truth.member_stds)
    assert nll < measure(wrong, data.splits.test.targets)["nll"]
    assert nll == pytest.approx(
        float((data.truth.member_stds.log() + 0.5 * np.log(2 * np.pi * np.e)).mean()), abs=0.2
    )


def test_linear_baseline_is_that_of_scikit_learn():
    data = BY_NAME["two-columns"].split(0).splits
    predictive = baselines.fit_baseline(baselines.LINEAR, data, 0)
    scaler = StandardScaler().fit(data.train.inputs)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(data.train.inputs), data.train.targets)
    probs = torch.from_numpy(model.predict_proba(scaler.transform(data.test.inputs)))
    weights = [((1 - w) * probs + w / 3).log() for w in baselines.UNIFORM_WEIGHTS]
    assert min(float((predictive.log_probs - log_probs).abs().max()) for log_probs in weights) < 1e-12


def test_goals_count_margins_and_failures():
    def make_result(task, half="held-out", **nll):
        metrics = {name.replace("_", " "): {"nll": value} for name, value in nll.items()}
        return TaskResult(task, half, False, (10, 2), metrics, {}, {})

    ahead = make_result("ahead", SWAG_flat=0.5, SWAG_plain=0.6, linear=0.55)
    behind = make_result("behind", SWAG_flat=0.6, SWAG_plain=0.5, linear=0.5)
    assert behind.is_behind(FLAT, "linear", 0.1)
    assert not behind.is_behind(FLAT, "linear", 0.2)
    assert behind.best_baseline() == "linear"
    table = render_goals([ahead, behind], [])
    row = next(line for line in table.splitlines() if "flat SWAG at or ahead of the best baseline" in line)
    assert "✗ 1/2" in row
    assert row.rstrip(" |").endswith("behind")
    assert not make_result("tiny", SWAG_flat=0.004, linear=0.001).is_behind(FLAT, "linear", 0.01)


def test_summary_averages_splits_and_leaves_out_failures(tmp_path):
    for seed, nll in ((0, 1.0), (1, 2.0)):
        records = {"linear": {"metrics": {"nll": nll}}, "MAP flat": {"metrics": {"nll": nll}}}
        if seed:
            records["MAP flat"] = {"error": "diverged"}
        job = {"task": "t", "half": "choice", "kind": "classes", "seed": seed, "train": 5, "columns": 2}
        write_json(tmp_path / f"t.{seed}.json", {**job, "records": records})
    write_summary(tmp_path, tmp_path / "summary")
    (result,) = load_results(tmp_path / "summary")
    assert result.nll("linear") == 1.5
    assert result.nll("MAP flat") == float("inf")
    assert result.errors == {"MAP flat": "diverged"}
    assert result.num_splits == 2
    (first,) = load_results(tmp_path / "summary", num_splits=1)
    assert (first.nll("MAP flat"), first.errors, first.num_splits) == (1.0, {}, 1)


def test_the_readme_says_what_the_results_say():
    path = ROOT / "docs" / "results" / "defaults-after.json"
    claim = render_claim(load_results(path), *count_plain_choices(path))
    assert claim in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
