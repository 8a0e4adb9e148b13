"""Ranking metrics of two classes, against scikit-learn."""

import math

import pytest
import torch

from flatbayes.likelihoods.categorical_predictive import CategoricalPredictive
from flatbayes.metrics.classification import binary_metrics
from flatbayes.metrics.definitions import BINARY_METRICS
from flatbayes.prediction.evaluation import _compute_metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def make_case(*, decimals):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, generator=generator, dtype=torch.float64) - 2
    labels = (logits.sigmoid() > torch.rand(300, generator=generator)).long()
    probs = logits.sigmoid().clamp(0.01, 0.99).round(decimals=decimals).clamp(0.01, 0.99)
    return torch.stack([1 - probs, probs], -1).log(), labels


@pytest.mark.parametrize("decimals", [12, 1], ids=["distinct", "tied"])
def test_metrics_are_those_of_scikit_learn(decimals):
    log_probs, labels = make_case(decimals=decimals)
    scores = log_probs[:, 1].numpy()
    expected = {
        "auroc": sklearn_metrics.roc_auc_score(labels, scores),
        "aupr": sklearn_metrics.average_precision_score(labels, scores),
    }
    assert binary_metrics(log_probs, labels) == pytest.approx(expected, rel=1e-12)
    evaluated = _compute_metrics(CategoricalPredictive(log_probs[None]), labels, 1).metrics
    assert {name: evaluated[name] for name in BINARY_METRICS} == pytest.approx(expected, rel=1e-6)


def test_a_missing_class_gives_nan_and_three_classes_none():
    log_probs, labels = make_case(decimals=12)
    assert all(math.isnan(value) for value in binary_metrics(log_probs, 0 * labels).values())
    assert binary_metrics(torch.full((4, 3), 1 / 3).log(), torch.tensor([0, 1, 2, 1])) == {}
