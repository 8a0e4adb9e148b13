import pytest

from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER
from flatbayes.reporting.coverage import coverage_panels, pool_coverage
from flatbayes.reporting.html import render_page
from flatbayes.reporting.queries import Glossary
from flatbayes.reporting.reliability import reliability_panels

LEVELS = [0.25, 0.5, 0.75]


def run(flatness, seed, shares, count=100):
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


RUNS = [run("Plain", seed, [0.3, 0.6, 0.9]) for seed in (0, 1)] + [
    run("SAM", 0, [0.2, 0.4, 0.6], count=300),
    run("SAM", 1, [0.4, 0.8, 1.0]),
]
RESULTS = {"runs": RUNS, "summary": [row("nll"), row("rmse"), row("miscalibration")]}


def test_coverage_averages_by_the_number_of_targets():
    assert pool_coverage(RUNS[:2]).coverage == pytest.approx([0.3, 0.6, 0.9])
    assert pool_coverage(RUNS[2:]).coverage == pytest.approx([0.25, 0.5, 0.7])
    assert pool_coverage([]) is None
    assert pool_coverage([{"reliability": {}}, {"reliability": {"edges": [0, 1], "counts": [3]}}]) is None


def test_one_panel_for_each_posterior():
    (panel,) = coverage_panels(RESULTS)
    assert panel.title == "SWAG"
    assert "Coverage diagram of SWAG" in panel.svg
    assert reliability_panels(RESULTS) == []


def test_the_page_has_coverage_instead_of_reliability():
    text = render_page(RESULTS, Glossary(HIGHER_IS_BETTER, DEFINITIONS))
    assert 'id="coverage"' in text
    assert 'id="reliability"' not in text
    assert "an 80 % interval holds 80 % of the targets" in text
    assert "coverage_95" in text  # in the table of runs
    assert "continuous ranked" not in text  # no run has it


def test_without_coverage_there_is_no_section():
    bare = {"runs": [{**one, "reliability": {}} for one in RUNS], "summary": RESULTS["summary"]}
    assert 'id="coverage"' not in render_page(bare, Glossary(HIGHER_IS_BETTER, DEFINITIONS))
