"""Rules that predict the winner from one or two features, tested on data sets that are left out.

A rule is a logistic regression on log10 of the features. Every data set has the same weight, however many methods and
networks were tried on it, and is left out as a whole.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from studies.law.twins import Twin

FLOORS = {"gap": 1e-2, "rise": 1e-3, "sharpness": 1e-4, "weights_per_example": 1e-2}
"""Smallest value of each feature; smaller ones count as this."""
RULES: dict[str, tuple[str, ...]] = {
    "gap": ("gap",),
    "rise": ("rise",),
    "sharpness": ("sharpness",),
    "weights per example": ("weights_per_example",),
    "gap and rise": ("gap", "rise"),
    "gap and sharpness": ("gap", "sharpness"),
    "gap and weights per example": ("gap", "weights_per_example"),
}
NUM_RESAMPLES = 10_000
Predict = Callable[[Sequence[Twin], Sequence[Twin]], list[float]]
"""Probabilities that flat wins for the second twins, from a rule fitted to the first."""


@dataclass(frozen=True)
class Rule:
    """Logistic regression: p(flat wins) = sigmoid(intercept + sum of coefficient * log10 feature)."""

    features: tuple[str, ...]
    intercept: float
    coefficients: tuple[float, ...]

    def predict(self, twins: Sequence[Twin]) -> list[float]:
        """Probabilities that flat wins."""
        logits = self.intercept + transform(twins, self.features) @ np.array(self.coefficients)
        return [float(p) for p in expit(logits)]

    @property
    def threshold(self) -> float | None:
        """Value of a single feature at which the probability is a half; None for two features."""
        return 10 ** (-self.intercept / self.coefficients[0]) if len(self.features) == 1 else None


def transform(twins: Sequence[Twin], features: Sequence[str]) -> np.ndarray:
    """log10 of the features, which are at least their floors; a row for each twin."""
    rows = [[math.log10(max(getattr(twin, name), FLOORS[name])) for name in features] for twin in twins]
    return np.array(rows)


def weigh(twins: Sequence[Twin]) -> np.ndarray:
    """Weights that sum to 1 for every data set."""
    counts = Counter(twin.data for twin in twins)
    return np.array([1 / counts[twin.data] for twin in twins])


def fit_rule(twins: Sequence[Twin], features: tuple[str, ...]) -> Rule:
    """The rule of some features, with a weak Gaussian prior on the coefficients; of one class only, a constant."""
    labels = [twin.gain > 0 for twin in twins]
    if len(set(labels)) < 2:
        return Rule(features, 20.0 if labels[0] else -20.0, (0.0,) * len(features))
    model = LogisticRegression(C=10.0).fit(transform(twins, features), labels, sample_weight=weigh(twins))
    return Rule(features, float(model.intercept_[0]), tuple(float(c) for c in model.coef_[0]))


def predict_left_out(twins: Sequence[Twin], predict: Predict) -> list[float]:
    """Probability that flat wins for every twin, from a rule fitted without its data set."""
    probabilities = [math.nan] * len(twins)
    for data in {twin.data for twin in twins}:
        train = [twin for twin in twins if twin.data != data]
        indices = [i for i, twin in enumerate(twins) if twin.data == data]
        for i, p in zip(indices, predict(train, [twins[i] for i in indices]), strict=True):
            probabilities[i] = p
    return probabilities


def make_predict(features: tuple[str, ...]) -> Predict:
    """The rule of given features."""
    return lambda train, test: fit_rule(train, features).predict(test)


def guess_majority(train: Sequence[Twin], test: Sequence[Twin]) -> list[float]:
    """The fraction of training twins that flat wins, the same for every twin."""
    wins = np.array([twin.gain > 0 for twin in train])
    return [float(np.average(wins, weights=weigh(train)))] * len(test)


def select_and_predict(
    train: Sequence[Twin], test: Sequence[Twin], rules: Mapping[str, tuple[str, ...]] = RULES
) -> list[float]:
    """The rule with the highest rank correlation on left-out sets of the training twins: its choice is tested too."""
    correlations = {
        name: score_by_data(train, predict_left_out(train, make_predict(features)))
        for name, features in rules.items()
    }
    best = max(correlations, key=correlations.__getitem__)
    return fit_rule(train, rules[best]).predict(test)


def measure_accuracy(twins: Sequence[Twin], probabilities: Sequence[float]) -> float:
    """Fraction of right predictions, averaged over data sets."""
    return float(np.average(score_right(twins, probabilities), weights=weigh(twins)))


def score_by_data(twins: Sequence[Twin], probabilities: Sequence[float]) -> float:
    """Spearman's rank correlation of predicted probability and gain, whose logarithm is averaged over a data set."""
    data = sorted({twin.data for twin in twins})
    columns = [
        [np.mean([value for twin, value in zip(twins, values, strict=True) if twin.data == name]) for name in data]
        for values in (probabilities, [math.copysign(math.log1p(1e3 * abs(t.gain)), t.gain) for t in twins])
    ]
    return float(spearmanr(*columns).statistic)


def average_by_data(twins: Sequence[Twin], values: np.ndarray) -> np.ndarray:
    """Mean of the values for every data set, without NaN; NaN where there is nothing else."""
    groups: dict[str, list[float]] = {}
    for twin, value in zip(twins, values, strict=True):
        groups.setdefault(twin.data, []).append(float(value))
    numbers = [[value for value in group if not math.isnan(value)] for group in groups.values()]
    return np.array([fmean(group) if group else math.nan for group in numbers])


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean over data sets, which are drawn with replacement."""
    finite = values[~np.isnan(values)]
    rows = np.random.default_rng(0).integers(len(finite), size=(NUM_RESAMPLES, len(finite)))
    low, high = np.percentile(finite[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)


def evaluate_rules(twins: Sequence[Twin], rules: Mapping[str, tuple[str, ...]] = RULES) -> dict[str, dict[str, Any]]:
    """Accuracy of all rules and of the majority guess on left-out data sets, with intervals over data sets.

    Args:
        twins: Twins with all features.
        rules: Features by the name of the rule.

    Returns:
        For each rule its accuracy, the difference to that of the majority guess, and the accuracy without ties, each
        with an interval; and the rank correlation of probability and gain.
    """
    guesses = predict_left_out(twins, guess_majority)
    predictors: dict[str, Predict] = {name: make_predict(features) for name, features in rules.items()}
    if len(rules) > 1:
        predictors["best rule of the other sets"] = partial(select_and_predict, rules=rules)
    predictors["majority guess"] = guess_majority
    table: dict[str, dict[str, Any]] = {}
    for name, predict in predictors.items():
        probabilities = predict_left_out(twins, predict)
        right = score_right(twins, probabilities)
        is_tie = np.array([twin.outcome == "tie" for twin in twins])
        scores = {
            "accuracy": average_by_data(twins, right),
            "over_majority": average_by_data(twins, right - score_right(twins, guesses)),
            "decided": average_by_data(twins, np.where(is_tie, math.nan, right)),
        }
        table[name] = {
            **{key: float(np.nanmean(values)) for key, values in scores.items()},
            **{f"{key}_interval": bootstrap_mean(values) for key, values in scores.items()},
            "rank_correlation": None if predict is guess_majority else score_by_data(twins, probabilities),
            "probabilities": probabilities,
        }
    return table


def score_right(twins: Sequence[Twin], probabilities: Sequence[float]) -> np.ndarray:
    """1 for a right prediction, 0 for a wrong one."""
    return np.array([float((p >= 0.5) == (t.gain > 0)) for t, p in zip(twins, probabilities, strict=True)])
