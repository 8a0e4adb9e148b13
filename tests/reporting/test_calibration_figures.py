"""Reliability and coverage diagrams: pooling over seeds, intervals, and sections of the page."""

import math

import pytest
from matplotlib.figure import Figure
from scipy import stats

from flatbayes.experiments import ComparisonResult, RunResult
from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER, CoverageCurve, ReliabilityBins
from flatbayes.plotting import theme
from flatbayes.reporting import svg
from flatbayes.reporting.calibration_figures import (
    PooledBins,
    coverage_panels,
    draw_counts,
    draw_reliability,
    pool_coverage,
    pool_reliability,
    reliability_panels,
)
from flatbayes.reporting.html import render_page
from flatbayes.reporting.queries import Glossary

EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
LEVELS = [0.25, 0.5, 0.75]


def bins_run(counts, accuracy, confidence=(0.1, 0.4, 0.7, 0.9), edges=EDGES):
    return RunResult("MAP", "Plain", 0, {}, reliability=ReliabilityBins(edges, counts, confidence, accuracy))


def test_pooled_bins_are_weighted_by_count():
    edges = (0.0, 0.5, 1.0)
    runs = [bins_run((0, 1), (0.0, 1.0), (0.0, 0.9), edges), bins_run((0, 3), (0.0, 0.0), (0.0, 0.7), edges)]
    pooled = pool_reliability(runs)
    assert pooled.bins.counts == (0, 4)
    assert pooled.points() == ([pytest.approx(0.75)], [pytest.approx(0.25)], [4])
    assert pool_reliability([RunResult("MAP", "Plain", 0, {})]) is None


def test_runs_with_other_bins_are_not_pooled():
    runs = [bins_run((1, 1, 1, 1), (0.0,) * 4), bins_run((5, 5), (1.0, 1.0), (0.2, 0.7), (0.0, 0.5, 1.0))]
    assert pool_reliability(runs).bins.counts == (1, 1, 1, 1)
    assert pool_reliability(runs).num_runs == 1


def test_intervals_are_wilson_s_for_as_many_predictions_as_one_run_makes():
    pooled = pool_reliability([bins_run((10, 0, 40, 6), (0.5, 0.0, 0.75, 1.0))] * 3)
    assert pooled.bins.counts == (30, 0, 120, 18)
    assert pooled.num_runs == 3
    expected = [
        stats.binomtest(hits, count).proportion_ci(method="wilson") for hits, count in ((5, 10), (30, 40), (6, 6))
    ]
    assert pooled.intervals() == [pytest.approx((ends.low, ends.high)) for ends in expected]


def test_more_seeds_do_not_narrow_an_interval():
    run = bins_run((0, 20, 0, 50), (0.0, 0.4, 0.0, 0.9))
    assert pool_reliability([run] * 10).intervals() == pool_reliability([run]).intervals()


@pytest.mark.parametrize("num_runs", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 100])
def test_every_interval_contains_its_accuracy(num_runs, count):
    accuracy = tuple(hits / count for hits in range(count + 1))
    zeros, counts, half = (0.0,) * (count + 2), (count,) * (count + 1), (0.5,) * (count + 1)
    pooled = PooledBins(ReliabilityBins(zeros, counts, half, accuracy), num_runs)
    for (low, high), value in zip(pooled.intervals(), accuracy, strict=True):
        assert 0 <= low <= value <= high <= 1


def test_every_mark_has_a_bar_and_those_of_plain_and_flat_are_beside_each_other():
    pooled = dict.fromkeys((False, True), pool_reliability([bins_run((100, 0, 400, 60), (0.5, 0.0, 0.75, 1.0))]))
    with svg.new_figure(300, 300) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        draw_reliability(axes, pooled)
        plain, flat = (c for c in axes.collections if hasattr(c, "get_segments"))
        positions = [bars.get_transform().transform((0.5, 0.5))[0] for bars in (plain, flat)]
    for segments in (plain.get_segments(), flat.get_segments()):
        assert [tuple(bar[:, 1]) for bar in segments] == [pytest.approx(ends) for ends in pooled[False].intervals()]
        assert [bar[0, 0] for bar in segments] == pooled[False].points()[0]
    assert 2 < (positions[1] - positions[0]) * theme.UNITS_PER_INCH / figure.dpi < 5
    assert not math.isclose(*positions)


def coverage_run(flatness, seed, shares, count=100):
    return {
        "posterior": "SWAG",
        "flatness": flatness,
        "seed": seed,
        "metrics": {"nll": 2.5 + 0.1 * seed, "rmse": 4.0, "coverage_95": 0.9, "width_95": 12.0},
        "reliability": {"levels": LEVELS, "coverage": shares, "count": count},
    }


def row(metric):
    return {
        "posterior": "SWAG",
        "metric": metric,
        "plain": 0.08,
        "flat": 0.04,
        "difference": -0.04,
        "interval": [-0.05, -0.03],
        "winner": "flat",
    }


RUNS = [coverage_run("Plain", seed, [0.3, 0.6, 0.9]) for seed in (0, 1)] + [
    coverage_run("SAM", 0, [0.2, 0.4, 0.6], count=300),
    coverage_run("SAM", 1, [0.4, 0.8, 1.0]),
]
SUMMARY = [row("nll"), row("rmse"), row("miscalibration")]
RESULTS = ComparisonResult.from_dict({"runs": RUNS, "summary": SUMMARY})


def test_coverage_is_averaged_by_the_number_of_targets():
    assert pool_coverage(RESULTS.runs[:2]).coverage == pytest.approx([0.3, 0.6, 0.9])
    assert pool_coverage(RESULTS.runs[2:]).coverage == pytest.approx([0.25, 0.5, 0.7])
    assert pool_coverage(RESULTS.runs[2:]).count == 400
    assert pool_coverage([]) is None
    assert pool_coverage([RunResult("MAP", "Plain", 0, {}), bins_run((3,) * 4, (0.0,) * 4)]) is None
    empty = RunResult("MAP", "Plain", 0, {}, reliability=CoverageCurve((0.5,), (0.0,), 0))
    assert pool_coverage([empty]) is None


def test_one_panel_for_each_posterior():
    (panel,) = coverage_panels(RESULTS)
    assert panel.title == "SWAG"
    assert "Coverage diagram of SWAG" in panel.svg
    assert "miscalibration plain 0.0800" in panel.svg
    assert reliability_panels(RESULTS) == []


def test_the_page_has_coverage_instead_of_reliability():
    text = render_page(RESULTS, Glossary(HIGHER_IS_BETTER, DEFINITIONS))
    assert 'id="coverage"' in text
    assert 'id="reliability"' not in text
    assert "an 80 % interval holds 80 % of the targets" in text
    assert "coverage_95" in text  # in the table of runs
    assert "continuous ranked" not in text  # no run has it


def test_without_coverage_there_is_no_section():
    bare = ComparisonResult.from_dict({"runs": [{**run, "reliability": {}} for run in RUNS], "summary": SUMMARY})
    assert 'id="coverage"' not in render_page(bare, Glossary(HIGHER_IS_BETTER, DEFINITIONS))


def test_bins_with_few_predictions_are_joined_in_diagrams():
    pooled = pool_reliability([bins_run((3, 5, 2, 90), (0.0, 0.2, 0.5, 0.9))] * 2)
    assert pooled.merge().points()[2] == [200]
    with svg.new_figure(300, 300) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        draw_reliability(axes, {True: pooled})
        assert len(axes.lines[1].get_xdata()) == 1


@pytest.mark.parametrize(("largest", "ticks"), [(0, [1]), (1, [1]), (7, [1, 7]), (10, [1, 10]), (2500, [1, 1000])])
def test_the_ticks_of_the_count_axis_differ(largest, ticks):
    axes = Figure().subplots()
    draw_counts(axes, {False: None, True: pool_reliability([bins_run((0, 0, 0, largest), (0.0,) * 4)])})
    assert axes.get_yticks().tolist() == ticks
