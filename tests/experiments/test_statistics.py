import math
import random

import pytest

from flatbayes.experiments import compare_pairs, summarize_runs
from flatbayes.experiments.statistics import adjust_p_values, bootstrap_interval


def test_paired_interval_is_students():
    plain, flat = [0.10, 0.12, 0.14, 0.11, 0.13], [0.09, 0.10, 0.13, 0.10, 0.11]
    found = compare_pairs(plain, flat, higher_is_better=False)
    # differences -.01, -.02, -.01, -.01, -.02: mean -.014, sd .00547723, t(.975, 4) = 2.776445
    half = 2.776445105 * 0.005477225575 / math.sqrt(5)
    assert found.difference == pytest.approx(-0.014)
    assert found.interval == pytest.approx((-0.014 - half, -0.014 + half), rel=1e-8)
    assert found.winner == "flat"
    assert found.plain == pytest.approx(0.12)
    assert found.plain_sd == pytest.approx(math.sqrt(0.00025))
    assert found.num_seeds == 5


def test_who_wins_depends_on_the_direction_and_needs_evidence():
    low, high, same = [0.1, 0.2, 0.3], [0.5, 0.61, 0.69], [0.2, 0.1, 0.3]
    assert compare_pairs(low, high, higher_is_better=True).winner == "flat"
    assert compare_pairs(low, high, higher_is_better=False).winner == "plain"
    assert compare_pairs(high, low, higher_is_better=True).winner == "plain"
    assert compare_pairs(low, same, higher_is_better=True).winner == "tie"
    assert compare_pairs(low, low, higher_is_better=True).winner == "tie"


def test_one_seed_is_no_evidence():
    found = compare_pairs([0.1], [0.9], higher_is_better=True)
    assert found.interval is None
    assert found.winner == "tie"
    assert math.isnan(found.plain_sd)


def test_p_value_and_effect_are_those_of_the_paired_t_test():
    from scipy.stats import ttest_rel

    plain, flat = [0.10, 0.12, 0.14, 0.11, 0.13], [0.09, 0.10, 0.13, 0.10, 0.135]
    found = compare_pairs(plain, flat, higher_is_better=False)
    assert found.p_value == pytest.approx(ttest_rel(flat, plain).pvalue, rel=1e-10)
    assert found.effect_size == pytest.approx(-ttest_rel(flat, plain).statistic / math.sqrt(5), rel=1e-10)
    assert (found.num_flat_better, found.num_plain_better) == (4, 1)
    assert compare_pairs(plain, plain, higher_is_better=False).p_value == 1.0
    assert compare_pairs([1.0, 1.0], [2.0, 2.0], higher_is_better=True).p_value == 0.0


def test_bootstrap_covers_the_mean_about_as_often_as_it_says():
    generator = random.Random(0)
    samples = [[generator.expovariate(1.0) for _ in range(30)] for _ in range(60)]
    ends = [bootstrap_interval(sample, 0.8) for sample in samples]
    covered = sum(low <= 1.0 <= high for low, high in ends)
    assert 38 <= covered <= 57  # 48 expected, standard deviation 3.1
    assert bootstrap_interval(samples[0]) == bootstrap_interval(samples[0])
    assert bootstrap_interval([1.0] * 20) is None
    assert bootstrap_interval([1.0, 2.0, 3.0]) is None


def test_holm_is_between_no_correction_and_bonferroni():
    assert adjust_p_values([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert adjust_p_values([0.6, 0.7, None]) == [1.0, 1.0, None]
    assert adjust_p_values([]) == []


def run(posterior, flatness, seed, **metrics):
    return {"posterior": posterior, "flatness": flatness, "seed": seed, "metrics": metrics}


def test_only_seeds_that_both_twins_have_are_paired():
    runs = [
        run("A", "Plain", 0, nll=1.0, accuracy=0.5),
        run("A", "SAM", 0, nll=0.8, accuracy=0.6),
        run("A", "Plain", 1, nll=1.1, accuracy=None),
        run("A", "SAM", 1, nll=0.9, accuracy=0.7),
        run("A", "Plain", 2, nll=9.0, accuracy=0.1),
        run("B", "Plain", 0, nll=1.0, accuracy=0.5),
    ]
    rows = summarize_runs(runs, "Plain", {"nll": False, "accuracy": True})
    assert [(r["posterior"], r["metric"], r["num_seeds"]) for r in rows] == [
        ("A", "nll", 2),
        ("A", "accuracy", 1),
    ]
    assert rows[0]["difference"] == pytest.approx(-0.2)
    assert rows[0]["winner"] == "flat"
    assert [row["p_holm"] for row in rows] == [rows[0]["p_value"], None]


def test_metrics_that_runs_do_not_have_are_left_out():
    runs = [
        {"posterior": "P", "flatness": flatness, "seed": seed, "metrics": {"nll": 1.0 + seed}}
        for flatness in ("Plain", "SAM")
        for seed in range(2)
    ]
    assert [row["metric"] for row in summarize_runs(runs, "Plain", {"accuracy": True, "nll": False})] == ["nll"]
