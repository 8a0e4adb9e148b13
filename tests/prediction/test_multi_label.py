"""Predictions of several labels in evaluations: what works, and what says why not."""

import math

import pytest
import torch

from flatbayes import (
    MAP,
    MLP,
    SWAG,
    Bernoulli,
    Custom,
    Plain,
    TrainingConfig,
    conformalize,
    evaluate,
    fit,
)
from flatbayes.calibration import APS, LAC, AdaptiveConformal, NormalizedResidual, fit_conformal
from flatbayes.metrics import multi_label_metrics
from flatbayes.metrics.detection import auroc
from flatbayes.prediction import calibrate, evaluate_corruptions, evaluate_ood, evaluate_recalibration
from flatbayes.reporting.shift import temperature_table
from flatbayes.training import fit_cross_conformal
from support import make_multi_label_splits


@pytest.fixture(scope="module")
def data():
    return make_multi_label_splits()


@pytest.fixture(scope="module")
def fitted(data):
    return fit(MLP, data, SWAG(rank=2), Plain(), TrainingConfig(epochs=10, batch_size=32), seed=0)


def test_missing_labels_have_every_form(fitted, data):
    expected = evaluate(fitted, data.test, num_draws=3).metrics
    inputs, labels = data.test.inputs, data.test.targets
    as_nan = torch.where(labels < 0, torch.nan, labels.float())
    assert evaluate(fitted, inputs, as_nan.numpy(), 3).metrics == expected
    fitted.likelihood, likelihood = Bernoulli(4, ignore_index=7), fitted.likelihood
    assert evaluate(fitted, inputs, torch.where(labels < 0, 7, labels), 3).metrics == expected
    fitted.likelihood = Custom(likelihood.loss, likelihood)
    assert evaluate(fitted, inputs, labels, 3).metrics == expected
    fitted.likelihood = likelihood


def test_probabilities_are_no_labels_for_metrics(fitted, data):
    with pytest.raises(ValueError, match="labels, 0 or 1, got probabilities"):
        evaluate(fitted, data.test.inputs, torch.full((60, 4), 0.5), 3)


def test_out_of_distribution_examples_are_found_by_entropies(fitted, data):
    inputs = data.test.inputs
    evaluation = evaluate_ood(fitted, inputs, inputs / 10, num_draws=3)
    assert list(evaluation.scores) == ["entropy", "mutual_information"]
    entropies = torch.cat([fitted.predict(part, 3).entropy for part in (inputs, inputs / 10)])
    assert evaluation.scores["entropy"].auroc == auroc(entropies, torch.arange(120) >= 60)
    assert evaluation.scores["entropy"].auroc > 0.8


def test_corrupted_images_have_the_metrics_of_labels():
    splits = make_multi_label_splits()
    images = {name: getattr(splits, name).inputs.repeat(1, 96).reshape(-1, 3, 16, 16) for name in ("train", "test")}
    bounded = {name: (80 * values + 128).clamp(0, 255).to(torch.uint8) for name, values in images.items()}
    config = TrainingConfig(epochs=2, batch_size=32)
    fitted = fit(MLP, (bounded["train"], splits.train.targets), MAP(), Plain(), config)
    test = type(splits.test)(inputs=bounded["test"], targets=splits.test.targets)
    clean, noisy = evaluate_corruptions(fitted, test, ["gaussian_noise"], [3], num_draws=1)
    assert clean.metrics == multi_label_metrics(fitted.predict(bounded["test"]).log_probs, splits.test.targets)
    assert noisy.metrics.keys() == clean.metrics.keys()


def test_the_evaluation_of_a_temperature_is_that_of_the_calibrated_posterior(fitted, data):
    result = evaluate_recalibration(fitted, data.val, data.test, num_draws=2)
    calibrated = calibrate(fitted, data.val, num_draws=2)
    evaluation = evaluate(calibrated, data.test, num_draws=2)
    assert result.temperature == pytest.approx(1 / calibrated.calibration.weights[0])
    assert result.tempered == pytest.approx(evaluation.metrics)
    assert result.raw == pytest.approx(evaluation.raw_metrics)
    shown = [cell for column in temperature_table(result).columns for cell in column.cells]
    assert {"exact_match", "macro_auroc"} <= set(shown)


@pytest.mark.parametrize("score", [None, LAC(), APS(), NormalizedResidual()], ids=repr)
def test_conformal_prediction_is_refused(fitted, data, score):
    message = "no regions for several labels of an example, got a BernoulliPredictive. flatbayes.calibrate"
    with pytest.raises(TypeError, match=message):
        conformalize(fitted, data.val, num_draws=2, score=score)
    predictive = fitted.predict(data.val.inputs, 2)
    with pytest.raises(TypeError, match=message):
        fit_conformal(predictive, data.val.targets, score, groups=[0] * len(predictive.mean))
    with pytest.raises(TypeError, match=message):
        AdaptiveConformal(score=score).predict(predictive)


def test_cross_conformal_prediction_is_refused_before_the_training(data):
    with pytest.raises(TypeError, match="no regions for several labels of an example. flatbayes.calibrate"):
        fit_cross_conformal(MLP, data, MAP(), Plain(), TrainingConfig(epochs=1000), num_folds=2)


def test_abstention_is_refused(fitted, data):
    with pytest.raises(TypeError, match="abstain_below is a confidence of one class of each example"):
        fitted.predict(data.test.inputs, 2, abstain_below=0.5)


def test_predictions_in_parts_and_of_single_networks(fitted, data):
    inputs = data.test.inputs
    whole = fitted.predict(inputs, 3, keep_members=True)
    parts = list(fitted.stream_predictions(inputs, 3, batch_size=7, keep_members=True))
    torch.testing.assert_close(type(whole).concatenate(parts).mean, whole.mean)
    assert whole.member_probs.shape == (3, 60, 4)
    torch.testing.assert_close(whole.member_probs.double().mean(0), whole.mean, rtol=1e-5, atol=1e-6)
    assert math.isclose(fitted.predict(inputs[:1], 3).entropy.item(), whole.entropy[0].item(), rel_tol=1e-5)
