"""All metrics refuse the same invalid inputs, with messages that suggest a fix."""

import pytest
import torch

from flatbayes.metrics import (
    accuracy,
    adaptive_ece,
    aurc,
    auroc,
    auroc_correct,
    brier_score,
    classification_metrics,
    classwise_ece,
    ece,
    entropy_divergence,
    fit_temperature,
    multi_label_metrics,
    nll,
    reliability_bins,
    rmse,
)

FROM_PROBS = [accuracy, brier_score, ece, adaptive_ece, classwise_ece, reliability_bins, auroc_correct]
FROM_LOG_PROBS = [nll, classification_metrics]
PROBS = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
LABELS = torch.tensor([0, 1])


def with_value(value, row=1):
    probs = PROBS.clone()
    probs[row, 0] = value
    return probs


@pytest.mark.parametrize("metric", FROM_PROBS)
@pytest.mark.parametrize(
    ("probs", "message"),
    [
        (with_value(float("nan")), "must be finite, got 1 that are not"),
        (with_value(float("inf")), "must be finite, got 1 that are not"),
        (with_value(1.1), r"between 0 and 1, got values from 0\.1 to 1\.1\. If these are logits"),
        (with_value(-1e-5), "between 0 and 1, got values from -1e-05"),
        (torch.tensor([[1.00001, 0.0], [0.5, 0.5]]), "between 0 and 1"),
        (PROBS.log(), r"log_probs\.exp"),
        (with_value(0.2), r"must sum to 1, got 1\.1 for example 1"),
        (torch.tensor([[0.5, 0.3, 0.2], [0.334, 0.334, 0.334]]).half(), r"rounded to torch.float16.*\.softmax\(-1\)"),
        (PROBS[0], r"shape \(examples, classes\).* got torch.float32 of shape \(3,\)"),
        (PROBS[0, 0], r"got torch.float32 of shape \(\)"),
        (PROBS[:0], "at least 1 example"),
        (torch.ones(2, 1, dtype=torch.int64), "got torch.int64"),
    ],
)
def test_invalid_probabilities_are_refused(metric, probs, message):
    with pytest.raises(ValueError, match=message):
        metric(probs, LABELS)


@pytest.mark.parametrize("metric", FROM_LOG_PROBS)
@pytest.mark.parametrize(
    ("log_probs", "message"),
    [
        (with_value(float("nan")).log(), "got 1 that are NaN"),
        (torch.tensor([[3.0, -4.0, 1.0], [-1.0, -2.0, -1.0]]), r"at most 0, got values up to 3.*log_softmax"),
        (torch.full((2, 3), float("inf")), "at most 0, got values up to inf"),
        (PROBS, r"at most 0.*probs\.log"),
        (torch.full((2, 3), -5.0), r"must sum to 1, got .* for example 0.*log_softmax"),
        (torch.full((2, 3), -float("inf")), "must sum to 1, got 0"),
        (
            torch.tensor([[0.5, 0.5], [0.9, 0.1]]).bfloat16().log(),
            r"must sum to 1, got 1\.00174 for example 0.*rounded to torch.bfloat16.*float\(\)\.log_softmax",
        ),
        (PROBS[0].log(), "got torch.float32 of shape"),
        (PROBS[:0].log(), "at least 1 example"),
    ],
)
def test_invalid_log_probabilities_are_refused(metric, log_probs, message):
    with pytest.raises(ValueError, match=message):
        metric(log_probs, LABELS)


@pytest.mark.parametrize("metric", [*FROM_PROBS, *FROM_LOG_PROBS])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), "between 0 and 2 for 3 classes, got 0 to 3"),
        (torch.tensor([-1, 1]), "between 0 and 2 for 3 classes, got -1 to 1"),
        (torch.tensor([0]), r"each of the 2 examples, got torch.int64 of shape \(1,\)"),
        (torch.tensor([[0, 1]]), r"of shape \(1, 2\)"),
        (torch.tensor([0.0, 1.0]), r"got torch.float32.*labels\.long"),
        (torch.tensor([0, 1], dtype=torch.int32), "got torch.int32"),
    ],
)
def test_invalid_labels_are_refused(metric, labels, message):
    probs = PROBS.log() if metric in FROM_LOG_PROBS else PROBS
    with pytest.raises(ValueError, match=message):
        metric(probs, labels)


@pytest.mark.parametrize(
    "compute",
    [
        *(lambda metric=metric: metric(PROBS.numpy(), LABELS) for metric in FROM_PROBS),
        *(lambda metric=metric: metric(PROBS.log(), LABELS.tolist()) for metric in FROM_LOG_PROBS),
        lambda: auroc(PROBS[0].numpy(), PROBS[0] > 0.2),
        lambda: aurc(PROBS[0], [0.0, 1.0, 0.0]),
        lambda: entropy_divergence(PROBS[0].numpy(), PROBS[0]),
        lambda: rmse(PROBS[0], PROBS[0].numpy()),
        lambda: multi_label_metrics(PROBS.numpy(), LABELS),
        lambda: fit_temperature(PROBS.log(), LABELS.numpy()),
    ],
)
def test_arrays_and_lists_are_refused_with_what_to_pass(compute):
    with pytest.raises(TypeError, match=r"Metrics take tensors, got a (ndarray|list): pass torch\.as_tensor"):
        compute()


@pytest.mark.parametrize("metric", [*FROM_PROBS, *FROM_LOG_PROBS])
def test_rounding_errors_are_accepted(metric):
    """Float32 sums leave probabilities a little above 1 or below 0: no metric leaves its range."""
    probs = torch.tensor([[1 + 5e-7, -5e-7], [0.5004, 0.5004]], dtype=torch.float64)
    clean = torch.tensor([[1.0, 0.0], [0.5004, 0.5004]], dtype=torch.float64)
    if metric in FROM_LOG_PROBS:
        probs = torch.tensor([[5e-7, -50.0], [-0.693, -0.693]], dtype=torch.float64)
        clean = torch.tensor([[0.0, -50.0], [-0.693, -0.693]], dtype=torch.float64)
    assert metric(probs, LABELS) == metric(clean, LABELS)


@pytest.mark.parametrize("metric", [*FROM_PROBS, *FROM_LOG_PROBS])
def test_inputs_are_unchanged_and_may_require_gradients(metric):
    logits = torch.randn(6, 3, requires_grad=True)
    values = logits.log_softmax(-1) if metric in FROM_LOG_PROBS else logits.softmax(-1)
    before, labels = values.detach().clone(), torch.arange(6) % 3
    metric(values, labels)
    assert torch.equal(values, before)
    assert torch.equal(labels, torch.arange(6) % 3)


@pytest.mark.gpu
@pytest.mark.parametrize("metric", [*FROM_PROBS, *FROM_LOG_PROBS])
def test_results_are_equal_on_every_device(metric):
    log_probs, labels = torch.randn(50, 4).log_softmax(-1), torch.randint(0, 4, (50,))
    values = log_probs if metric in FROM_LOG_PROBS else log_probs.exp()
    assert metric(values.cuda(), labels.cuda()) == metric(values, labels)
