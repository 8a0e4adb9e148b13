"""Calibration maps: closed forms, optimality, plain data."""

import json
import math

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression

from flatbayes.calibration import CalibrationMap, fit_calibration
from flatbayes.calibration.map_fitting import mean_nll, penalized_nll
from flatbayes.calibration.maps import is_calibration, transform_log_probs
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive

pytestmark = pytest.mark.filterwarnings("ignore::flatbayes.calibration.CalibrationWarning")

CLASS_METHODS = ["temperature", "vector", "dirichlet", "isotonic"]


def make_predictive(log_probs):
    zeros = torch.zeros(len(log_probs), dtype=log_probs.dtype)
    return CategoricalPredictive(log_probs, zeros, torch.zeros_like(log_probs))


def make_classes(num_examples=4000, seed=0):
    """True log probabilities, and classes drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = (1.5 * torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)).log_softmax(1)
    return log_probs, torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)


def make_numbers(num_targets, num_members=1, num_examples=200):
    generator = torch.Generator().manual_seed(0)
    shape = (num_members, num_examples) if num_targets is None else (num_members, num_examples, num_targets)
    means, stds = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    stds += 0.5
    noise = torch.randn(shape[1:], generator=generator, dtype=torch.float64)
    return GaussianPredictive(means, stds), means.mean(0) + 3 * noise


def test_transformations_by_hand():
    log_probs = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    bias = torch.tensor([0.0, math.log(2), 0.0])
    half = transform_log_probs(log_probs, torch.tensor(2.0), bias[:0]).exp()
    assert half[0].tolist() == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    vector = transform_log_probs(log_probs, torch.tensor([1.0, 1.0, 0.0]), bias).exp()
    assert vector[0].tolist() == pytest.approx([0.25, 0.25, 0.5])
    swap = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    swapped = transform_log_probs(log_probs, swap, bias.double()).exp()  # in proportion 1/4 : 2 * 1/2 : 1/4
    assert swapped[0].tolist() == pytest.approx([1 / 6, 4 / 6, 1 / 6])
    certain = torch.tensor([[0.0, -math.inf, -math.inf]], dtype=torch.float64)
    for weights in (torch.tensor(0.5), torch.ones(3), torch.eye(3)):
        mapped = transform_log_probs(certain, weights.double(), bias.double() * 0)
        assert mapped.exp()[0].tolist() == pytest.approx([1.0, 0.0, 0.0])


@pytest.mark.parametrize("method", ["temperature", "vector", "dirichlet"])
def test_a_distortion_of_the_methods_kind_is_undone(method):
    true, targets = make_classes()
    scale = {"temperature": 2.0, "vector": torch.tensor([2.0, 0.5, 1.0]), "dirichlet": 1.0}[method]
    distorted = scale * true
    if method == "dirichlet":
        mixing = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 1.5]], dtype=torch.float64)
        distorted = true @ mixing.T
    raw = make_predictive(distorted.log_softmax(1))
    calibration = fit_calibration(raw, targets, method)
    assert calibration.nll_calibrated < calibration.nll_raw - 0.01
    assert calibration.nll_raw == mean_nll(raw, targets)
    best = mean_nll(make_predictive(true), targets)
    assert abs(calibration.nll_calibrated - best) < 0.003 + (method == "vector") * 0.05
    fresh, fresh_targets = make_classes(seed=1)
    again = fresh @ mixing.T if method == "dirichlet" else scale * fresh
    held_out = mean_nll(calibration.apply(make_predictive(again.log_softmax(1))), fresh_targets)
    assert abs(held_out - mean_nll(make_predictive(fresh), fresh_targets)) < 0.004 + (method == "vector") * 0.05


@pytest.mark.parametrize("method", ["vector", "dirichlet"])
@pytest.mark.parametrize("num_examples", [12, 400])
def test_the_parameters_minimise_the_penalized_nll(method, num_examples):
    """Also where all 12 predictions are right, so that the NLL alone has no minimum."""
    log_probs, targets = make_classes(num_examples)
    targets = log_probs.argmax(1) if num_examples == 12 else targets
    weights, bias = fit_calibration(make_predictive(log_probs), targets, method).get_parameters()
    weights.requires_grad_()
    bias.requires_grad_()
    identity = torch.ones(3) if method == "vector" else torch.eye(3)
    penalized_nll(log_probs, targets, weights, bias, identity.double(), len(targets)).backward()
    assert max(weights.grad.abs().max(), bias.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("num_targets", [None, 2])
def test_the_scale_of_one_normal_distribution_is_the_root_mean_square_of_the_standardized_errors(num_targets):
    predictive, targets = make_numbers(num_targets)
    calibration = fit_calibration(predictive, targets)
    standardized = ((targets - predictive.mean) / predictive.std).reshape(len(targets), -1)
    assert calibration.weights == pytest.approx(standardized.square().mean(0).sqrt().tolist(), rel=1e-6)
    assert calibration.nll_calibrated < calibration.nll_raw


@pytest.mark.parametrize("num_targets", [None, 2])
def test_mixtures_are_stretched_about_their_mean(num_targets):
    predictive, targets = make_numbers(num_targets, num_members=4)
    calibration = fit_calibration(predictive, targets)
    calibrated = calibration.apply(predictive)
    factor = torch.tensor(calibration.weights, dtype=torch.float64).squeeze()
    torch.testing.assert_close(calibrated.mean, predictive.mean)
    torch.testing.assert_close(calibrated.std, factor * predictive.std, rtol=1e-6, atol=0)
    quantile = predictive.mean + factor * (predictive.interval(0.9)[1] - predictive.mean)
    torch.testing.assert_close(calibrated.interval(0.9)[1], quantile, rtol=1e-6, atol=0)
    for other in (0.99, 1.01):
        moved = CalibrationMap("scale", tuple(other * w for w in calibration.weights), (), 200, 0.0, 0.0)
        if num_targets is None:  # the NLL of several targets is that of all together
            assert mean_nll(moved.apply(predictive), targets) > calibration.nll_calibrated


def test_the_mutual_information_stays_that_of_the_networks():
    log_probs = torch.tensor([[0.6, 0.4], [0.99, 0.01]], dtype=torch.float64).log()
    entropy = -(log_probs.exp() * log_probs).sum(1)
    raw = CategoricalPredictive(log_probs, entropy - 0.02, torch.zeros_like(log_probs))
    wider = CalibrationMap("temperature", (0.5,), (), 2, 0.0, 0.0).apply(raw)
    assert (wider.entropy > raw.entropy).all()
    torch.testing.assert_close(wider.mutual_information, raw.mutual_information)
    sharper = CalibrationMap("temperature", (50.0,), (), 2, 0.0, 0.0).apply(raw)
    torch.testing.assert_close(sharper.mutual_information, torch.minimum(sharper.entropy, raw.mutual_information))


@pytest.mark.parametrize("num_examples", [1, 7, 900])
@pytest.mark.parametrize("num_targets", [None, 2])
def test_quantiles_of_validation_targets_become_those_of_the_levels(num_examples, num_targets):
    predictive, targets = make_numbers(num_targets, num_members=3, num_examples=num_examples)
    calibration = fit_calibration(predictive, targets, "quantile")
    pit = calibration.apply(predictive).cdf(targets).reshape(num_examples, -1)
    num_levels = max(1, math.isqrt(num_examples))
    for k in range(1, num_levels + 1):  # k / (K + 1) of the targets are below the quantile of that level
        below = (pit < k / (num_levels + 1) - 1e-12).sum(0)
        rank = k * (num_examples + 1) / (num_levels + 1)
        assert ((below - rank).abs() <= 1).all(), (k, below, rank)
    assert len(calibration.sizes) == (num_targets or 1)


def test_a_skewed_error_is_recalibrated():
    """Targets of an exponential distribution around the predictions of a standard normal one."""
    generator = torch.Generator().manual_seed(0)
    means = 5 * torch.randn(1, 4000, generator=generator, dtype=torch.float64)
    predictive = GaussianPredictive(means, torch.ones_like(means))
    errors = -torch.rand(4000, generator=generator, dtype=torch.float64).log()
    targets, rows = means[0] + errors, torch.arange(4000) < 2000
    calibration = fit_calibration(predictive.select(rows), targets[rows], "quantile")
    fresh = calibration.apply(predictive.select(~rows))
    low, high = fresh.interval(0.9)
    exact = -torch.tensor([0.95, 0.05], dtype=torch.float64).log()
    assert float((low - means[0, ~rows]).mean()) == pytest.approx(float(exact[0]), abs=0.05)
    assert float((high - means[0, ~rows]).mean()) == pytest.approx(float(exact[1]), abs=0.25)
    assert float((fresh.mean - means[0, ~rows]).mean()) == pytest.approx(1.0, abs=0.05)
    scaled = fit_calibration(predictive.select(rows), targets[rows], "scale").apply(predictive.select(~rows))
    assert mean_nll(fresh, targets[~rows]) < mean_nll(scaled, targets[~rows]) - 0.3
    assert fresh.crps(targets[~rows]).mean() < 0.53  # 1/2 is that of the exponential distribution itself


def test_isotonic_probabilities_are_regressions_of_one_class_against_the_rest():
    log_probs, targets = make_classes(300)
    distorted = (3 * log_probs).log_softmax(1)
    calibration = fit_calibration(make_predictive(distorted), targets, "isotonic")
    probs = distorted.exp().float().double()
    columns = [
        IsotonicRegression().fit_transform(probs[:, k].numpy(), (targets == k).double().numpy()) for k in range(3)
    ]
    expected = (300 * torch.tensor(np.array(columns)).T + probs) / 301
    mapped = calibration.apply(make_predictive(distorted)).mean
    torch.testing.assert_close(mapped, expected / expected.sum(1, keepdim=True), rtol=2e-3, atol=1e-5)
    fresh, fresh_targets = make_classes(4000, seed=1)
    raw = make_predictive((3 * fresh).log_softmax(1))
    assert mean_nll(calibration.apply(raw), fresh_targets) < mean_nll(raw, fresh_targets) - 0.1


def test_isotonic_probabilities_are_never_0_where_the_posterior_gives_a_class_a_chance():
    log_probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9]], dtype=torch.float64).log()
    calibration = fit_calibration(make_predictive(log_probs), torch.tensor([0, 0, 1]), "isotonic")
    surprising = torch.tensor([[0.0, -50.0], [-0.1, math.log(1 - math.exp(-0.1))]], dtype=torch.float64)
    mapped = calibration.apply(make_predictive(surprising)).log_probs
    assert mapped.isfinite().all()
    assert (mapped > surprising - math.log(2 * (3 + 1))).all()
    torch.testing.assert_close(mapped.exp().sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("method", [*CLASS_METHODS, "scale", "quantile"])
def test_a_map_is_plain_data_and_damage_is_found(method):
    if method in ("scale", "quantile"):
        predictive, targets = make_numbers(2)
    else:
        log_probs, targets = make_classes(50)
        predictive = make_predictive(log_probs)
    calibration = fit_calibration(predictive, targets, method)
    data = json.loads(json.dumps(calibration.to_dict()))
    assert is_calibration(data)
    assert CalibrationMap.from_dict(data) == calibration
    assert method in calibration.describe()
    damages = [{"weights": []}, {"weights": [math.nan]}, {"bias": "x"}, {"method": "none"}, {"nll_raw": None}]
    damages += [{"bias": [1.0]}] if method != "scale" else []
    damages += [{"weights": [-1.0]}] if method != "quantile" else [{"weights": data["weights"][::-1]}]
    if method in ("isotonic", "quantile"):
        damages += [{"sizes": [1]}, {"sizes": []}, {"bias": data["bias"][::-1]}, {"sizes": [*data["sizes"], 0]}]
    else:
        assert is_calibration({name: value for name, value in data.items() if name != "sizes"})
    for damage in damages:
        assert not is_calibration(data | damage), damage
    assert not is_calibration({"method": method})


def test_wrong_input_is_refused():
    log_probs, targets = make_classes(20)
    classes, (numbers, values) = make_predictive(log_probs), make_numbers(None)
    with pytest.raises(ValueError, match="'temperature', 'vector', 'dirichlet' or 'isotonic', got 'scale'"):
        fit_calibration(classes, targets, "scale")
    with pytest.raises(ValueError, match="calibrated by 'scale' or 'quantile', got 'vector'"):
        fit_calibration(numbers, values, "vector")
    with pytest.raises(ValueError, match="at most 100 classes"):
        fit_calibration(make_predictive(torch.zeros(2, 101).log_softmax(1)), torch.tensor([0, 1]), "dirichlet")
    with pytest.raises(ValueError, match="predictions of 3 classes, got 2 classes"):
        fit_calibration(classes, targets, "vector").apply(make_predictive(log_probs[:, :2].log_softmax(1)))
    with pytest.raises(TypeError, match="cannot be applied to a GaussianPredictive"):
        fit_calibration(classes, targets).apply(numbers)
