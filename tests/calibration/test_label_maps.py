"""Calibration maps of several labels: closed forms, optimality, labels that are not known."""

import json
import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from flatbayes.calibration import CalibrationMap, fit_calibration
from flatbayes.calibration.map_fitting import penalized_label_nll
from flatbayes.calibration.maps import is_calibration, transform_label_log_probs
from flatbayes.likelihoods import Bernoulli, BernoulliPredictive, Categorical
from flatbayes.metrics import fit_temperature, multi_label_metrics

pytestmark = pytest.mark.filterwarnings("ignore::flatbayes.calibration.CalibrationWarning")


def make_predictive(log_odds):
    log_probs = torch.stack([-log_odds, log_odds], -1).sigmoid().log()
    return BernoulliPredictive(log_probs, torch.zeros_like(log_odds), torch.zeros_like(log_odds))


def make_labels(num_examples=4000, missing=0.2, seed=0):
    """True log odds, and labels drawn from them, of which some are not known."""
    generator = torch.Generator().manual_seed(seed)
    log_odds = 1.5 * torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)
    labels = (log_odds.sigmoid() > torch.rand(log_odds.shape, generator=generator)).long()
    labels[torch.rand(labels.shape, generator=generator) < missing] = -100
    return log_odds, labels


def test_transformations_by_hand():
    log_probs = make_predictive(torch.tensor([[2.0, -1.0]], dtype=torch.float64)).log_probs
    half = transform_label_log_probs(log_probs, torch.tensor(0.5).double(), torch.zeros(0))
    assert half[0, :, 1].exp().tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(0.5))])
    weights, bias = torch.tensor([0.5, 2.0]).double(), torch.tensor([1.0, 0.0]).double()
    platt = transform_label_log_probs(log_probs, weights, bias)
    assert platt[0, :, 1].exp().tolist() == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))])
    torch.testing.assert_close(platt.exp().sum(-1), torch.ones(1, 2).double())
    certain = torch.tensor([[[0.0, -math.inf]]]).double()
    for weights, bias in ((torch.tensor(0.5), torch.zeros(0)), (torch.ones(1), torch.zeros(1))):
        mapped = transform_label_log_probs(certain, weights.double(), bias.double())
        assert mapped.exp()[0, 0].tolist() == pytest.approx([1.0, 0.0])


def test_temperature_is_that_of_all_known_labels_as_two_classes():
    log_odds, labels = make_labels()
    predictive = make_predictive(2 * log_odds)
    calibration = fit_calibration(predictive, labels)
    known = labels >= 0
    assert calibration.method == "temperature"
    assert 1 / calibration.weights[0] == pytest.approx(fit_temperature(predictive.log_probs[known], labels[known]))
    assert 1 / calibration.weights[0] == pytest.approx(2, rel=0.05)
    calibrated = calibration.apply(predictive)
    torch.testing.assert_close(calibrated.mean, (2 * log_odds * calibration.weights[0]).sigmoid())
    assert torch.equal(calibrated.labels, predictive.labels)
    assert calibration.nll_raw == pytest.approx(multi_label_metrics(predictive.log_probs, labels)["nll"])
    assert calibration.nll_calibrated == pytest.approx(multi_label_metrics(calibrated.log_probs, labels)["nll"])
    assert calibration.nll_calibrated < calibration.nll_raw
    assert calibration.num_examples == int(known.any(1).sum()) < 4000


def test_vector_is_platt_scaling_of_each_label():
    log_odds, labels = make_labels()
    distorted = (log_odds - torch.tensor([1.0, 0.0, -2.0])) / torch.tensor([0.5, 1.0, 2.0])
    calibration = fit_calibration(make_predictive(distorted), labels, "vector")
    for k in range(3):
        known = labels[:, k] >= 0
        regression = LogisticRegression(C=math.inf).fit(distorted[known, k, None], labels[known, k])
        assert calibration.weights[k] == pytest.approx(regression.coef_.item(), rel=2e-2)
        assert calibration.bias[k] == pytest.approx(regression.intercept_.item(), abs=2e-2)


def test_the_parameters_minimise_the_penalized_nll():
    log_odds, labels = make_labels(num_examples=30)
    predictive = make_predictive(3 * log_odds)
    calibration = fit_calibration(predictive, labels, "vector")
    parameters = [torch.tensor(v, requires_grad=True).double() for v in (calibration.weights, calibration.bias)]
    has_label = (labels >= 0).any(1)
    loss = penalized_label_nll(predictive.log_probs[has_label], labels[has_label], *parameters)
    for gradient in torch.autograd.grad(loss, parameters):
        assert gradient.abs().max() < 1e-6


def test_a_label_that_is_never_known_keeps_its_predictions():
    log_odds, labels = make_labels(num_examples=200)
    labels[:, 1] = -100
    calibration = fit_calibration(make_predictive(2 * log_odds), labels, "vector")
    assert calibration.weights[1] == pytest.approx(1)
    assert calibration.bias[1] == pytest.approx(0)
    assert calibration.weights[0] < 0.8


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_missing_labels_are_nan_or_minus_100_and_do_not_count(method):
    log_odds, labels = make_labels(num_examples=100, missing=0.5)
    predictive = make_predictive(2 * log_odds)
    calibration = fit_calibration(predictive, labels, method)
    assert fit_calibration(predictive, torch.where(labels < 0, torch.nan, labels.double()), method) == calibration
    has_label = (labels >= 0).any(1)
    assert not has_label.all()
    assert fit_calibration(predictive.select(has_label), labels[has_label], method) == calibration


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_the_mutual_information_stays_that_of_the_networks(method):
    log_odds, labels = make_labels(num_examples=200)
    noise = torch.randn(5, 200, 3, generator=torch.Generator().manual_seed(1))
    predictive = Bernoulli(3).predictive(2 * log_odds + noise)
    calibrated = fit_calibration(predictive, labels, method).apply(predictive)
    assert not torch.allclose(calibrated.entropy, predictive.entropy, rtol=1e-2)
    information = predictive.label_entropies - predictive.expected_entropies
    expected = torch.minimum(information, calibrated.label_entropies)
    torch.testing.assert_close(calibrated.label_entropies - calibrated.expected_entropies, expected)
    torch.testing.assert_close(calibrated.mutual_information, expected.sum(1))


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_map_is_plain_data(method):
    log_odds, labels = make_labels(num_examples=100)
    calibration = fit_calibration(make_predictive(log_odds), labels, method)
    data = json.loads(json.dumps(calibration.to_dict()))
    assert is_calibration(data)
    assert CalibrationMap.from_dict(data) == calibration
    assert method in calibration.describe()


@pytest.mark.parametrize("method", ["dirichlet", "isotonic", "scale", "quantile", "other"])
def test_other_methods_are_refused(method):
    log_odds, labels = make_labels(num_examples=100)
    message = f"several labels are calibrated by 'temperature' or 'vector', got '{method}'"
    with pytest.raises(ValueError, match=message):
        fit_calibration(make_predictive(log_odds), labels, method)


def test_wrong_input_is_refused():
    log_odds, labels = make_labels(num_examples=100)
    predictive = make_predictive(log_odds)
    with pytest.raises(ValueError, match="Labels must be 0 or 1, and NaN or -100 .* got 2 for label 1 of example 3"):
        fit_calibration(predictive, labels.index_put((torch.tensor(3), torch.tensor(1)), torch.tensor(2)))
    with pytest.raises(ValueError, match=r"got 0.5 for label 0 of example 0"):
        fit_calibration(predictive, torch.full((100, 3), 0.5))
    with pytest.raises(ValueError, match="No label is 0 or 1"):
        fit_calibration(predictive, torch.full((100, 3), math.nan))
    with pytest.raises(ValueError, match=r"one row of 3 labels for each .* got .* of the shape \(100,\)"):
        fit_calibration(predictive, labels[:, 0])
    with pytest.raises(ValueError, match="predictions of 3 labels, got 2 labels"):
        fit_calibration(predictive, labels, "vector").apply(make_predictive(log_odds[:, :2]))
    of_classes = fit_calibration(Categorical(3).predictive([log_odds]), torch.arange(100) % 3, "dirichlet")
    with pytest.raises(TypeError, match="cannot be applied to a BernoulliPredictive"):
        of_classes.apply(predictive)
