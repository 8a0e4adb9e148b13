import math

import pytest

from flatbayes.comparison import paired, summarise


def test_paired_interval_is_students():
    plain, flat = [0.10, 0.12, 0.14, 0.11, 0.13], [0.09, 0.10, 0.13, 0.10, 0.11]
    found = paired(plain, flat, higher_is_better=False)
    # differences -.01, -.02, -.01, -.01, -.02: mean -.014, sd .00547723, t(.975, 4) = 2.776445
    half = 2.776445105 * 0.005477225575 / math.sqrt(5)
    assert found.difference == pytest.approx(-0.014)
    assert found.interval == pytest.approx((-0.014 - half, -0.014 + half), rel=1e-8)
    assert found.wins == "flat"
    assert found.plain == pytest.approx(0.12)
    assert found.plain_sd == pytest.approx(math.sqrt(0.00025))
    assert found.n == 5


def test_who_wins_depends_on_the_direction_and_needs_evidence():
    low, high, same = [0.1, 0.2, 0.3], [0.5, 0.61, 0.69], [0.2, 0.1, 0.3]
    assert paired(low, high, higher_is_better=True).wins == "flat"
    assert paired(low, high, higher_is_better=False).wins == "plain"
    assert paired(high, low, higher_is_better=True).wins == "plain"
    assert paired(low, same, higher_is_better=True).wins == "tie"
    assert paired(low, low, higher_is_better=True).wins == "tie"


def test_one_seed_is_no_evidence():
    found = paired([0.1], [0.9], higher_is_better=True)
    assert found.interval is None
    assert found.wins == "tie"
    assert math.isnan(found.plain_sd)


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
    rows = summarise(runs, "Plain", {"nll": False, "accuracy": True})
    assert [(r["posterior"], r["metric"], r["n"]) for r in rows] == [
        ("A", "nll", 2),
        ("A", "accuracy", 1),
    ]
    assert rows[0]["difference"] == pytest.approx(-0.2)
    assert rows[0]["wins"] == "flat"
