"""Predictions of every posterior for a pool of held-out examples, and the coverage over random splits of it.

Each posterior is trained once for each data set. The pool is divided at random into calibration and test examples,
200 times. Given the scores of the pool, if no two are equal, the number of covered test examples of a split is
exactly beta-binomial, and splits are independent. Every data set, posterior and score has splits of its own, so that
all results are independent. For each

* the mean coverage over splits has the expectation k / (n + 1), k = ceil((n + 1) level), and a known variance;
* the number of splits below their 95 % range is binomial.

Equal scores, as of saturated probabilities, make the coverage larger.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import betabinom, norm
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor

import flatbayes.posteriors
from flatbayes import MLP, SAM, Plain, TrainingConfig, fit
from flatbayes.calibration import (
    APS,
    LAC,
    RAPS,
    ConformalScore,
    NormalizedResidual,
    QuantileResidual,
    conformal_rank,
    fit_conformal,
)
from flatbayes.core.files import read_json, write_json
from flatbayes.data import UCI, load_training_splits
from flatbayes.likelihoods import Predictive
from flatbayes.posteriors import Posterior
from flatbayes.training import CollectionConfig, OptimizationConfig

LEVEL, NUM_SPLITS, NUM_TRAIN, MAX_POOL, NUM_DRAWS = 0.9, 200, 300, 800, 30
RANGE = 0.95
"""Probability of the range of each coverage."""
CLASS_SCORES: dict[str, ConformalScore] = {"LAC": LAC(), "APS": APS(), "RAPS": RAPS()}
NUMBER_SCORES: dict[str, ConformalScore] = {"normalised": NormalizedResidual(), "CQR": QuantileResidual()}
CONFIG = TrainingConfig(
    epochs=100, optimization=OptimizationConfig(clip_norm=1.0), collection=CollectionConfig(start_fraction=0.5)
)


def _load_uci(name: str) -> tuple[Any, Any]:
    splits = UCI(name=name).load(seed=0)
    parts = (splits.train, splits.val, splits.test)
    return tuple(torch.cat([getattr(part, column) for part in parts]) for column in ("inputs", "targets"))


DATA: dict[str, Callable[[], tuple[Any, Any]]] = {
    "breast cancer": lambda: load_breast_cancer(return_X_y=True),
    "digits": lambda: load_digits(return_X_y=True),
    "diabetes": lambda: load_diabetes(return_X_y=True, scaled=False),
    "concrete": lambda: _load_uci("concrete"),
    "energy": lambda: _load_uci("energy"),
}
UCI_NAMES = ("concrete", "energy")
"""Data sets that are in the folder of the environment variable FLATBAYES_DATA."""


@dataclass(frozen=True)
class CoverageResult:
    """Coverage of one data set, posterior and score over all splits.

    Attributes:
        data: Name of the data set.
        posterior: Name of the posterior.
        score: Name of the score.
        num_calibration: Calibration examples of each split.
        num_test: Test examples of each split.
        coverage: Mean coverage over the splits.
        expected: Its expectation if no scores are equal.
        coverage_range: Range of the mean coverage, of probability 95 %, if no scores are equal.
        mean_size: Mean number of classes, or mean width of intervals.
        num_splits: Number of splits.
        num_below: Splits whose coverage is below its range.
        expected_below: Expected number of these.
    """

    data: str
    posterior: str
    score: str
    num_calibration: int
    num_test: int
    coverage: float
    expected: float
    coverage_range: tuple[float, float]
    mean_size: float
    num_splits: int
    num_below: int
    expected_below: float


def list_posteriors() -> dict[str, Posterior]:
    """Every posterior of `flatbayes.posteriors` with its default options."""
    kinds = {name: getattr(flatbayes.posteriors, name) for name in flatbayes.posteriors.__all__}
    return {name: kind() for name, kind in sorted(kinds.items()) if kind is not Posterior}


def split_pool(data: tuple[Any, Any]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training inputs and targets, and at most `MAX_POOL` others, in a random order."""
    inputs, targets = (torch.as_tensor(np.asarray(values)) for values in data)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(targets)))
    size = min(NUM_TRAIN, len(rows) // 2)
    pairs = [(inputs[part].double(), targets[part]) for part in (rows[:size], rows[size : size + MAX_POOL])]
    return pairs[0], pairs[1]


def measure_coverage(
    predictive: Predictive,
    targets: Tensor,
    score: ConformalScore,
    names: tuple[str, str, str],
    num_splits: int = NUM_SPLITS,
) -> CoverageResult:
    """Coverage over random splits of a pool into halves; `names` are those of data set, posterior and score."""
    num_calibration = len(targets) // 2
    num_test, rank = len(targets) - num_calibration, conformal_rank(num_calibration, LEVEL)
    distribution = betabinom(num_test, rank, num_calibration + 1 - rank)
    lowest = distribution.ppf((1 - RANGE) / 2)
    key = zlib.crc32("/".join(names).encode())  # splits of their own, so that results are independent
    coverages, sizes = [], []
    for split in range(num_splits):
        rows = torch.from_numpy(np.random.default_rng([split, key]).permutation(len(targets)))
        calibration, test = rows[:num_calibration], rows[num_calibration:]
        predictor = fit_conformal(predictive.select(calibration), targets[calibration], score, level=LEVEL)
        region = predictor.predict(predictive.select(test))
        coverages.append(int(region.contains(targets[test]).sum()))
        sizes.append(float(region.size.double().mean()))
    half = norm.ppf((1 + RANGE) / 2) * distribution.std() / (num_test * math.sqrt(num_splits))
    expected = rank / (num_calibration + 1)
    return CoverageResult(
        *names,
        num_calibration,
        num_test,
        float(np.mean(coverages)) / num_test,
        expected,
        (expected - half, expected + half),
        float(np.mean(sizes)),
        num_splits,
        sum(bool(count < lowest) for count in coverages),
        num_splits * float(distribution.cdf(lowest - 1)),
    )


def run_pair(data_name: str, posterior_name: str, posterior: Posterior) -> list[CoverageResult]:
    """Train a posterior flat, unless it perturbs the weights itself, and measure every score."""
    train, (inputs, targets) = split_pool(DATA[data_name]())
    splits = load_training_splits(train, task="regression" if targets.is_floating_point() else "classification")
    flatness = Plain() if posterior.perturbs_weights else SAM()
    fitted = fit(MLP, splits, posterior, flatness, CONFIG, seed=0, show_progress=False)
    predictive = fitted.predict(inputs, NUM_DRAWS)
    scores = NUMBER_SCORES if targets.is_floating_point() else CLASS_SCORES
    targets = targets.reshape(predictive.mean.shape) if targets.is_floating_point() else targets
    return [
        measure_coverage(predictive, targets, score, (data_name, posterior_name, name))
        for name, score in scores.items()
    ]


def run_study(folder: Path, data_names: Sequence[str], posterior_names: Sequence[str]) -> list[str]:
    """Measure what has no file in the folder yet, and return what failed."""
    failures, posteriors = list[str](), list_posteriors()
    for data_name in data_names:
        for name in posterior_names:
            path = folder / f"{data_name.replace(' ', '-')}-{name}.json"
            if path.is_file():
                continue
            try:
                results = run_pair(data_name, name, posteriors[name])
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                failures.append(f"{data_name}, {name}: {error}")
                continue
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, [asdict(result) for result in results])
            print(data_name, name, ", ".join(f"{r.score} {r.coverage:.4f}" for r in results), flush=True)
    return failures


def load_results(folder: Path) -> list[CoverageResult]:
    """All results of a folder."""
    rows = [row for path in sorted(folder.glob("*.json")) for row in read_json(path)]
    return [CoverageResult(**{**row, "coverage_range": tuple(row["coverage_range"])}) for row in rows]
