"""Evaluation under shift against scikit-learn, SciPy and predictions made by hand."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from flatbayes.core import State
from flatbayes.data import CIFAR10C, Split, corrupt_images
from flatbayes.likelihoods import Categorical
from flatbayes.metrics import accuracy, classification_metrics, nll
from flatbayes.posteriors import MAP, SWAG
from flatbayes.prediction import (
    DetectionMetrics,
    FittedPosterior,
    evaluate_corruptions,
    evaluate_ood,
    evaluate_recalibration,
)

GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randint(0, 256, (60, 1, 8, 8), generator=GENERATOR).to(torch.uint8)
LABELS = torch.randint(0, 3, (60,), generator=GENERATOR)
SPLIT = Split(inputs=IMAGES, targets=LABELS)


def scale_pixels(images):
    return images.float() / 255 - 0.5


@pytest.fixture
def fitted(make):
    posterior = make(SWAG(rank=3))
    posterior.info["input_shape"] = [1, 8, 8]
    posterior.transform = scale_pixels
    return posterior


class TestCorruptions:
    def test_rows_are_the_metrics_of_corrupted_images(self, fitted):
        names, severities = ("gaussian_noise", "contrast"), (1, 4)
        rows = evaluate_corruptions(fitted, SPLIT, names, severities, 3, corruption_seed=5, seed=2)
        assert [(row.corruption, row.severity) for row in rows] == [
            ("clean", 0), ("gaussian_noise", 1), ("gaussian_noise", 4), ("contrast", 1), ("contrast", 4),
        ]  # fmt: skip
        for row in rows:
            name = "fog" if row.corruption == "clean" else row.corruption
            inputs = corrupt_images(IMAGES, name, row.severity, seed=5, white_value=255.0)
            expected = classification_metrics(fitted.predict(inputs, 3, seed=2).log_probs, LABELS)
            assert row.metrics == pytest.approx(expected, nan_ok=True)
        assert rows[0].metrics["nll"] != rows[2].metrics["nll"]

    def test_corrupted_images_are_read_from_a_source(self, fitted, tmp_path):
        images = torch.randint(0, 256, (5 * 4, 8, 8, 1), generator=GENERATOR).to(torch.uint8)
        np.save(tmp_path / "fog.npy", images.numpy())
        np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 0]))
        rows = evaluate_corruptions(fitted, SPLIT, ["fog"], [3], 2, corruption_source=CIFAR10C(path=str(tmp_path)))
        log_probs = fitted.predict(images[8:12].permute(0, 3, 1, 2), 2).log_probs
        assert rows[1].metrics["nll"] == pytest.approx(nll(log_probs, torch.tensor([0, 1, 2, 0])))

    def test_unknown_corruption_is_refused(self, fitted):
        with pytest.raises(ValueError, match=r"Unknown corruption 'rain'. Known: gaussian_noise"):
            evaluate_corruptions(fitted, SPLIT, ["rain"], [1], 2)

    def test_dictionary_is_flat(self, fitted):
        (row, _) = evaluate_corruptions(fitted, SPLIT, ["fog"], [2], 2)
        assert row.to_dict() == {"corruption": "clean", "severity": 0, **row.metrics}


class TestOOD:
    def test_scores_equal_those_of_scikit_learn(self, fitted):
        ood_images = corrupt_images(IMAGES[:40], "contrast", 5)
        evaluation = evaluate_ood(fitted, IMAGES, ood_images, 4, seed=1)
        test, ood = (fitted.predict(x, 4, seed=1) for x in (IMAGES, ood_images))
        is_ood = np.array([0] * 60 + [1] * 40)
        scores = {
            "entropy": torch.cat([test.entropy, ood.entropy]),
            "mutual_information": torch.cat([test.mutual_information, ood.mutual_information]),
            "one_minus_confidence": 1 - torch.cat([test.confidence, ood.confidence]),
        }
        assert set(evaluation.scores) == set(scores)
        for name, values in scores.items():
            assert evaluation.scores[name].auroc == pytest.approx(roc_auc_score(is_ood, values))
            assert evaluation.scores[name].aupr_out == pytest.approx(average_precision_score(is_ood, values))
            assert evaluation.scores[name].aupr_in == pytest.approx(average_precision_score(1 - is_ood, -values))
            threshold = values[60:].sort(descending=True).values[math.ceil(0.95 * 40) - 1]
            expected = float((values[:60] >= threshold).double().mean())
            assert evaluation.scores[name].fpr95 == pytest.approx(expected)
        assert (evaluation.num_test, evaluation.num_ood) == (60, 40)

    def test_equal_inputs_are_not_separated(self, fitted):
        evaluation = evaluate_ood(fitted, IMAGES, IMAGES, 3)
        assert evaluation.entropy_divergence == 0
        assert evaluation.scores["entropy"].auroc == pytest.approx(0.5)
        assert evaluation.scores["entropy"].fpr95 >= 0.95

    def test_distant_inputs_are_separated(self):
        # Logits proportional to the first pixel: dark images have a high entropy.
        model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([[3.0], [-3.0]]))
        fitted = FittedPosterior(MAP(), [State(model, None, 10)], Categorical(2))
        evaluation = evaluate_ood(fitted, torch.full((9, 1, 1, 1), 2.0), torch.linspace(0, 0.1, 9).view(9, 1, 1, 1))
        for name in ("entropy", "one_minus_confidence"):
            assert evaluation.scores[name] == DetectionMetrics(auroc=1, aupr_out=1, aupr_in=1, fpr95=0)
        assert evaluation.scores["mutual_information"].auroc == 0.5  # 0 everywhere for a single network
        assert evaluation.entropy_divergence > 10

    def test_different_shapes_are_refused(self, fitted):
        message = r"shape \(1, 8, 8\) and out-of-distribution inputs \(3, 32, 32\).*match_input_format"
        with pytest.raises(ValueError, match=message):
            evaluate_ood(fitted, IMAGES, torch.zeros(2, 3, 32, 32))

    def test_dictionary_is_plain_data(self, fitted):
        evaluation = evaluate_ood(fitted, IMAGES, IMAGES[:9], 2)
        restored = json.loads(json.dumps(evaluation.to_dict()))
        assert DetectionMetrics(**restored["scores"]["entropy"]) == evaluation.scores["entropy"]
        assert restored["num_ood"] == 9


class TestRecalibration:
    def test_temperature_is_fitted_to_the_validation_split(self, fitted):
        # Validation labels are sharper than the predictions, test labels are flatter.
        log_probs = fitted.predict(IMAGES, 3, seed=4).log_probs
        sharp, flat = (torch.multinomial((f * log_probs).softmax(-1), 1).squeeze(1) for f in (2.0, 0.5))
        val, test = Split(inputs=IMAGES, targets=sharp), Split(inputs=IMAGES[:30], targets=flat[:30])
        result = evaluate_recalibration(fitted, val, test, 3, seed=4)
        val_log_probs = fitted.predict(val.inputs, 3, seed=4).log_probs

        def objective(log_temperature):
            scaled = (val_log_probs / math.exp(log_temperature)).log_softmax(-1)
            return nll(scaled, val.targets) - float((val_log_probs.exp() * scaled).sum()) / len(val) ** 2  # the prior

        best = minimize_scalar(objective, bounds=(math.log(0.01), math.log(100)), method="bounded")
        assert math.log(result.temperature) == pytest.approx(best.x, abs=1e-3)
        assert 0.02 < result.temperature < 50
        test_log_probs = fitted.predict(test.inputs, 3, seed=4).log_probs
        assert result.raw["nll"] == pytest.approx(nll(test_log_probs, test.targets))
        scaled = (test_log_probs / result.temperature).log_softmax(-1)
        assert result.tempered["nll"] == pytest.approx(nll(scaled, test.targets))
        assert result.raw["accuracy"] == result.tempered["accuracy"] == accuracy(test_log_probs.exp(), test.targets)
        assert result.raw.keys() == result.tempered.keys() >= {"adaptive_ece", "classwise_ece", "aurc"}

    def test_nll_decreases_on_the_split_of_the_fit(self, fitted):
        result = evaluate_recalibration(fitted, SPLIT, SPLIT, 3)
        assert result.tempered["nll"] < result.raw["nll"]
        assert result.to_dict() == {
            "temperature": result.temperature,
            "raw": result.raw,
            "tempered": result.tempered,
        }


def test_weights_and_inputs_are_unchanged(fitted):
    weights = {name: t.clone() for name, t in fitted.states[0].model.state_dict().items()}
    before = IMAGES.clone()
    evaluate_corruptions(fitted, SPLIT, ["fog"], [5], 2)
    evaluate_ood(fitted, IMAGES, IMAGES, 2)
    evaluate_recalibration(fitted, SPLIT, SPLIT, 2)
    assert torch.equal(IMAGES, before)
    assert all(torch.equal(t, weights[name]) for name, t in fitted.states[0].model.state_dict().items())


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda fitted, split: evaluate_corruptions(fitted, split, ["fog"], [1], 2),
        lambda fitted, split: evaluate_ood(fitted, split.inputs, split.inputs, 2),
        lambda fitted, split: evaluate_recalibration(fitted, split, split, 2),
    ],
)
def test_inputs_of_another_shape_are_refused(fitted, evaluate):
    wrong = Split(inputs=torch.zeros(12, 3, 9, 9), targets=torch.zeros(12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"takes inputs of the shape \(1, 8, 8\), got \(3, 9, 9\)"):
        evaluate(fitted, wrong)
