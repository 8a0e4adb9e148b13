import math

import pytest
import torch
from sklearn import metrics as sklearn_metrics

from flatbayes.metrics import accuracy, brier_score, nll


def example(seed, num=200, classes=4):
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
        log_probs, labels = example(seed)
        expected = sklearn_metrics.accuracy_score(labels, log_probs.argmax(-1))
        assert accuracy(log_probs.exp(), labels) == pytest.approx(expected, abs=1e-15)


class TestNll:
    @pytest.mark.parametrize("seed", range(3))
    def test_agrees_with_sklearn(self, seed):
        log_probs, labels = example(seed)
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
        log_probs, labels = example(seed)
        total = 0.0
        for row, label in zip(log_probs.exp().tolist(), labels.tolist(), strict=True):
            total += sum((p - (c == label)) ** 2 for c, p in enumerate(row))
        assert brier_score(log_probs.exp(), labels) == pytest.approx(total / len(labels), rel=1e-12)

    def test_of_two_classes_is_twice_that_of_sklearn(self):
        log_probs, labels = example(0, classes=2)
        expected = 2 * sklearn_metrics.brier_score_loss(labels, log_probs.exp()[:, 1])
        assert brier_score(log_probs.exp(), labels) == pytest.approx(expected, rel=1e-12)
