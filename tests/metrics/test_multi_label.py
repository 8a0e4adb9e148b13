"""Metrics of several labels, against scikit-learn where it has them."""

import math

import numpy as np
import pytest
import torch

from flatbayes.metrics import multi_label_metrics
from flatbayes.metrics.multi_label import measure_labels

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def make_case(seed, examples=200, labels=4, *, missing=0.0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(examples, labels, generator=generator, dtype=torch.float64)
    targets = (logits.sigmoid() > torch.rand(examples, labels, generator=generator)).long()
    targets[torch.rand(examples, labels, generator=generator) < missing] = -100
    return torch.stack([-logits, logits], -1).sigmoid().log(), targets


def test_metrics_are_those_of_scikit_learn():
    log_probs, targets = make_case(0)
    metrics, probs, labels = multi_label_metrics(log_probs, targets), log_probs[..., 1].exp().numpy(), targets.numpy()
    is_likely = probs > 0.5
    expected = {
        "accuracy": 1 - sklearn_metrics.hamming_loss(labels, is_likely),
        "exact_match": sklearn_metrics.accuracy_score(labels, is_likely),
        "nll": sum(sklearn_metrics.log_loss(labels[:, k], probs[:, k]) for k in range(4)),
        "brier": 2 * np.mean([sklearn_metrics.brier_score_loss(labels[:, k], probs[:, k]) for k in range(4)]),
        "macro_auroc": sklearn_metrics.roc_auc_score(labels, probs, average="macro"),
        "macro_aupr": sklearn_metrics.average_precision_score(labels, probs, average="macro"),
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    assert metrics.keys() == {*expected, "ece"}


def test_missing_labels_are_left_out():
    log_probs, targets = make_case(1, missing=0.3)
    targets[:5] = -100  # examples without a label
    probs, labels = log_probs[..., 1].exp().numpy(), targets.numpy()
    rows = [labels[:, k] >= 0 for k in range(4)]
    columns = [(labels[known, k], probs[known, k]) for k, known in enumerate(rows)]
    known, has_label = labels >= 0, (labels >= 0).any(1)
    is_right = ((probs > 0.5) == (labels == 1)) | ~known
    expected = {
        "accuracy": 1 - sklearn_metrics.hamming_loss(labels[known], probs[known] > 0.5),
        "exact_match": is_right.all(1)[has_label].mean(),
        "nll": sklearn_metrics.log_loss(labels[known], probs[known], normalize=False) / has_label.sum(),
        "macro_auroc": np.mean([sklearn_metrics.roc_auc_score(*column) for column in columns]),
        "macro_aupr": np.mean([sklearn_metrics.average_precision_score(*column) for column in columns]),
    }
    metrics = multi_label_metrics(log_probs, targets)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-12)
    as_nan = multi_label_metrics(log_probs, torch.where(targets < 0, torch.nan, targets.double()))
    assert as_nan == metrics


def test_ranking_is_that_of_the_labels_with_both_values():
    log_probs, targets = make_case(2)
    targets[:, 0], targets[:, 1] = 0, 1
    metrics = multi_label_metrics(log_probs, targets)
    probs = log_probs[:, 2:, 1].exp().numpy()
    assert metrics["macro_auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(targets[:, 2:].numpy(), probs))
    constant = multi_label_metrics(log_probs, torch.ones_like(targets))
    assert math.isnan(constant["macro_auroc"])
    assert math.isnan(constant["macro_aupr"])


def test_scores_are_those_of_the_known_labels():
    log_probs, targets = make_case(3, missing=0.5)
    _, scores = measure_labels(log_probs, targets)
    assert len(scores.confidence) == int((targets >= 0).sum())


@pytest.mark.parametrize("shape", [(200, 3), (199, 4), (200,)])
def test_other_shapes_are_refused(shape):
    log_probs, targets = make_case(0)
    with pytest.raises(ValueError, match="200 predictions of 4 labels, and targets of the shape .* one row"):
        multi_label_metrics(log_probs, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"of the shape \(examples, labels, 2\), got \(200, 4\)"):
        multi_label_metrics(log_probs[..., 0], targets)


def test_nothing_known_is_refused():
    log_probs, targets = make_case(0)
    with pytest.raises(ValueError, match="No label is 0 or 1"):
        multi_label_metrics(log_probs, torch.full_like(targets, -100))
