import math

import pytest
import torch
from sklearn import metrics as sklearn_metrics

from flatbayes import metrics
from flatbayes.metrics import DEFINITIONS, HIGHER_IS_BETTER, accuracy, brier_score, classification_metrics, nll


def example():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 5, generator=generator)
    return logits.log_softmax(-1), (logits + torch.randn(300, 5, generator=generator)).argmax(-1)


def test_equals_each_metric_on_its_own():
    log_probs, labels = example()
    values, probs = classification_metrics(log_probs, labels), log_probs.double().exp()
    assert values.pop("nll") == metrics.nll(log_probs, labels)
    functions = {"brier": metrics.brier_score}
    assert values == {name: functions.get(name, getattr(metrics, name, None))(probs, labels) for name in values}


def test_every_metric_has_a_direction_and_a_definition():
    names = list(classification_metrics(*example()))
    assert names == ["accuracy", "nll", "ece", "brier", "auroc_correct"]
    assert list(HIGHER_IS_BETTER)[:5] == list(DEFINITIONS)[:5] == names
    assert {name for name in names if HIGHER_IS_BETTER[name]} == {"accuracy", "auroc_correct"}


def test_definitions_are_read_only():
    with pytest.raises(TypeError):
        DEFINITIONS["ece"] = "15 bins"


def test_values_are_plain_floats():
    assert {type(value) for value in classification_metrics(*example()).values()} == {float}


def test_directions_are_true():
    """Right predictions are better than their opposite in every metric."""
    labels = torch.arange(40) % 2
    sure = torch.where(torch.arange(40) < 30, 0.9, 0.6)
    right = torch.where(torch.arange(40) < 38, labels, 1 - labels)  # two unsure ones are wrong
    probs = torch.stack([torch.where(right == c, sure, 1 - sure) for c in (0, 1)], dim=-1)
    good = classification_metrics(probs.log(), labels)
    bad = classification_metrics(probs.log(), 1 - labels)
    for name in good:
        assert (good[name] > bad[name]) == HIGHER_IS_BETTER[name], name


def test_perfect_classifier():
    log_probs = torch.tensor([[0.0, -math.inf], [-math.inf, 0.0]])
    values = classification_metrics(log_probs, torch.tensor([0, 1]))
    assert math.isnan(values.pop("auroc_correct"))
    assert values == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}


def random_predictions(seed, num=200, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num, classes, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), torch.randint(0, classes, (num,), generator=generator)


class TestAccuracy:
    def test_by_hand(self):
        probs = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.2, 0.8]])
        assert accuracy(probs, torch.tensor([0, 1, 1, 1])) == 0.75

    def test_the_first_of_tied_classes_is_the_prediction(self):
        assert accuracy(torch.full((2, 4), 0.25), torch.tensor([0, 3])) == 0.5

    @pytest.mark.parametrize("seed", range(3))
    def test_agrees_with_sklearn(self, seed):
        log_probs, labels = random_predictions(seed)
        expected = sklearn_metrics.accuracy_score(labels, log_probs.argmax(-1))
        assert accuracy(log_probs.exp(), labels) == pytest.approx(expected, abs=1e-15)


class TestNll:
    @pytest.mark.parametrize("seed", range(3))
    def test_agrees_with_sklearn(self, seed):
        log_probs, labels = random_predictions(seed)
        expected = sklearn_metrics.log_loss(labels, log_probs.exp())
        assert nll(log_probs, labels) == pytest.approx(expected, rel=1e-12)

    def test_is_exact_where_exp_underflows(self):
        log_probs = torch.tensor([[0.0, -800.0], [0.0, -400.0]], dtype=torch.float64)
        assert log_probs.exp()[0, 1] == 0
        assert nll(log_probs, torch.tensor([1, 1])) == 600.0

    def test_of_an_impossible_label_is_infinite(self):
        log_probs = torch.tensor([[0.0, -math.inf], [math.log(0.5)] * 2])
        assert nll(log_probs, torch.tensor([1, 0])) == math.inf
        assert nll(log_probs, torch.tensor([0, 0])) == pytest.approx(math.log(2) / 2)

    def test_of_certainty_is_a_positive_zero(self):
        value = nll(torch.tensor([[0.0, -math.inf]]), torch.tensor([0]))
        assert math.copysign(1, value) == 1
        assert value == 0

    def test_float32_is_summed_in_float64(self):
        log_probs = torch.full((100_000, 10), -math.log(10))
        expected = float(log_probs[0, 0].double().abs())
        assert nll(log_probs, torch.zeros(100_000, dtype=torch.int64)) == pytest.approx(expected, rel=1e-12)


class TestBrier:
    def test_by_hand(self):
        assert brier_score(torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([0])) == 0.25 + 2 * 0.0625

    def test_range_is_0_to_2(self):
        probs = torch.eye(3)
        assert brier_score(probs, torch.tensor([0, 1, 2])) == 0
        assert brier_score(probs, torch.tensor([1, 2, 0])) == 2

    @pytest.mark.parametrize("seed", range(3))
    def test_is_the_squared_error_over_all_classes(self, seed):
        log_probs, labels = random_predictions(seed)
        total = 0.0
        for row, label in zip(log_probs.exp().tolist(), labels.tolist(), strict=True):
            total += sum((p - (c == label)) ** 2 for c, p in enumerate(row))
        assert brier_score(log_probs.exp(), labels) == pytest.approx(total / len(labels), rel=1e-12)

    def test_of_two_classes_is_twice_that_of_sklearn(self):
        log_probs, labels = random_predictions(0, classes=2)
        expected = 2 * sklearn_metrics.brier_score_loss(labels, log_probs.exp()[:, 1])
        assert brier_score(log_probs.exp(), labels) == pytest.approx(expected, rel=1e-12)


def test_mean_iou_is_the_jaccard_score():
    generator = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(4, (500,), generator=generator) for _ in range(2))
    expected = sklearn_metrics.jaccard_score(labels, predictions, average="macro")
    assert metrics.mean_iou(predictions, labels, 4) == pytest.approx(expected)
    assert metrics.mean_iou(predictions, labels, 9) == pytest.approx(expected)  # absent classes do not count
    assert metrics.mean_iou(labels, labels, 4) == 1
    with pytest.raises(ValueError, match="one prediction for each label"):
        metrics.mean_iou(predictions[:3], labels, 4)
