"""Distances to a reference: hand-computed values, closed forms and scipy."""

import math

import pytest
import torch
from scipy.stats import wasserstein_distance as scipy_distance

from flatbayes.metrics import agreement, total_variation, wasserstein_distance


def make_mixture(draws, examples, seed):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(draws, examples, generator=generator, dtype=torch.float64)
    return means, 0.3 + torch.rand(draws, examples, generator=generator, dtype=torch.float64)


def test_agreement_and_total_variation_by_hand():
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])
    others = torch.tensor([[0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.0, 1.0, 0.0]])
    assert agreement(probs, others) == 0.5
    assert total_variation(probs, others) == pytest.approx((0.2 + 0 + 0.2 + 1) / 4, abs=1e-7)
    assert total_variation(probs, others) == total_variation(others, probs)
    assert (agreement(probs, probs), total_variation(probs, probs)) == (1.0, 0.0)


@pytest.mark.parametrize("metric", [agreement, total_variation])
def test_probabilities_that_are_refused(metric):
    probs = torch.tensor([[0.5, 0.5]])
    with pytest.raises(ValueError, match="same examples"):
        metric(probs, probs.repeat(2, 1))
    with pytest.raises(ValueError, match="logits"):
        metric(probs, 5 * probs)


def test_wasserstein_distance_of_normal_distributions():
    """|m - m'| for equal standard deviations, and E|Z| |s - s'| for equal means."""
    means, stds = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert wasserstein_distance(means, stds, means + 3, stds) == pytest.approx(3, abs=1e-6)
    expected = math.sqrt(2 / math.pi) * (0.5 + 1.0) / 2
    assert wasserstein_distance(means, stds, means, 1.5 * stds) == pytest.approx(expected, abs=1e-4)
    assert wasserstein_distance(means, stds, means, stds) == 0


def test_wasserstein_distance_of_mixtures_is_that_of_samples():
    mixtures = [make_mixture(3, 4, 0), make_mixture(5, 4, 1)]
    quantiles = torch.special.ndtri((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    samples = [(means + stds * quantiles[:, None, None]).flatten(0, 1) for means, stds in mixtures]
    expected = [scipy_distance(first, second) for first, second in zip(samples[0].T, samples[1].T, strict=True)]
    assert wasserstein_distance(*mixtures[0], *mixtures[1]) == pytest.approx(sum(expected) / 4, rel=1e-3)


def test_wasserstein_distance_of_narrow_members_far_apart():
    means = torch.tensor([[0.0], [1.0], [1000.0]], dtype=torch.float64)
    stds = torch.full_like(means, 1e-3)
    assert wasserstein_distance(means, stds, means + 5e-4, stds) == pytest.approx(5e-4, rel=1e-3)
    zeros = torch.zeros(1, 1)
    assert wasserstein_distance(zeros, zeros, zeros + 2, zeros) == pytest.approx(2, abs=1e-6)
    folded = 2 * math.erf(math.sqrt(2)) + math.sqrt(2 / math.pi) * math.exp(-2)  # E|X| of N(2, 1)
    assert wasserstein_distance(zeros, zeros, zeros + 2, zeros + 1) == pytest.approx(folded, abs=1e-4)


def test_wasserstein_distance_of_several_targets_and_many_examples():
    means, stds = make_mixture(2, 3000, 0)
    moved = means + torch.arange(3000) / 1000
    pairs = [tensor.view(2, 1500, 2) for tensor in (means, stds, moved, stds)]
    expected = sum(wasserstein_distance(m, s, o, s) for m, s, o in [(means, stds, moved)])
    assert wasserstein_distance(*pairs) == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(1.4995, abs=1e-4)


def test_predictions_that_are_refused():
    means, stds = make_mixture(2, 3, 0)
    with pytest.raises(ValueError, match="same order"):
        wasserstein_distance(means, stds, means[:, :2], stds[:, :2])
    with pytest.raises(ValueError, match="finite"):
        wasserstein_distance(means * math.inf, stds, means, stds)
