"""The study of distances to exact posteriors: methods, candidates and tables."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

import flatbayes.posteriors
from flatbayes import Ensemble, Posterior
from flatbayes.experiments import RunResult
from flatbayes.experiments.references import find_density
from flatbayes.posteriors import TFB, BLoB
from flatbayes.posteriors.optimization import max_weight_decay
from studies.reference.page import describe_closeness, format_metric, render_task, select_closest
from studies.reference.study import (
    LR_FACTORS,
    TASKS,
    bootstrap_correlation,
    compare_distances,
    list_posteriors,
    make_candidates,
    rank_correlation,
    summarize,
)


def make_runs():
    """Four methods, three seeds: SAM is closer for A and B, and the NLL grows with the distance."""
    runs = []
    for index, name in enumerate("ABCD"):
        for seed in range(3):
            for flatness, shift in (("Plain", 0.02), ("SAM", 0.0)):
                distance = 0.1 * (index + 1) + (shift if index < 2 else -shift) + 0.001 * seed * (flatness == "SAM")
                metrics = {"tv": distance + 0.01, "tv_flat": distance, "nll": 2 * distance, "nll_calibrated": None}
                runs.append(RunResult(name, flatness, seed, metrics))
    return runs


def test_every_exported_posterior_takes_part_with_the_same_density():
    task = replace(TASKS["energy"], prior_precision=7.0, temperature=3.0)
    posteriors = list_posteriors(task.prior_precision, task.temperature)
    kinds = {getattr(flatbayes.posteriors, name) for name in flatbayes.posteriors.__all__} - {Posterior, BLoB, TFB}
    assert {type(posterior) for posterior in posteriors.values()} == {k for k in kinds if isinstance(k, type)}
    for label, posterior in posteriors.items():
        methods = make_candidates(posterior, label, task, 100)
        assert len(methods) == len(LR_FACTORS)
        assert {method.label for method in methods} == {label}
        for method in methods:
            config = method.apply_overrides(flatbayes.TrainingConfig())
            precision, temperature = find_density(posterior, config, 100)
            assert precision * temperature == pytest.approx(21.0)  # the mode is that of the density
            has_temperature = temperature == pytest.approx(3.0)
            assert has_temperature or "temperature" not in {field.name for field in fields(posterior)}
            weight = [nn.Parameter(torch.zeros(1))]
            member = posterior.member if isinstance(posterior, Ensemble) else posterior
            if getattr(member, "prior_precision", None) is not None:
                assert max_weight_decay(config.optimizer(weight)) == 0


def test_summary_and_differences():
    rows = summarize(make_runs())
    assert len(rows) == 8
    assert rows[0]["metrics"]["tv_flat"]["mean"] == pytest.approx(0.12)
    assert "nll_calibrated" not in rows[0]["metrics"]
    moved = {row["posterior"]: row for row in compare_distances(rows)}
    assert moved["A"]["difference"] == pytest.approx(-0.019)
    assert [moved[name]["closer"] for name in "ABCD"] == ["flat", "flat", "plain", "plain"]


def test_rank_correlation():
    rows = [row for row in summarize(make_runs()) if row["flat"]]
    result = rank_correlation(rows, "tv_flat")
    assert (result["correlation"], *result["interval"]) == pytest.approx((1.0, 1.0, 1.0))
    noisy = np.random.default_rng(1).normal(size=(400, 2))
    low, high = bootstrap_correlation(noisy)  # Fisher's interval has this width
    assert low < 0 < high
    assert high - low == pytest.approx(2 * 1.96 * 1.03 / math.sqrt(397), rel=0.15)
    assert rank_correlation(rows[:3], "tv_flat") is None
    assert rank_correlation(rows, "tv_flat", "nll_calibrated") is None


def test_table_and_conclusion():
    rows = summarize(make_runs())
    diagnostics = {"r_hat_max": 1.02, "ess_min": 300.0}
    config = {"num_chains": 4, "num_steps": 5000}
    kind = {"metrics": {"nll": 0.3}, "noise": {"agreement": 0.99, "tv": 0.02}, "diagnostics": diagnostics}
    kind["config"] = config
    reference = {"plain": kind, "flat": kind, "distance": {"agreement": 0.9, "tv": 0.2}}
    worse = {**kind, "metrics": {"nll": 0.5}, "diagnostics": {"r_hat_max": 1.3, "ess_min": 9.0}}
    results = {
        "title": "toy",
        "prior_precision": 1.0,
        "rho": 0.1,
        "epochs": 3,
        "temperature": 2.0,
        "num_seeds": 3,
        "planned_seeds": 5,
        "one_split": False,
        "references": [reference, {**reference, "plain": worse}],
        "plain_only": {"BSAM": "refused"},
        "rows": rows,
    }
    text = render_task(results)
    assert "temperature 2, radius 0.1; 3 of 5 standard splits" in text
    assert "plain: 4 chains of 5,000 steps, largest R-hat 1.300, smallest effective sample size 9;" in text
    assert "`BSAM` goes with Plain only." in text
    lines = [line for line in text.splitlines() if line.startswith("| ") and "exact" not in line]
    assert [line.split("|")[1].strip() for line in lines[1:]] == ["A", "A", "B", "B", "C", "C", "D", "D"]
    assert "| **exact** (plain; own column: two halves) | | 0.020 | 0.200 | 0.400 |" in text
    conclusion = "\n".join(describe_closeness(rows, "tv_flat"))
    assert "SAM brings A, B closer" in conclusion
    assert "takes C, D farther" in conclusion
    assert (
        "Runs with SAM, distance to the sharpness-aware reference, 4 methods: +1.00 with NLL [+1.00, +1.00]"
        in conclusion
    )
    assert [row["posterior"] for row in select_closest(rows, "tv_flat")] == ["A", "A", "B", "B"]
    assert format_metric({"mean": math.pi, "sd": None}) == "3.142"
