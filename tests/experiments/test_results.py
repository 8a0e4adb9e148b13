"""Typed results and their JSON: round trips, files of flatbayes 0.1, damaged files, data frames."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flatbayes.core.files import write_json
from flatbayes.diagnostics import LossSlice
from flatbayes.experiments import ComparisonResult, RunResult, SelectionRecord, SelectionTrial, summarize_runs
from flatbayes.experiments.run_result import RunCost, RunDetails, SeverityCurve, TrainingHistory
from flatbayes.metrics import CoverageCurve, MetricFamily, ReliabilityBins

DOCS = Path(__file__).parents[2] / "docs" / "results"


def run(flatness, seed, nll, **fields):
    return RunResult("MAP", flatness, seed, {"nll": nll, "ece": None}, "digits", "MLP", **fields)


FULL = run(
    "Plain",
    0,
    0.5,
    split="val",
    cost=RunCost(1.5, 9, 300.0),
    num_networks=3,
    reliability=ReliabilityBins((0.0, 0.5, 1.0), (0, 4), (0.0, 0.75), (0.0, 1.0), 2.5),
    history=TrainingHistory((1, 2), (0.9, None), (None, 0.4), (0.1, 0.05)),
    details=RunDetails(
        1.2, SeverityCurve((0.0, 1.0), (0.9, 0.8), (0.1, None), (0.0, 0.1)), LossSlice((-1.0, 1.0), (2.0, 3.0))
    ),
)
RUNS = (
    FULL,
    run("SAM", 0, 0.4),
    run("Plain", 1, 0.6),
    run("SAM", 1, 0.45, reliability=CoverageCurve((0.5,), (0.4,), 10)),
)


def comparison(runs=RUNS):
    rows = summarize_runs(runs, "Plain", {"nll": False})
    return ComparisonResult(
        {"num_seeds": 2, "source": {"class_path": "x"}}, runs, rows, ("MAP seed 2: NaN",), {"python": "3"}
    )


@pytest.mark.parametrize("num_runs", [2, 4])
def test_a_comparison_is_read_back_as_it_was_written(tmp_path, num_runs):
    results = comparison(RUNS[:num_runs])
    assert len(results.rows) == 1
    path = results.save(tmp_path)
    assert ComparisonResult.load(tmp_path) == results
    assert json.loads(path.read_text())["schema"] == 2


def test_numbers_that_are_not_finite_are_null_in_the_file_and_none_when_read():
    data = run("Plain", 0, math.nan).to_dict()
    assert data["metrics"] == {"nll": None, "ece": None}
    assert RunResult.from_dict(data).metrics["nll"] is None


def test_fields_that_were_not_recorded_are_optional_and_unknown_ones_are_ignored():
    data = {"posterior": "MAP", "flatness": "Plain", "seed": 3, "metrics": {"nll": 1}, "novelty": [1]}
    result = RunResult.from_dict(data)
    assert result == RunResult("MAP", "Plain", 3, {"nll": 1})
    assert "reliability" not in result.to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": None}, r"runs\[3\] lacks 'metrics'"),
        ({"metrics": [1]}, r"'metrics' of runs\[3\] should be an object"),
        ({"metrics": {"nll": "low"}}, r"'nll' of 'metrics' of runs\[3\] should not be 'low'"),
        ({"seed": "0"}, r"'seed' of runs\[3\] should not be '0'"),
        ({"seed": True}, r"'seed' of runs\[3\] should not be True"),
        ({"posterior": 1}, r"'posterior' of runs\[3\] should not be 1"),
        ({"details": 5}, r"'details' of runs\[3\] should be an object"),
    ],
)
def test_a_damaged_run_is_named(changes, message):
    data = comparison().to_dict()
    data["runs"][3] |= changes
    with pytest.raises(ValueError, match=message):
        ComparisonResult.from_dict(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"winner": "both"}, r"'winner' of summary\[0\] should be flat or plain or tie, got 'both'"),
        ({"plain": "x"}, r"'plain' of summary\[0\] should not be 'x'"),
    ],
)
def test_a_damaged_row_is_named(changes, message):
    data = comparison().to_dict()
    data["summary"][0] |= changes
    with pytest.raises(ValueError, match=message):
        ComparisonResult.from_dict(data)
    del data["summary"][0]["plain"]
    with pytest.raises(ValueError, match=r"summary\[0\] lacks 'plain'"):
        ComparisonResult.from_dict(data)


OLD_RESULTS = {
    "flatbayes": "0.1.0",
    "environment": {"cores": 2},
    "config": {"seeds": 2, "part": "test", "measures": {}, "recipe": {"epochs": 3}},
    "runs": [
        {
            "posterior": "Point",
            "flatness": flatness,
            "seed": seed,
            "part": "val",
            "metrics": {"nll": 1.0},
            "curves": {"epoch": [1], "loss": [0.5], "val_nll": [None], "lr": [0.1]},
            "details": {"temperature": 1.5, "slice": {"distance": [0.0], "loss": [2.0]}},
        }
        for flatness in ("Plain", "SAM")
        for seed in range(2)
    ],
    "summary": [
        {
            "posterior": "Point",
            "flatness": "SAM",
            "metric": "nll",
            "family": "",
            "plain": 1.0,
            "plain_sd": 0.1,
            "flat": 0.9,
            "flat_sd": 0.1,
            "n": 2,
            "difference": -0.1,
            "interval": [-0.2, -0.05],
            "bootstrap": [-0.19, -0.06],
            "p_value": 0.01,
            "effect": 1.5,
            "flat_better": 2,
            "plain_better": 0,
            "wins": "flat",
            "p_holm": 0.02,
        }
    ],
    "failures": [],
}


def test_a_file_of_flatbayes_0_1_is_read():
    results = ComparisonResult.from_dict(OLD_RESULTS)
    assert results.config == {"num_seeds": 2, "split": "test", "evaluations": {}, "config": {"epochs": 3}}
    first, (row,) = results.runs[0], results.rows
    assert (first.split, first.history.loss, first.details.calibration_temperature) == ("val", (0.5,), 1.5)
    assert first.details.loss_slice == LossSlice((0.0,), (2.0,))
    pair = row.comparison
    assert (pair.num_seeds, pair.winner, pair.effect_size, pair.num_flat_better, pair.num_plain_better) == (
        2,
        "flat",
        1.5,
        2,
        0,
    )
    assert pair.bootstrap_interval == (-0.19, -0.06)
    assert (row.verdict, row.p_holm) == ("flat", 0.02)
    assert ComparisonResult.from_dict(results.to_dict()) == results


@pytest.mark.parametrize("name", ["digits", "digits-all", "cifar10", "uci-energy"])
def test_the_published_results_are_read(name):
    results = ComparisonResult.from_dict(json.loads((DOCS / f"{name}.json").read_text()))
    assert results.rows
    assert results.runs
    assert all(row.comparison.num_seeds > 1 for row in results.rows)
    assert {row.family for row in results.rows} <= {"", *MetricFamily}


def test_the_published_selections_are_read(tmp_path):
    write_json(tmp_path / "selection.json", json.loads((DOCS / "cifar10-selection.json").read_text()))
    record = SelectionRecord.load(tmp_path)
    assert {trial.variant for trial in record.trials} == {"plain", "flat"}
    assert sum(trial.is_best for trial in record.trials) == 2 * len(record.selected_methods) == 20


def test_a_selection_is_read_back_as_it_was_written(tmp_path):
    trials = (SelectionTrial("MAP", "a", "plain", 0.1, True), SelectionTrial("MAP", "b", "flat", None))
    record = SelectionRecord("nll", (0, 1), trials, ({"name": "MAP"},))
    record.save(tmp_path)
    assert SelectionRecord.load(tmp_path) == record


def test_data_frames_have_a_row_for_each_summary_row_and_each_run():
    pytest.importorskip("pandas")
    results = comparison()
    summary, runs = results.to_pandas(), results.to_pandas("runs")
    assert summary.loc[0, "difference"] == results.rows[0].comparison.difference
    assert list(summary.columns[:5]) == ["posterior", "flatness", "metric", "family", "p_holm"]
    assert runs["nll"].tolist() == [0.5, 0.4, 0.6, 0.45]
    assert runs["train_seconds"].tolist()[0] == 1.5
    assert runs["split"].tolist()[0] == "val"


def test_a_data_frame_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'flatbayes\[pandas\]'"):
        comparison().to_pandas()


def test_verdicts_need_an_interval():
    (row,) = comparison().rows
    assert row.verdict == "unknown"  # two seeds
    assert replace(row, comparison=replace(row.comparison, interval=(0.1, 0.2), winner="plain")).verdict == "plain"
