"""The study of rivals: equal gradients, selection of learning rates, files of runs, and the tables."""

from functools import partial

import pytest
import torch

from flatbayes import MAP, MLP, SWAG, Digits, TrainingConfig
from flatbayes.core.files import read_json, write_json
from flatbayes.experiments import ExperimentRun, RunResult
from flatbayes.experiments.run_result import RunCost
from flatbayes.flatness import Plain
from studies.rivals.methods import list_entries, scale_learning_rate
from studies.rivals.page import END, START, compare_groups, update_page
from studies.rivals.study import BASELINE, TASKS, select_factor, summarize_entry
from studies.selection import execute_named, load_run, name_file, select_setting


@pytest.mark.parametrize("name", TASKS)
def test_all_methods_have_the_gradients_of_the_budget(name):
    task = TASKS[name]
    steps_per_epoch = task.num_data // task.batch_size
    entries = task.entries
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        config = entry.make_config(1.0, task.budget, task.num_data, task.batch_size).resolve_epochs(steps_per_epoch)
        steps = config.num_epochs * steps_per_epoch
        expected = task.budget * entry.budget_factor
        assert steps * entry.gradients_per_step == pytest.approx(expected, rel=0.045), entry.name
        assert config.stops_early == (entry.group == "ours, default training")


def test_candidates_differ_in_the_learning_rate_only():
    entry = next(entry for entry in list_entries(500) if entry.name == "bSAM")
    one, three = (entry.make_config(factor, 100, 500, 50).optimizer for factor in (1.0, 3.0))
    assert (one.keywords, three.keywords["lr"]) == ({"lr": 0.5, "momentum": 0.0, "weight_decay": 0.0}, 1.5)
    with pytest.raises(TypeError, match="learning rate must be in a functools"):
        scale_learning_rate(torch.optim.SGD, 2.0)


def make_run(lr, posterior=MAP(), seed=0):
    config = TrainingConfig(epochs=1, batch_size=50, optimizer=partial(torch.optim.SGD, lr=lr), num_validations=0)
    source = Digits(train_size=100, val_size=60, test_size=60)
    return ExperimentRun(source, partial(MLP, hidden=(4,)), posterior, Plain(), config, seed, num_draws=2)


def test_runs_are_files_that_are_not_executed_again(tmp_path):
    path = name_file(tmp_path, "flat SWAG, 5 x", "0.3", 2)
    assert path.name == "flat-SWAG-5-x_0.3_2.json"
    shared = {path: make_run(0.1), tmp_path / "b.json": make_run(0.1, SWAG(rank=2))}
    failing = {tmp_path / "c.json": make_run(float("nan"))}
    execute_named(shared | failing)
    result = load_run(path)
    assert result is not None
    assert result.metrics["nll"] > 0
    assert load_run(tmp_path / "c.json") is None
    assert "error" in read_json(tmp_path / "c.json")
    write_json(path, {**read_json(path), "posterior": "kept"})
    execute_named(shared)
    assert load_run(path).posterior == "kept"


def test_the_lowest_validation_nll_is_selected(tmp_path):
    candidates = {tmp_path / f"{k}.json": make_run(lr) for k, lr in enumerate((1e-4, 0.1, float("nan")))}
    assert select_setting(candidates, execute=False) == (None, [None, None, None])
    best, scores = select_setting(candidates)
    assert best == 1
    assert scores[1] < scores[0]
    assert scores[2] is None
    val = load_run(tmp_path / "1.json")
    assert val.split == "val"
    assert val.metrics["nll"] == scores[1]


def test_a_summary_of_nothing_has_no_factor(tmp_path):
    task = TASKS["digits"]
    assert select_factor(task, task.entries[0], tmp_path, execute=False) == (None, [None] * len(task.lr_factors))


def make_rows(entries):
    rows = []
    for shift, entry in entries:
        runs = [make_result(seed, 0.2 + shift + 0.001 * (seed % 2) * (entry.name != BASELINE)) for seed in range(3)]
        baseline = [make_result(seed, 0.2) for seed in range(3)]
        rows.append(summarize_entry(entry, runs, baseline) | {"lr_factor": 3.0})
    return rows


def make_result(seed, nll):
    metrics = {"nll": nll, "nll_calibrated": nll, "accuracy": 0.9}
    return RunResult("x", "Plain", seed, metrics, cost=RunCost(train_seconds=2.0, gradients=100.0))


def test_page(tmp_path):
    entries = {entry.name: entry for entry in list_entries(500)}
    rows = make_rows(
        [(0.0, entries[BASELINE]), (-0.1, entries["IVON"]), (0.1, entries["bSAM"]), (0, entries["WSAM"])]
    )
    task = {
        "title": "toy",
        "budget": 1000,
        "lr_factors": (1.0, 0.3),
        "planned_seeds": 5,
        "planned_runs": 20,
        "finished_runs": 12,
        "rows": rows,
        "pairs": {"a minus b": {"nll": {"difference": 0.1, "interval": (-0.1, 0.3)}}, "c": {}},
    }
    page = tmp_path / "page.md"
    page.write_text(f"before {START} old {END} after")
    update_page(page, {"tasks": [task]})
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after")
    assert "old" not in text
    assert "12 of 20 runs" in text
    table = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][1:]
    assert table == ["IVON", BASELINE, "WSAM", "bSAM"]
    assert "| IVON | rival | 0.900 ± 0.000 | 0.100 ± 0.001 |" in text
    assert "* a minus b: NLL +0.100 [-0.100, +0.300]." in text
    assert "lower for IVON; higher for bSAM; no difference is shown for WSAM." in compare_groups(rows)[0]
