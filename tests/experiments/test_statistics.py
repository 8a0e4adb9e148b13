"""Paired statistics over seeds, and the summary of a comparison."""

import math
import random

import numpy as np
import pytest

from flatbayes.experiments import RunResult, SummaryRow, compare_pairs, statistics, summarize_runs
from flatbayes.experiments.statistics import adjust_p_values, bootstrap_interval


def test_paired_interval_is_students():
    plain, flat = [0.10, 0.12, 0.14, 0.11, 0.13], [0.09, 0.10, 0.13, 0.10, 0.11]
    pair = compare_pairs(plain, flat, higher_is_better=False)
    # differences -.01, -.02, -.01, -.01, -.02: mean -.014, sd .00547723, t(.975, 4) = 2.776445
    half = 2.776445105 * 0.005477225575 / math.sqrt(5)
    assert pair.difference == pytest.approx(-0.014)
    assert pair.interval == pytest.approx((-0.014 - half, -0.014 + half), rel=1e-8)
    assert pair.winner == "flat"
    assert pair.plain == pytest.approx(0.12)
    assert pair.plain_sd == pytest.approx(math.sqrt(0.00025))
    assert pair.num_seeds == 5


def test_the_winner_depends_on_the_direction_and_needs_an_interval_without_zero():
    low, high, same = [0.1, 0.2, 0.3], [0.5, 0.61, 0.69], [0.2, 0.1, 0.3]
    assert compare_pairs(low, high, higher_is_better=True).winner == "flat"
    assert compare_pairs(low, high, higher_is_better=False).winner == "plain"
    assert compare_pairs(high, low, higher_is_better=True).winner == "plain"
    assert compare_pairs(low, same, higher_is_better=True).winner == "tie"
    assert compare_pairs(low, low, higher_is_better=True).winner == "tie"


@pytest.mark.parametrize(
    ("plain", "flat"),
    [
        ([0.1], [0.9]),
        ([0.1, 0.2], [0.9, 0.91]),
        ([0.1, 0.2], [0.9, 1.0]),
        ([1.0] * 5, [2.0] * 5),
        ([0.1, 0.2, 0.3], [0.3, 0.4, 0.5]),  # differences that are equal up to rounding
        ([0.5, 0.6, 0.7, 0.8], [0.5 + 1e-8, 0.6 + 2e-8, 0.7 + 1e-8, 0.8 + 1e-8]),
        ([1.0] * 12, [2.0 + 1e-9 * k for k in range(12)]),
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_no_verdict_from_few_seeds_or_a_spread_of_rounding_size(plain, flat, higher_is_better):
    pair = compare_pairs(plain, flat, higher_is_better=higher_is_better)
    assert (pair.interval, pair.p_value, pair.effect_size, pair.bootstrap_interval) == (None,) * 4
    assert pair.winner == "tie"
    assert SummaryRow("A", "SAM", "nll", "", pair).verdict == "unknown"


NULL_DIFFERENCES = {
    "normal": lambda random, shape: random.normal(size=shape),
    **{
        f"accuracy of {n} examples": lambda random, shape, n=n: (
            (random.binomial(n, 0.9, shape) - random.binomial(n, 0.9, shape)) / n
        )
        for n in (10, 30, 100)
    },
    **{
        f"{rate} examples that differ": lambda random, shape, rate=rate: (
            (random.poisson(rate, shape) - random.poisson(rate, shape)) / 100
        )
        for rate in (0.2, 0.5, 1, 3)
    },
}


@pytest.mark.parametrize(
    "num_seeds", [2, 3, 5, 10, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 6, 7, 8, 9))]
)
def test_the_type_1_error_is_at_most_its_level(num_seeds, monkeypatch):
    monkeypatch.setattr(statistics, "MIN_BOOTSTRAP_SEEDS", 99)  # slow, and no verdict depends on it
    random = np.random.default_rng(num_seeds)
    for name, draw in NULL_DIFFERENCES.items():
        verdicts = [
            compare_pairs([0.9] * num_seeds, [0.9 + d for d in row], higher_is_better=True).winner != "tie"
            for row in draw(random, (150, num_seeds)).tolist()
        ]
        assert sum(verdicts) <= (0 if num_seeds == 2 else 20), name  # 7.5 expected, standard deviation 2.7


@pytest.mark.parametrize(("plain", "flat"), [([], []), ([0.1], [0.1, 0.2]), ([0.1, math.nan], [0.2, 0.3])])
def test_values_that_are_no_pairs_are_refused(plain, flat):
    with pytest.raises(ValueError, match="finite value of plain and of flat training for each seed"):
        compare_pairs(plain, flat, higher_is_better=True)


def test_p_value_and_effect_are_those_of_the_paired_t_test():
    from scipy.stats import ttest_rel

    plain, flat = [0.10, 0.12, 0.14, 0.11, 0.13], [0.09, 0.10, 0.13, 0.10, 0.135]
    pair = compare_pairs(plain, flat, higher_is_better=False)
    assert pair.p_value == pytest.approx(ttest_rel(flat, plain).pvalue, rel=1e-10)
    assert pair.effect_size == pytest.approx(-ttest_rel(flat, plain).statistic / math.sqrt(5), rel=1e-10)
    assert (pair.num_flat_better, pair.num_plain_better) == (4, 1)
    assert compare_pairs(plain, flat, higher_is_better=True).effect_size == -pair.effect_size
    assert compare_pairs(plain, plain, higher_is_better=False).p_value == 1.0
    assert compare_pairs(plain, plain, higher_is_better=False).interval == (0.0, 0.0)


def test_the_coverage_of_bootstrap_intervals_is_their_level():
    generator = random.Random(0)
    samples = [[generator.expovariate(1.0) for _ in range(30)] for _ in range(60)]
    ends = [bootstrap_interval(sample, 0.8) for sample in samples]
    covered = sum(low <= 1.0 <= high for low, high in ends)
    assert 38 <= covered <= 57  # 48 expected, standard deviation 3.1
    assert bootstrap_interval(samples[0]) == bootstrap_interval(samples[0])
    assert bootstrap_interval([1.0] * 20) is None
    assert bootstrap_interval([1.0, 2.0, 3.0]) is None
    assert bootstrap_interval(samples[0][:9]) is None
    assert bootstrap_interval(samples[0][:10]) is not None


def test_holm_is_between_no_correction_and_bonferroni():
    assert adjust_p_values([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert adjust_p_values([0.6, 0.7, None]) == [1.0, 1.0, None]
    assert adjust_p_values([]) == []


def run(posterior, flatness, seed, **metrics):
    return RunResult(posterior, flatness, seed, metrics)


def test_only_seeds_with_a_plain_and_a_flat_run_are_paired():
    runs = [
        run("A", "Plain", 0, nll=1.0, accuracy=0.5),
        run("A", "SAM", 0, nll=0.8, accuracy=0.6),
        run("A", "Plain", 1, nll=1.1, accuracy=None),
        run("A", "SAM", 1, nll=0.9, accuracy=0.7),
        run("A", "Plain", 3, nll=1.2, accuracy=None),
        run("A", "SAM", 3, nll=1.01, accuracy=0.7),
        run("A", "Plain", 2, nll=9.0, accuracy=0.1),
        run("B", "Plain", 0, nll=1.0, accuracy=0.5),
    ]
    rows = summarize_runs(runs, "Plain", {"nll": False, "accuracy": True})
    assert [(row.posterior, row.metric, row.comparison.num_seeds) for row in rows] == [
        ("A", "nll", 3),
        ("A", "accuracy", 1),
    ]
    assert rows[0].comparison.difference == pytest.approx(-0.59 / 3)
    assert rows[0].comparison.winner == "flat"
    assert [row.p_holm for row in rows] == [rows[0].comparison.p_value, None]


def test_metrics_that_runs_do_not_have_are_left_out():
    runs = [run("P", flatness, seed, nll=1.0 + seed) for flatness in ("Plain", "SAM") for seed in range(2)]
    assert [row.metric for row in summarize_runs(runs, "Plain", {"accuracy": True, "nll": False})] == ["nll"]


def test_p_values_are_adjusted_within_their_family():
    runs = [
        run(
            "A",
            flatness,
            seed,
            nll=seed + flat * (0.1 + 0.01 * seed),
            ece=seed + flat * (0.3 - 0.02 * seed),
            trace=seed + 0.1 * flat * (seed - 1),
        )
        for flat, flatness in enumerate(("Plain", "SAM"))
        for seed in range(4)
    ]
    rows = {
        row.metric: row
        for row in summarize_runs(
            runs, "Plain", dict.fromkeys(("nll", "ece", "trace"), False), {"trace": "Sharpness"}
        )
    }
    p_values = [rows[name].comparison.p_value for name in ("nll", "ece")]
    assert [rows[name].p_holm for name in ("nll", "ece")] == adjust_p_values(p_values) != p_values
    assert rows["trace"].p_holm == rows["trace"].comparison.p_value
    assert rows["trace"].family == "Sharpness"


def test_rows_are_ordered_by_posterior_flatness_and_metric():
    cells = [("B", "Plain"), ("A", "Plain"), ("A", "SAM(2)"), ("B", "SAM(1)"), ("A", "SAM(1)")]
    runs = [run(posterior, flatness, 0, ece=0.1, nll=0.2) for posterior, flatness in cells]
    rows = summarize_runs(runs, "Plain", {"nll": False, "ece": False})
    assert [(row.posterior, row.flatness, row.metric) for row in rows] == [
        *(("B", "SAM(1)", "nll"), ("B", "SAM(1)", "ece")),
        *(("A", "SAM(2)", "nll"), ("A", "SAM(2)", "ece")),
        *(("A", "SAM(1)", "nll"), ("A", "SAM(1)", "ece")),
    ]
