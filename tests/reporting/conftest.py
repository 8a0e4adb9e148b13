"""Content of a `results.json` from seeded random numbers, its summary computed independently of the package."""

import random
from math import exp, sqrt
from statistics import fmean, stdev

import pytest

from flatbayes.metrics import METRIC_FAMILIES
from flatbayes.reporting.queries import Glossary

HIGHER_IS_BETTER = {"accuracy": True, "nll": False, "ece": False, "brier": False, "auroc_correct": True}
DEFINITIONS = {
    "accuracy": "Share of examples whose most probable class is the true one.",
    "nll": "Mean negative log probability of the true class, in nats.",
    "ece": "Mean gap of confidence and accuracy over 20 equal-width bins (a, b] of the top probability.",
    "brier": "Mean squared distance of the probabilities to the one-hot label.",
    "auroc_correct": "Area under the ROC curve of the top probability as a detector of correct predictions.",
}
POSTERIORS = {
    "MAP()": 0.150,
    "MCDropout(rate=0.1)": 0.125,
    "SWAG(rank=0)": 0.112,
    "SWAG(rank=10)": 0.108,
    "Ensemble(member=SWAG(rank=10), size=3)": 0.095,
}
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


def fake_results(seeds=5, posteriors=None, metrics=None, epochs=30):
    """A `results.json` in which SAM mostly helps."""
    rng = random.Random(7)
    labels = list(POSTERIORS)[:5] if posteriors is None else posteriors
    names = list(HIGHER_IS_BETTER) if metrics is None else metrics
    runs = []
    for label in labels:
        base = POSTERIORS.get(label, 0.12)
        for seed in range(seeds):
            luck = rng.gauss(0, 0.006)
            for flatness in ("Plain", "SAM(rho=0.1)"):
                nll = base + luck + rng.gauss(0, 0.003) - 0.012 * (flatness != "Plain")
                runs.append(run(rng, label, flatness, seed, nll, names, epochs))
    return {
        "schema": 2,
        "flatbayes": "0.2.0",
        "environment": {
            "python": "3.11.7",
            "torch": "2.13.0",
            "platform": "Linux",
            "threads": 1,
            "cuda": None,
        },
        "config": {
            "data": {"class_path": "Digits", "init_args": {"train_size": 500}},
            "model": {"class_path": "ConvNet", "init_args": {"width": 32}},
            "optimizer": {"name": "SGD", "lr": 0.05, "momentum": 0.9},
            "epochs": epochs,
            "split": "test",
            "num_seeds": list(range(seeds)),
        },
        "runs": runs,
        "summary": [summary(runs, label, name, seeds) for label in labels for name in names],
    }


def run(rng, label, flatness, seed, nll, names, epochs):
    """One run whose metrics follow from its NLL."""
    flat = flatness != "Plain"
    values = {
        "accuracy": 1 - nll / 3.4 + rng.gauss(0, 0.001),
        "nll": nll,
        "ece": abs(0.012 + 0.12 * (nll - 0.08) + rng.gauss(0, 0.0015)),
        "brier": 0.45 * nll + rng.gauss(0, 0.001),
        "auroc_correct": 0.975 - nll / 6 + rng.gauss(0, 0.004),
    }
    many = 3.0 if label.startswith("Ensemble") else 1.0
    return {
        "data": "Digits(train_size=500)",
        "model": "ConvNet(width=32)",
        "posterior": label,
        "flatness": flatness,
        "seed": seed,
        "metrics": {name: values.get(name, rng.random()) for name in names},
        "cost": {
            "train_seconds": many * (3.1 if not flat else 5.8) + rng.gauss(0, 0.1),
            "gradients": int(many * 480 * (1 + flat)),
            "peak_memory_mb": 400.0 + 12 * flat + rng.gauss(0, 3),
        },
        "reliability": reliability(rng, 0.07 if not flat else 0.03),
        "history": history(rng, nll, epochs, flat),
    }


def reliability(rng, gap):
    """Twenty bins of 900 predictions, overconfident by up to `gap`; the lowest ones are empty."""
    edges = [k / 20 for k in range(21)]
    counts = [0 if k < 5 else int(2 + 3 * rng.random() + 700 * exp((k - 19) / 1.3)) for k in range(20)]
    confidence = [edges[k] + 0.025 if counts[k] else None for k in range(20)]
    accuracy = [
        min(1.0, max(0.0, c - gap * 4 * c * (1 - c) + rng.gauss(0, 0.05))) if c is not None else None
        for c in confidence
    ]
    return {"edges": edges, "counts": counts, "confidence": confidence, "accuracy": accuracy}


def history(rng, nll, epochs, flat):
    """Losses that decay; validation every fifth epoch."""
    epoch = list(range(1, epochs + 1))
    loss = [2.0 * exp(-e / 4) + (0.03 if flat else 0.008) + 0.01 * rng.random() for e in epoch]
    val = [nll + 1.6 * exp(-e / 4) if e % 5 == 0 or e == epochs else None for e in epoch]
    return {"epoch": epoch, "loss": loss, "val_nll": val, "lr": [0.05 * (1 - e / epochs) for e in epoch]}


def summary(runs, label, name, seeds):
    """One paired row; the interval is the t-interval of the differences."""
    sides = {
        side: [r["metrics"][name] for r in runs if (r["posterior"], r["flatness"]) == (label, flatness)]
        for side, flatness in (("plain", "Plain"), ("flat", "SAM(rho=0.1)"))
    }
    differences = [b - a for a, b in zip(sides["plain"], sides["flat"], strict=True)]
    mean, ends, winner = fmean(differences), None, "tie"
    if seeds > 1:
        half = T_QUANTILE[seeds] * stdev(differences) / sqrt(seeds)
        ends = [mean - half, mean + half]
        if ends[0] > 0 or ends[1] < 0:
            winner = "flat" if (mean > 0) == HIGHER_IS_BETTER.get(name, True) else "plain"
    means = {side: fmean(values) for side, values in sides.items()}
    deviations = {f"{side}_sd": stdev(values) if seeds > 1 else None for side, values in sides.items()}
    return {
        "posterior": label,
        "metric": name,
        **means,
        **deviations,
        "num_seeds": seeds,
        "difference": mean,
        "interval": ends,
        "p_holm": None if ends is None else 0.5 if winner == "tie" else 0.012,
        "effect_size": None if ends is None else 1.24,
        "winner": winner,
    }


@pytest.fixture(scope="session")
def make_results():
    """Function that makes the content of a fake `results.json`."""
    return fake_results


@pytest.fixture
def results():
    return fake_results()


@pytest.fixture(scope="session")
def glossary():
    return Glossary(HIGHER_IS_BETTER, DEFINITIONS)


@pytest.fixture
def measured(make_results):
    """Results of two posteriors, with sharpness and shift beside the usual metrics."""
    results = make_results(posteriors=["MAP()", "SWAG()"])
    results["summary"] += [
        {**row, "metric": metric, "family": family}
        for family in ("Shift", "Sharpness")
        for metric in METRIC_FAMILIES[family]
        for row in results["summary"]
        if row["metric"] == "nll"
    ]
    for run in results["runs"]:
        run["details"] = {"shift": {"severity": [0.0, 1.0, 5.0], "nll": [0.1, 0.2, 0.9], "accuracy": [0.9, 0.8, 0.4]}}
    return results


@pytest.fixture
def selection():
    """The content of a `selection.json`: two methods, three settings and two radii; one trial failed."""
    scores = {"MAP": (None, 0.2, 0.1), "SWAG": (0.3, 0.25, 0.4)}
    trials = []
    for method, plain_scores in scores.items():
        best = 2 if method == "MAP" else 1
        settings = [f"MAP, weight_decay={k}" for k in range(3)]
        trials += [trial(method, f"{s}, Plain", "plain", plain_scores[k], k == best) for k, s in enumerate(settings)]
        for rho, score in ((0.05, 0.09), (0.1, 0.08)):
            trials.append(trial(method, f"{settings[best]}, SAM(rho={rho})", "flat", score, rho == 0.1))
    return {
        "schema": 2,
        "metric": "nll",
        "seeds": [0, 1, 2],
        "trials": trials,
        "selected_methods": [{"name": name} for name in scores],
    }


def trial(method, setting, variant, score, is_best):
    """One entry of a selection."""
    return {"method": method, "setting": setting, "variant": variant, "score": score, "is_best": is_best}
