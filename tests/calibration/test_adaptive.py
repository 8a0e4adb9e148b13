"""Adaptive conformal inference: the recursion, the bound on errors, changes of the distribution."""

import json
import math

import pytest
import torch

from flatbayes.calibration import APS, AdaptiveConformal, QuantileResidual, conformal_quantile
from flatbayes.calibration.adaptive import follow_errors
from flatbayes.likelihoods import CategoricalPredictive, GaussianPredictive


def make_numbers(count):
    zeros = torch.zeros(1, count, dtype=torch.float64)
    return GaussianPredictive(zeros, zeros + 1)


def make_classes(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(count, 3, generator=generator, dtype=torch.float64).log_softmax(1)
    labels = torch.multinomial(log_probs.exp(), 1, generator=generator).squeeze(1)
    return CategoricalPredictive(log_probs, torch.zeros(count), torch.zeros(count, 3)), labels


def run(stream, predictive, targets):
    """Covered or not, and the thresholds, one example after the other."""
    covered, thresholds = [], []
    for row in range(len(targets)):
        thresholds.append(stream.threshold)
        covered.append(bool(stream.update(predictive.select(torch.tensor([row])), targets[[row]])))
    return covered, thresholds


def test_the_recursion_by_hand():
    assert follow_errors(0.1, [False, True, False], 0.1, 0.5) == pytest.approx(0.1 + 0.05 - 0.45 + 0.05)
    stream = AdaptiveConformal(level=0.5, rate=0.2)
    targets = torch.tensor([1.0, 3.0, 2.0, 9.0, 0.5], dtype=torch.float64)
    covered, thresholds = run(stream, make_numbers(5), targets)
    # a = .5, .6, .5, .6, .5: the thresholds have the ranks ceil((n + 1)(1 - a)) of 1, 1, 2, 2 and 3.
    assert thresholds == [math.inf, 1.0, 3.0, 2.0, 3.0]
    assert covered == [True, False, True, False, True]
    assert stream.error_rate == pytest.approx(0.6)
    assert repr(stream) == "<AdaptiveConformal at level 0.5: error rate 0.6, 5 examples, 0.4 of them outside>"
    assert "at most 0.7 / (0.2 T)" in stream.guarantee()
    stream.update(make_numbers(3), targets[:3])
    assert "at most 1.1 / (0.2 T)" in stream.guarantee()  # three examples share a threshold
    assert stream.error_bound() == pytest.approx(1.1 / (0.2 * 8))


def test_an_error_rate_of_rounding_is_zero():
    stream = AdaptiveConformal(level=0.6, rate=1 / 3)
    stream.error_rate = follow_errors(0.4, [True, True], 0.4, 1 / 3)
    assert 0 < stream.error_rate < 1e-16
    assert stream.threshold == math.inf


@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("kind", ["shift", "adversarial"])
def test_errors_stay_within_the_bound_whatever_the_data(kind, window):
    generator = torch.Generator().manual_seed(1)
    stream, predictive = AdaptiveConformal(level=0.9, rate=0.02, window=window), make_numbers(1)
    rates = []
    for step in range(800):
        scale = 1.0 if step < 300 else 4.0
        threshold = stream.threshold
        target = scale * float(torch.randn((), generator=generator))
        if kind == "adversarial" and math.isfinite(threshold):
            target = threshold + 1
        stream.update(predictive, torch.tensor([target]))
        rates.append(stream.error_rate)
        observed = stream.num_errors / stream.num_examples
        assert abs(observed - 0.1) <= stream.error_bound() + 1e-12
    assert min(rates) >= -0.02
    assert max(rates) <= 1.02
    assert stream.error_bound() == pytest.approx((0.9 + 0.02) / (0.02 * 800))
    assert abs(observed - 0.1) < 0.04


def test_a_static_threshold_loses_coverage_where_the_stream_keeps_it():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(1000, generator=generator, dtype=torch.float64)
    targets[300:] *= 3
    stream = AdaptiveConformal(level=0.9, rate=0.05, window=100)
    covered, _ = run(stream, make_numbers(1000), targets)
    static = float((targets[300:].abs() <= conformal_quantile(targets[:300].abs(), 0.9)).double().mean())
    assert static < 0.5
    assert sum(covered[300:]) / 700 == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("score", [None, APS()])
def test_sets_of_classes(score):
    predictive, labels = make_classes(400)
    stream = AdaptiveConformal(level=0.8, rate=0.02, score=score)
    stream.update(predictive.select(torch.arange(200)), labels[:200])  # in one call: everything is inside
    assert stream.num_errors == 0
    assert stream.largest_batch == 200
    region = stream.predict(predictive.select(torch.arange(200, 210)))
    covered = stream.update(predictive.select(torch.arange(200, 210)), labels[200:210])
    assert torch.equal(region.contains(labels[200:210]), covered)
    run(stream, predictive.select(torch.arange(210, 400)), labels[210:])
    assert abs(stream.num_errors / 400 - 0.2) <= stream.error_bound()


@pytest.mark.parametrize("score", [None, QuantileResidual()])
def test_a_stream_goes_on_after_it_was_written(score):
    targets = torch.linspace(-3, 3, 40, dtype=torch.float64)
    stream = AdaptiveConformal(level=0.7, rate=0.1, score=score, window=10)
    run(stream, make_numbers(30), targets[:30])
    again = AdaptiveConformal.from_dict(json.loads(json.dumps(stream.to_dict())))
    assert run(again, make_numbers(10), targets[30:]) == run(stream, make_numbers(10), targets[30:])
    assert repr(again) == repr(stream)


def test_wrong_input_is_refused():
    for options, match in (({"level": 1.0}, "level"), ({"rate": 0.0}, "rate"), ({"window": 0}, "window")):
        with pytest.raises(ValueError, match=match):
            AdaptiveConformal(**options)
    pair = torch.zeros(1, 2, 2)
    with pytest.raises(ValueError, match="a stream for each target"):
        AdaptiveConformal().update(GaussianPredictive(pair, pair + 1), torch.zeros(2, 2))
