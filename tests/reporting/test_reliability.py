"""Reliability diagrams: how bins of several seeds become one, and how far chance moves a bin's accuracy."""

import math

import pytest
from scipy import stats

from flatbayes.reporting import svg
from flatbayes.reporting.reliability import DiagramBins, draw_reliability, pool_reliability

EDGES = [0, 0.25, 0.5, 0.75, 1]


def run(counts, accuracy):
    confidence = [0.1, 0.4, 0.7, 0.9]
    return {"reliability": {"edges": EDGES, "counts": counts, "confidence": confidence, "accuracy": accuracy}}


def test_pooled_bins_weigh_by_count():
    runs = [
        {
            "reliability": {
                "edges": [0, 0.5, 1],
                "counts": [0, 1],
                "confidence": [None, 0.9],
                "accuracy": [None, 1.0],
            }
        },
        {
            "reliability": {
                "edges": [0, 0.5, 1],
                "counts": [0, 3],
                "confidence": [None, 0.7],
                "accuracy": [None, 0.0],
            }
        },
    ]
    bins = pool_reliability(runs)
    assert list(bins.counts) == [0, 4]
    assert bins.points() == ([pytest.approx(0.75)], [pytest.approx(0.25)], [4])
    assert pool_reliability([{}, {"reliability": None}]) is None


def test_intervals_are_wilson_s_for_as_many_predictions_as_one_run_makes():
    bins = pool_reliability([run([10, 0, 40, 6], [0.5, None, 0.75, 1.0])] * 3)
    assert list(bins.counts) == [30, 0, 120, 18]
    assert bins.num_runs == 3
    expected = [
        stats.binomtest(hits, count).proportion_ci(method="wilson") for hits, count in ((5, 10), (30, 40), (6, 6))
    ]
    assert bins.intervals() == [pytest.approx((ends.low, ends.high)) for ends in expected]


def test_more_seeds_do_not_narrow_an_interval():
    counts, accuracy = [0, 20, 0, 50], [None, 0.4, None, 0.9]
    assert (
        pool_reliability([run(counts, accuracy)] * 10).intervals()
        == pool_reliability([run(counts, accuracy)]).intervals()
    )


@pytest.mark.parametrize("runs", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 100])
def test_every_interval_holds_its_mark(runs, count):
    accuracy = [hits / count for hits in range(count + 1)]
    bins = DiagramBins([0.0] * (count + 2), [count] * (count + 1), [0.5] * (count + 1), accuracy, runs)
    for (low, high), right in zip(bins.intervals(), accuracy, strict=True):
        assert 0 <= low <= right <= high <= 1


def test_every_mark_has_a_bar_and_those_of_twins_are_beside_each_other():
    twins = {False: pool_reliability([run([10, 0, 40, 6], [0.5, None, 0.75, 1.0])])}
    twins[True] = twins[False]
    with svg.new_figure(300, 300) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        draw_reliability(axes, twins)
        plain, flat = (c for c in axes.collections if hasattr(c, "get_segments"))
        segments = {False: plain.get_segments(), True: flat.get_segments()}
        places = [bars.get_transform().transform((0.5, 0.5))[0] for bars in (plain, flat)]
    for found in segments.values():
        assert [tuple(bar[:, 1]) for bar in found] == [pytest.approx(ends) for ends in twins[False].intervals()]
        assert [bar[0, 0] for bar in found] == twins[False].points()[0]
    assert 2 < (places[1] - places[0]) * svg.UNITS_PER_INCH / figure.dpi < 5
    assert not math.isclose(*places)
