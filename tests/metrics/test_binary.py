"""Ranking metrics of two classes, against scikit-learn."""

import math

import pytest
import torch

from flatbayes import MAP, MLP, Categorical, Plain, compare, evaluate, fit
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
    evaluated = _compute_metrics(Categorical(2).predictive([log_probs]), labels, 1).metrics
    assert {name: evaluated[name] for name in BINARY_METRICS} == pytest.approx(expected, rel=1e-6)


def test_a_missing_class_gives_nan_and_three_classes_none():
    log_probs, labels = make_case(decimals=12)
    assert all(math.isnan(value) for value in binary_metrics(log_probs, 0 * labels).values())
    assert binary_metrics(torch.full((4, 3), 1 / 3).log(), torch.tensor([0, 1, 2, 1])) == {}


def test_they_are_in_evaluations_and_in_a_table_of_their_own():
    inputs = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))
    data, config = (inputs, (inputs[:, 0] > 0.5).long()), {"epochs": 2}
    fitted = fit(MLP, data, MAP(), Plain(), config)
    assert {*BINARY_METRICS} <= {*evaluate(fitted, data).metrics}
    result = compare(MLP, data, [MAP()], config=config, num_seeds=3)
    assert {*BINARY_METRICS} <= {*result.runs[0].metrics}
    text = result.summary()
    assert "Ranking of two classes" in text
    assert "compared with plain training on 5 metrics" in text or "of 5 metrics (5 metrics" in text
