"""Selective prediction: threshold by hand, guarantee, and predictions that abstain."""

import math

import pytest
import torch
from scipy.stats import binom

from flatbayes import MLP, SWAG, Digits, Plain, TrainingConfig, fit
from flatbayes.calibration import fit_abstention
from flatbayes.calibration.selective import NUM_CANDIDATES, choose_threshold
from flatbayes.likelihoods import Bernoulli, CategoricalPredictive, Gaussian
from flatbayes.likelihoods.categorical_predictive import set_abstention

pytestmark = pytest.mark.filterwarnings("ignore::flatbayes.calibration.CalibrationWarning")


def test_no_candidate_is_left_out():
    confidences = torch.linspace(0.5, 1, 2000, dtype=torch.float64)
    for step in range(1, NUM_CANDIDATES):
        num_right = 2000 * step // NUM_CANDIDATES  # all others are wrong, and 100 of them are too many
        threshold = choose_threshold(confidences, torch.arange(2000) < 2000 - num_right, 0.06, 0.9)
        assert (confidences >= threshold).sum() == num_right


def test_the_lowest_valid_candidate_by_hand():
    confidences = torch.linspace(0.5, 0.995, 100, dtype=torch.float64)[torch.randperm(100)]
    is_wrong = confidences < 0.745  # the 50 least confident are wrong

    def is_valid(num_accepted, num_wrong, risk):
        return binom.cdf(num_wrong, num_accepted, risk) <= 0.1 / NUM_CANDIDATES

    for risk in (0.1, 0.2, 0.45, 0.7, 0.02):
        counts = [100 * k // NUM_CANDIDATES for k in range(NUM_CANDIDATES, 0, -1)]
        expected = next((n for n in counts if is_valid(n, max(n - 50, 0), risk)), 0)
        threshold = choose_threshold(confidences, is_wrong, risk, 0.9)
        assert (confidences >= threshold).sum() == expected
        assert (threshold == 0.0) == (expected == 100)
        assert math.isinf(threshold) == (expected == 0)
    ties = torch.full((100,), 0.8, dtype=torch.float64)
    assert math.isinf(choose_threshold(ties, is_wrong, 0.1, 0.9))


def test_the_wanted_risk_is_reached_with_the_wanted_confidence():
    """Confidence c uniform on [0.5, 1], errors with probability 1 - c: the risk above t is (1 - t) / 2."""
    generator = torch.Generator().manual_seed(0)
    violations, accepted, num_sets = 0, 0, 300
    for _ in range(num_sets):
        confidences = 0.5 + 0.5 * torch.rand(400, generator=generator, dtype=torch.float64)
        is_wrong = torch.rand(400, generator=generator, dtype=torch.float64) > confidences
        threshold = choose_threshold(confidences, is_wrong, 0.18, 0.8)
        violations += math.isfinite(threshold) and (1 - max(threshold, 0.5)) / 2 > 0.18
        accepted += math.isfinite(threshold)
    assert violations <= binom(num_sets, 0.2).ppf(0.999)
    assert accepted > 0.9 * num_sets  # not by abstaining always


@pytest.fixture(scope="module")
def digits():
    data = Digits(train_size=200, val_size=300, test_size=300).load(seed=0)
    return data, fit(MLP, data, SWAG(rank=2), Plain(), TrainingConfig(epochs=8, batch_size=32))


def test_predictions_below_the_threshold_abstain(digits):
    data, fitted = digits
    rule = fit_abstention(fitted.predict(data.val.inputs, 4), data.val.targets, risk=0.1)
    assert 0 < rule.coverage < 1
    assert rule.observed_risk <= 0.1
    assert "at most 10 % of new accepted examples are wrong, with confidence 95 %" in rule.describe()
    predictive = fitted.predict(data.test.inputs, 4, abstain_below=rule.threshold)
    plain = fitted.predict(data.test.inputs, 4)
    assert torch.equal(predictive.abstained, plain.confidence < rule.threshold)
    assert 0 < predictive.abstained.sum() < 300
    assert not plain.abstained.any()
    assert torch.equal(predictive.log_probs, plain.log_probs)
    assert predictive.to_dict()["abstained"] == predictive.abstained.tolist()
    assert "abstained" not in plain.to_dict()
    rows = torch.arange(0, 300, 3)
    assert torch.equal(predictive.select(rows).abstained, predictive.abstained[rows])
    assert torch.equal(predictive.to("cpu").abstained, predictive.abstained)
    streamed = list(fitted.stream_predictions(data.test.inputs, 4, abstain_below=rule.threshold))
    assert torch.equal(CategoricalPredictive.concatenate(streamed).abstained, predictive.abstained)
    with fitted.share_predictions():
        assert not fitted.predict(data.test.inputs, 4).abstained.any()
        assert fitted.predict(data.test.inputs, 4, abstain_below=rule.threshold).abstained.any()


def test_wrong_input_and_a_risk_out_of_reach(digits):
    data, fitted = digits
    predictive = fitted.predict(data.val.inputs, 4)
    never = fit_abstention(predictive, data.val.targets, risk=1e-6)
    assert (never.threshold, never.coverage) == (math.inf, 0.0)
    assert "abstain always" in never.describe()
    assert fitted.predict(data.test.inputs, 4, abstain_below=never.threshold).abstained.all()
    for options in ({"risk": 0.0}, {"risk": 0.1, "confidence": 1.0}):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            fit_abstention(predictive, data.val.targets, **options)
    for confidence in (math.nan, 90.0, -0.1):
        with pytest.raises(ValueError, match="abstain_below is a confidence from 0 to 1"):
            fitted.predict(data.test.inputs, 4, abstain_below=confidence)
    numbers = Gaussian().predictive([torch.zeros(5, 2)])
    with pytest.raises(TypeError, match=r"Only predictions of one class .* Compare its std with"):
        fit_abstention(numbers, torch.zeros(5), risk=0.1)
    with pytest.raises(
        TypeError, match=r"is a confidence of one class of each example, got a Gauss.* predictive.std with"
    ):
        set_abstention(numbers, 0.5)
    labels = Bernoulli(3).predictive([torch.zeros(5, 3)])
    with pytest.raises(TypeError, match=r"Only predictions of one class .* Compare its entropy with"):
        fit_abstention(labels, torch.zeros(5, 3), risk=0.1)
    with pytest.raises(TypeError, match=r"got a BernoulliPredictive. Compare predictive.entropy with"):
        set_abstention(labels, 0.5)
