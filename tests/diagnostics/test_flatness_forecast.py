"""The forecast of whether flatness pays: the rule, its stated accuracy on the results in docs, and its use."""

import json
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from flatbayes.diagnostics import forecast_flatness, forecast_from_history
from flatbayes.diagnostics.flatness_forecast import INTERCEPT, SLOPE
from flatbayes.experiments import ComparisonResult, RunResult
from flatbayes.experiments.run_result import TrainingHistory
from flatbayes.reporting.remarks import describe_forecast, describe_radii

RECORDS = json.loads((Path(__file__).parents[2] / "docs/results/radius-forecast.json").read_text())


def does_pay(record):
    """Whether rho="auto" chooses a radius above 0, and has a lower test NLL than plain training."""
    finished = [radius for radius, nll in record["val"].items() if nll is not None]
    test = dict(zip(finished, record["test"], strict=True))
    costs = {radius: record["val"][radius] + 0.02 * (radius != "0") for radius in finished}
    best = min(costs, key=costs.get)
    return best != "0" and test[best] < test["0"]


@pytest.mark.parametrize(("half", "expected"), [("choice", (11, 12)), ("held-out", (9, 10))])
def test_the_accuracy_is_that_of_the_results(half, expected):
    records = [record for record in RECORDS.values() if record["half"] == half]
    right = [forecast_flatness(r["val"]["0"], r["lowest_val_nll"]).pays is does_pay(r) for r in records]
    assert (sum(right), len(right)) == expected


def test_the_probability_rises_with_the_rise():
    probabilities = [forecast_flatness(1.0 + rise, 1.0).probability for rise in (0.0, 0.01, 0.1, 1.0, 100.0)]
    assert probabilities == sorted(probabilities)
    assert 0 < probabilities[0] < 0.4 < 0.9 < probabilities[-1] < 1
    assert not forecast_flatness(1.003, 1.0).pays
    assert forecast_flatness(1.005, 1.0).pays
    with pytest.raises(ValueError, match="finite validation NLLs, got nan"):
        forecast_flatness(nan, 1.0)


def test_the_rule_is_that_of_the_study():
    law = json.loads((Path(__file__).parents[2] / "docs/results/law.json").read_text())
    assert law["rule"] == "rise"
    assert law["law"]["intercept"] == pytest.approx(INTERCEPT, abs=0.006)
    assert law["law"]["coefficients"] == pytest.approx([SLOPE], abs=0.006)
    assert law["threshold"] == pytest.approx(10 ** (-INTERCEPT / SLOPE), rel=0.02)


def test_a_history_needs_two_evaluations():
    assert forecast_from_history([None, 0.5, None]) is None
    assert forecast_from_history([0.5, inf, 0.25, 0.75]).rise == 0.5


def test_a_comparison_says_what_was_chosen_and_forecast():
    def make_run(flatness, seed, val_nlls=(), **fields):
        history = TrainingHistory((1.0, 2.0), (0.5, 0.4), val_nlls, (0.1, 0.1)) if val_nlls else None
        return RunResult("SWAG", flatness, seed, {"nll": 0.5}, history=history, **fields)

    choices = [{"name": "rho", "value": value, "reason": ""} for value in (0.0, 1.0)]
    flat = [make_run("SAM(rho=auto)", seed, radius=choice) for seed, choice in enumerate(choices)]
    runs = [make_run("Plain", 0, (0.4, 0.9)), make_run("Plain", 1, (0.4, 0.5)), *flat]
    results = ComparisonResult(config={}, runs=tuple(runs), rows=())
    assert describe_radii(results) == (
        "rho chosen on validation data, by seed: SWAG 0, 1. In 1 of 2 runs flatness does not pay."
    )
    assert "flatness probably pays here" in describe_forecast(results)
    assert [RunResult.from_dict(run.to_dict()) for run in runs] == runs
    bare = replace(results, runs=(make_run("Plain", 0), make_run("SAM", 0)))
    assert (describe_radii(bare), describe_forecast(bare)) == ("", "")
