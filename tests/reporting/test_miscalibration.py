"""Sentences that name the posteriors whose predictions are badly calibrated."""

import pytest

from flatbayes.experiments import ComparisonResult, PairedComparison, RunResult, SummaryRow
from flatbayes.metrics import CoverageCurve, ReliabilityBins
from flatbayes.reporting import format_verdict
from flatbayes.reporting.remarks import describe_miscalibration, measure_calibration

PAIR = PairedComparison(
    plain=1.0,
    plain_sd=None,
    flat=1.0,
    flat_sd=None,
    num_seeds=1,
    difference=0.0,
    interval=None,
    bootstrap_interval=None,
    p_value=None,
    effect_size=None,
    num_flat_better=0,
    num_plain_better=0,
    winner="tie",
)


def classification_run(flatness, confidence, accuracy, count=1000):
    bins = ReliabilityBins((0.0, 0.5, 1.0), (0, count), (0.0, confidence), (0.0, accuracy))
    return RunResult("MAP", flatness, 0, {"nll": 1.0}, reliability=bins)


def regression_run(flatness, coverage, count=1000, num_targets=1):
    by_target = num_targets * ((coverage,),) if num_targets > 1 else ()
    curve = CoverageCurve((0.95,), (coverage,), count, by_target)
    return RunResult("MAP", flatness, 0, {"nll": 1.0, "coverage_95": coverage}, reliability=curve)


def position_run(design_effect):
    bins = ReliabilityBins((0.0, 1.0), (2000,), (0.9,), (0.8,), design_effect)
    return RunResult("MAP", "SAM", 0, {"nll": 1.0}, reliability=bins)


def result(*runs):
    return ComparisonResult({}, runs, (SummaryRow("MAP", "SAM", "nll", "", PAIR),))


def test_both_twins_are_named_with_their_numbers():
    text = describe_miscalibration(
        result(classification_run("Plain", 0.9, 0.7), classification_run("SAM", 0.85, 0.7))
    )
    assert text == (
        "Badly calibrated: MAP, plain and flat, overconfident (plain mean confidence 90 %, accuracy 70 %, flat mean "
        "confidence 85 %, accuracy 70 %)."
    )


def test_one_twin_is_named_alone():
    text = describe_miscalibration(result(regression_run("Plain", 0.72), regression_run("SAM", 0.94)))
    assert text == "Badly calibrated: MAP, plain, overconfident (95 % intervals hold 72 % of the targets)."


@pytest.mark.parametrize(
    ("run", "direction"),
    [
        (classification_run("SAM", 0.9, 0.89), None),
        (classification_run("SAM", 0.9, 0.8), "overconfident"),
        (classification_run("SAM", 0.7, 0.8), "underconfident"),
        (classification_run("SAM", 0.9, 0.8, count=20), None),  # may be chance
        (classification_run("SAM", 0.96, 1.0, count=50), None),  # has a probability of .96^50 = 13 %
        (classification_run("SAM", 0.99, 0.95, count=100), "overconfident"),  # 5 errors where 1 is expected
        (regression_run("SAM", 0.95), None),
        (regression_run("SAM", 0.8), "overconfident"),
        (regression_run("SAM", 0.8, count=8), None),  # may be chance
        (regression_run("SAM", 0.8, count=80), "overconfident"),
        (regression_run("SAM", 0.8, count=80, num_targets=10), None),  # of 8 examples
        (position_run(1.0), "overconfident"),
        (position_run(100.0), None),  # as certain as 20 independent predictions
        (regression_run("SAM", 1.0), "underconfident"),
    ],
)
def test_direction_is_that_of_deviations_beyond_chance(run, direction):
    assert measure_calibration([run]).direction == direction


def test_the_verdict_has_the_line_only_where_something_is_wrong():
    good = result(classification_run("Plain", 0.9, 0.9), classification_run("SAM", 0.9, 0.9))
    bad = result(classification_run("Plain", 0.9, 0.5), classification_run("SAM", 0.9, 0.9))
    assert len(format_verdict(good).splitlines()) == 1
    assert format_verdict(bad).splitlines()[1].startswith("Badly calibrated: MAP, plain, overconfident")
    assert measure_calibration([RunResult("MAP", "SAM", 0, {})]) is None
