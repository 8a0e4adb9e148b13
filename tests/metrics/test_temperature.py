import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from flatbayes.metrics import accuracy, apply_temperature, fit_temperature, nll
from flatbayes.metrics.temperature import nll_slope


def predictions(num=400, classes=5, sharpness=1.0, seed=0):
    """Log probabilities, and labels drawn from them before they are sharpened."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(num, classes, generator=generator, dtype=torch.float64)).log_softmax(-1)
    labels = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)
    return (sharpness * log_probs).log_softmax(-1), labels


@pytest.mark.parametrize("prior_examples", [0, 1, 7.5])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0, 15.0])
def test_agrees_with_a_minimiser_of_scipy(seed, sharpness, prior_examples):
    log_probs, labels = predictions(sharpness=sharpness, seed=seed)

    def objective(log_temperature):
        scaled = (log_probs / math.exp(log_temperature)).log_softmax(-1)
        expected = (log_probs.exp() * scaled).sum(1)  # of an example whose label is drawn from the prediction
        return float(-(scaled.gather(1, labels[:, None])[:, 0] + prior_examples / len(labels) * expected).mean())

    best = minimize_scalar(
        objective, bounds=(math.log(0.01), math.log(100)), method="bounded", options={"xatol": 1e-9}
    )
    temperature = fit_temperature(log_probs, labels, prior_examples)
    assert math.log(temperature) == pytest.approx(best.x, abs=1e-6)
    assert nll(apply_temperature(log_probs, temperature), labels) <= nll(log_probs, labels) + 1e-15


def test_undoes_a_temperature_exactly():
    log_probs, labels = predictions()
    temperature = fit_temperature(log_probs, labels, 0)
    for factor in (0.2, 3.0):
        scaled = apply_temperature(log_probs, factor)
        assert fit_temperature(scaled, labels, 0) == pytest.approx(temperature / factor, rel=1e-12)
    assert fit_temperature(apply_temperature(log_probs, temperature), labels, 0) == pytest.approx(1, rel=1e-12)


def test_by_hand():
    # Three of four are right at 0.9 of two classes: the best confidence is 3/4, so T = log 9 / log 3 = 2.
    log_probs = torch.tensor([[0.9, 0.1]] * 4, dtype=torch.float64).log()
    labels = torch.tensor([0, 0, 0, 1])
    assert fit_temperature(log_probs, labels, 0) == pytest.approx(2, rel=1e-12)
    # With one more example that is right with the probability 0.9, the best confidence is 3.9/5.
    assert fit_temperature(log_probs, labels) == pytest.approx(math.log(9) / math.log(0.78 / 0.22), rel=1e-12)


@pytest.mark.parametrize(("num", "confidence"), [(1, 0.6), (20, 0.94), (60, 0.999999)])
def test_examples_that_are_all_right_sharpen_by_the_logarithm_of_their_number(num, confidence):
    log_probs = torch.tensor([[confidence, 1 - confidence]] * num, dtype=torch.float64).log()
    temperature = fit_temperature(log_probs, torch.zeros(num, dtype=torch.int64))
    best = (num + confidence) / (num + 1)
    log_odds = math.log(confidence / (1 - confidence))
    assert temperature == pytest.approx(log_odds / math.log(best / (1 - best)), rel=1e-6)
    assert log_odds / temperature == pytest.approx(log_odds + math.log(1 + num / confidence), rel=1e-6)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0, 3.0])
def test_the_prior_changes_little_with_200_examples(sharpness):
    log_probs, labels = predictions(num=200, sharpness=sharpness)
    assert fit_temperature(log_probs, labels) == pytest.approx(fit_temperature(log_probs, labels, 0), rel=0.01)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), num=st.integers(1, 8), scale=st.sampled_from([1e-3, 1.0, 1e3, 1e5]))
def test_no_temperature_is_better(seed, num, scale):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (scale * torch.randn(num, 3, generator=generator, dtype=torch.float64)).log_softmax(-1)
    labels = torch.randint(0, 3, (num,), generator=generator)
    temperature = fit_temperature(log_probs, labels, 0)
    assert 0.01 <= temperature <= 100
    best = nll(apply_temperature(log_probs, temperature), labels)
    for other in torch.logspace(-2, 2, 41, dtype=torch.float64).clamp(0.01, 100).tolist():
        assert best <= nll(apply_temperature(log_probs, other), labels) * (1 + 1e-9) + 1e-12


class TestEnds:
    right = torch.tensor([[0.6, 0.4], [0.3, 0.7]], dtype=torch.float64).log()

    def test_all_right(self):
        assert fit_temperature(self.right, torch.tensor([0, 1]), 0) == 0.01

    def test_certain(self):
        assert fit_temperature(torch.tensor([[0.0, -1e30]]), torch.tensor([0])) == 1

    def test_no_better_than_chance(self):
        assert fit_temperature(self.right, torch.tensor([1, 0])) == 100

    def test_uniform_predictions(self):
        assert fit_temperature(torch.full((3, 4), 0.25).log(), torch.tensor([0, 1, 2])) == 1

    def test_one_class(self):
        assert fit_temperature(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64)) == 1

    def test_one_example(self):
        assert fit_temperature(self.right[:1], torch.tensor([0]), 0) == 0.01


def test_the_slope_of_many_nearly_uniform_classes_does_not_underflow():
    log_probs = torch.full((2, 3000), -math.log(3000), dtype=torch.float64)
    assert nll_slope(log_probs, torch.tensor([0, 1]), 100.0) == 0


def test_probabilities_of_zero_stay_zero():
    log_probs = torch.tensor([[0.9, 0.1, 0.0]] * 4, dtype=torch.float64).log()
    labels = torch.tensor([0, 0, 0, 1])
    assert fit_temperature(log_probs, labels, 0) == pytest.approx(2, rel=1e-12)
    assert fit_temperature(log_probs, labels) == pytest.approx(math.log(9) / math.log(0.78 / 0.22), rel=1e-12)
    assert apply_temperature(log_probs, 3.0)[0, 2] == -math.inf
    with pytest.raises(ValueError, match=r"1 label has probability 0.*log_softmax"):
        fit_temperature(log_probs, torch.tensor([0, 0, 0, 2]))


def test_float32_extremes():
    log_probs = torch.tensor([[0.0, -1e30], [-1e30, 0.0], [0.0, -1e30]])
    temperature = fit_temperature(log_probs, torch.tensor([0, 1, 1]))
    assert temperature == 100  # the NLL is high there, but finite
    assert math.isfinite(nll(apply_temperature(log_probs, temperature), torch.tensor([0, 1, 1])))


def test_accuracy_is_unchanged():
    log_probs, labels = predictions()
    for temperature in (0.01, 0.5, 7.0, 100.0):
        scaled = apply_temperature(log_probs, temperature)
        assert accuracy(scaled.exp(), labels) == accuracy(log_probs.exp(), labels)
        torch.testing.assert_close(scaled.exp().sum(-1), torch.ones(len(labels), dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_invalid_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="positive and finite, got"):
        apply_temperature(torch.zeros(1, 1), temperature)
