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
from flatbayes.prediction import FittedPosterior, evaluate_corruptions, evaluate_ood, evaluate_recalibration

GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randint(0, 256, (60, 1, 8, 8), generator=GENERATOR).to(torch.uint8)
LABELS = torch.randint(0, 3, (60,), generator=GENERATOR)
PART = Split(inputs=IMAGES, targets=LABELS)


def ready(images):
    return images.float() / 255 - 0.5


@pytest.fixture
def fitted(make):
    found = make(SWAG(rank=3))
    found.info["input_shape"] = [1, 8, 8]
    found.transform = ready
    return found


def test_rows_are_evaluations_of_corrupted_images(fitted):
    names, severities = ("gaussian_noise", "contrast"), (1, 4)
    rows = evaluate_corruptions(fitted, PART, names, severities, 3, corruption_seed=5, seed=2)
    assert [(row["corruption"], row["severity"]) for row in rows] == [
        ("clean", 0), ("gaussian_noise", 1), ("gaussian_noise", 4), ("contrast", 1), ("contrast", 4),
    ]  # fmt: skip
    for row in rows:
        name = "fog" if row["corruption"] == "clean" else row["corruption"]
        inputs = corrupt_images(IMAGES, name, row["severity"], seed=5, white_value=255.0)
        expected = classification_metrics(fitted.predict(inputs, 3, seed=2).log_probs, LABELS)
        assert {key: row[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    assert rows[0]["nll"] != rows[2]["nll"]


def test_stored_images_are_used_where_there_are_some(fitted, tmp_path):
    images = torch.randint(0, 256, (5 * 4, 8, 8, 1), generator=GENERATOR).to(torch.uint8)
    np.save(tmp_path / "fog.npy", images.numpy())
    np.save(tmp_path / "labels.npy", np.array([0, 1, 2, 0]))
    rows = evaluate_corruptions(fitted, PART, ["fog"], [3], 2, corruption_source=CIFAR10C(path=str(tmp_path)))
    log_probs = fitted.predict(images[8:12].permute(0, 3, 1, 2), 2).log_probs
    assert rows[1]["nll"] == pytest.approx(nll(log_probs, torch.tensor([0, 1, 2, 0])))


def test_weights_and_inputs_come_out_as_they_went_in(fitted):
    weights = {name: t.clone() for name, t in fitted.states[0].model.state_dict().items()}
    before = IMAGES.clone()
    evaluate_corruptions(fitted, PART, ["fog"], [5], 2)
    evaluate_ood(fitted, IMAGES, IMAGES, 2)
    evaluate_recalibration(fitted, PART, PART, 2)
    assert torch.equal(IMAGES, before)
    assert all(torch.equal(t, weights[name]) for name, t in fitted.states[0].model.state_dict().items())


class TestOutside:
    def test_scores_are_those_of_scikit_learn(self, fitted):
        outside = corrupt_images(IMAGES[:40], "contrast", 5)
        found = evaluate_ood(fitted, IMAGES, outside, 4, seed=1)
        inside, foreign = (fitted.predict(x, 4, seed=1) for x in (IMAGES, outside))
        truth = np.array([0] * 60 + [1] * 40)
        scores = {
            "entropy": torch.cat([inside.entropy, foreign.entropy]),
            "mutual_information": torch.cat([inside.mutual_information, foreign.mutual_information]),
            "one_minus_confidence": 1 - torch.cat([inside.confidence, foreign.confidence]),
        }
        assert set(found["scores"]) == set(scores)
        for name, values in scores.items():
            assert found["scores"][name]["auroc"] == pytest.approx(roc_auc_score(truth, values))
            assert found["scores"][name]["aupr_out"] == pytest.approx(average_precision_score(truth, values))
            assert found["scores"][name]["aupr_in"] == pytest.approx(average_precision_score(1 - truth, -values))
            threshold = values[60:].sort(descending=True).values[math.ceil(0.95 * 40) - 1]
            expected = float((values[:60] >= threshold).double().mean())
            assert found["scores"][name]["fpr95"] == pytest.approx(expected)
        assert (found["num_inside"], found["num_outside"]) == (60, 40)

    def test_nothing_tells_equals_apart(self, fitted):
        found = evaluate_ood(fitted, IMAGES, IMAGES, 3)
        assert found["entropy_divergence"] == 0
        assert found["scores"]["entropy"]["auroc"] == 0.5
        assert found["scores"]["entropy"]["fpr95"] >= 0.95

    def test_far_is_far(self):
        # Logits proportional to the first pixel: dark images are uncertain.
        model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
        with torch.no_grad():
            model[1].weight.copy_(torch.tensor([[3.0], [-3.0]]))
        fitted = FittedPosterior(MAP(), [State(model, None, 10)], Categorical(2))
        found = evaluate_ood(fitted, torch.full((9, 1, 1, 1), 2.0), torch.linspace(0, 0.1, 9).view(9, 1, 1, 1))
        for name in ("entropy", "one_minus_confidence"):
            assert found["scores"][name] == {"auroc": 1, "aupr_out": 1, "aupr_in": 1, "fpr95": 0}
        assert found["scores"]["mutual_information"]["auroc"] == 0.5  # one network disagrees with nobody
        assert found["entropy_divergence"] > 10

    def test_shapes_that_do_not_match(self, fitted):
        with pytest.raises(ValueError, match=r"\(1, 8, 8\) and those from outside \(3, 32, 32\).*match_input_format"):
            evaluate_ood(fitted, IMAGES, torch.zeros(2, 3, 32, 32))


class TestRecalibrated:
    def test_the_temperature_is_that_of_the_validation_part(self, fitted):
        # Labels that are surer than the predictions say for one part, less sure for the other.
        known = fitted.predict(IMAGES, 3, seed=4).log_probs
        sharp, flat = (torch.multinomial((f * known).softmax(-1), 1).squeeze(1) for f in (2.0, 0.5))
        val, test = Split(inputs=IMAGES, targets=sharp), Split(inputs=IMAGES[:30], targets=flat[:30])
        found = evaluate_recalibration(fitted, val, test, 3, seed=4)
        log_probs = fitted.predict(val.inputs, 3, seed=4).log_probs

        def objective(log_temperature):
            return nll((log_probs / math.exp(log_temperature)).log_softmax(-1), val.targets)

        best = minimize_scalar(objective, bounds=(math.log(0.01), math.log(100)), method="bounded")
        assert math.log(found["temperature"]) == pytest.approx(best.x, abs=1e-3)
        assert 0.02 < found["temperature"] < 50
        judged = fitted.predict(test.inputs, 3, seed=4).log_probs
        assert found["raw"]["nll"] == pytest.approx(nll(judged, test.targets))
        scaled = (judged / found["temperature"]).log_softmax(-1)
        assert found["tempered"]["nll"] == pytest.approx(nll(scaled, test.targets))
        assert found["raw"]["accuracy"] == found["tempered"]["accuracy"] == accuracy(judged.exp(), test.targets)
        assert found["raw"].keys() == found["tempered"].keys() >= {"adaptive_ece", "classwise_ece", "aurc"}

    def test_helps_where_it_was_fitted(self, fitted):
        found = evaluate_recalibration(fitted, PART, PART, 3)
        assert found["tempered"]["nll"] < found["raw"]["nll"]


@pytest.mark.parametrize(
    "measure",
    [
        lambda fitted, part: evaluate_corruptions(fitted, part, ["fog"], [1], 2),
        lambda fitted, part: evaluate_ood(fitted, part.inputs, part.inputs, 2),
        lambda fitted, part: evaluate_recalibration(fitted, part, part, 2),
    ],
)
def test_inputs_of_another_shape_say_both(fitted, measure):
    wrong = Split(inputs=torch.zeros(4, 3, 9, 9), targets=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"takes inputs of the shape \(1, 8, 8\), got \(3, 9, 9\)"):
        measure(fitted, wrong)


def test_unknown_corruptions_are_said_before_long(fitted):
    with pytest.raises(ValueError, match=r"Unknown corruption 'rain'. Known: gaussian_noise"):
        evaluate_corruptions(fitted, PART, ["rain"], [1], 2)
