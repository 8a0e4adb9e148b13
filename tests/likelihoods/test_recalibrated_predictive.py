"""Recalibrated predictive distributions: identities with mixtures and with normal distributions."""

import pytest
import torch

from flatbayes.likelihoods import GaussianPredictive, RecalibratedPredictive
from flatbayes.likelihoods.mixture import mixture_quantile, mixture_quantile_of_score, mixture_score
from flatbayes.likelihoods.recalibrated_predictive import evaluate_curve
from flatbayes.metrics import crps

IDENTITY = ((0.0,), (0.0,))
BENT = ((-2.0, -0.5, 0.4, 2.5), (-1.0, -0.4, 0.6, 1.4))


def make_mixture(num_members=3, shape=(6,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(num_members, *shape, generator=generator, dtype=torch.float64)
    stds = 0.3 + torch.rand(num_members, *shape, generator=generator, dtype=torch.float64)
    return GaussianPredictive(means, stds)


def recalibrate(mixture, *curves):
    return RecalibratedPredictive(mixture.member_means, mixture.member_stds, curves)


@pytest.mark.parametrize("num_members", [1, 30])
@pytest.mark.parametrize("num_targets", [None, 2])
def test_the_identity_gives_the_mixture(num_members, num_targets):
    mixture = make_mixture(num_members, (6,) if num_targets is None else (6, num_targets))
    same = recalibrate(mixture, *[IDENTITY] * (num_targets or 1))
    targets = mixture.mean + torch.linspace(-3, 3, 6, dtype=torch.float64).reshape(6, *[1] * (mixture.mean.ndim - 1))
    for name in ("mean", "variance", "std", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(same, name), getattr(mixture, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(same.entropy, mixture.entropy, rtol=0, atol=1e-4)
    assert torch.equal(same.mutual_information, mixture.mutual_information)
    torch.testing.assert_close(same.cdf(targets), mixture.cdf(targets), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(same.log_prob(targets), mixture.log_prob(targets), rtol=1e-9, atol=1e-9)
    for level in (0.5, 0.95, 0.999999):
        for end, expected in zip(same.interval(level), mixture.interval(level), strict=True):
            torch.testing.assert_close(end, expected, rtol=1e-9, atol=1e-9)
    expected = crps(mixture.member_means, mixture.member_stds, targets)
    assert float(same.crps(targets).mean()) == pytest.approx(expected, rel=1e-6)
    halves = [same.select(torch.arange(3)), same.select(torch.arange(6) >= 3)]
    assert torch.equal(RecalibratedPredictive.concatenate(halves).mean, same.mean)


@pytest.mark.parametrize("factor", [0.2, 1.0, 12.0])
def test_a_line_moves_and_stretches_a_normal_distribution(factor):
    """z = (y - m) / s and g(z) = (z - 0.7) / factor is the distribution N(m + 0.7 s, (factor s)^2)."""
    mixture = make_mixture(num_members=1)
    line = recalibrate(mixture, ((0.7 - factor, 0.7 + 2 * factor), (-1.0, 2.0)))
    mean, std = mixture.mean + 0.7 * mixture.std, factor * mixture.std
    normal = GaussianPredictive(mean[None], std[None])
    targets = mean + std * torch.linspace(-20, 20, 6, dtype=torch.float64)
    for name in ("mean", "std", "entropy"):
        torch.testing.assert_close(getattr(line, name), getattr(normal, name), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(line.cdf(targets), normal.cdf(targets), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(line.log_prob(targets), normal.log_prob(targets), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(line.interval(0.95)[0], normal.interval(0.95)[0], rtol=1e-9, atol=1e-9)
    assert float(line.crps(targets).mean()) == pytest.approx(crps(mean[None], std[None], targets), rel=1e-5)


def test_a_bent_curve_gives_one_consistent_distribution():
    bent = recalibrate(make_mixture(), BENT)
    for level in (0.1, 0.9, 0.999):
        low, high = bent.interval(level)
        torch.testing.assert_close(bent.cdf(low), torch.full_like(low, (1 - level) / 2), rtol=1e-9, atol=0)
        torch.testing.assert_close(bent.cdf(high), torch.full_like(high, (1 + level) / 2), rtol=1e-9, atol=0)
    targets, step = bent.interval(0.73)[1], 1e-5
    slope = (bent.cdf(targets + step) - bent.cdf(targets - step)) / (2 * step)
    torch.testing.assert_close(bent.log_prob(targets).exp(), slope, rtol=1e-6, atol=0)
    # Moments, entropy and CRPS by 20,000 quantiles at equal distances of probability.
    levels = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    score = evaluate_curve(torch.special.ndtri(levels), BENT[1], BENT[0])[0]
    means, stds = (values[:, :1].expand(-1, 20_000) for values in (bent.member_means, bent.member_stds))
    sample = mixture_quantile_of_score(score, means, stds)
    first = bent.select(torch.tensor([0]))
    assert float(first.mean) == pytest.approx(float(sample.mean()), abs=2e-3)
    assert float(first.std) == pytest.approx(float(sample.std()), rel=2e-3)
    densities = recalibrate(GaussianPredictive(means, stds), BENT).log_prob(sample)
    assert float(first.entropy) == pytest.approx(-float(densities.mean()), abs=2e-3)
    target = first.mean + first.std
    pinball = torch.where(target < sample, (1 - levels) * (sample - target), levels * (target - sample))
    assert float(first.crps(target)) == pytest.approx(2 * float(pinball.mean()), rel=2e-3)


def test_the_joint_density_of_two_targets_integrates_to_1():
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 2, generator=generator, dtype=torch.float64)
    axis = torch.linspace(-9, 9, 200, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    wide = means.expand(-1, len(points), -1)
    stds, first = torch.full_like(wide, 0.6), ((-1.0, 1.0), (-0.5, 1.5))
    joint = recalibrate(GaussianPredictive(wide, stds), first, ((-1.0, 2.0), (-2.0, 0.5)))  # without bends: smooth
    density, step = joint.log_prob(points).exp(), axis[1] - axis[0]
    assert float(density.sum() * step**2) == pytest.approx(1, abs=1e-6)
    marginal = density.reshape(200, 200).sum(1) * step
    one = recalibrate(GaussianPredictive(wide[..., 0], stds[..., 0]), first)
    torch.testing.assert_close(
        marginal, one.log_prob(points[:, 0]).exp().reshape(200, 200)[:, 0], rtol=1e-6, atol=1e-9
    )


def test_scores_and_quantiles_are_inverse_far_in_both_tails():
    mixture = make_mixture(4)
    means, stds = mixture.member_means, mixture.member_stds
    for score in (-30.0, -8.0, 0.0, 3.0, 12.0, 30.0):
        values = mixture_quantile_of_score(torch.full((6,), score, dtype=torch.float64), means, stds)
        torch.testing.assert_close(
            mixture_score(values, means, stds), torch.full_like(values, score), rtol=1e-7, atol=1e-9
        )
    level = float(torch.special.ndtr(torch.tensor(0.3, dtype=torch.float64)))
    torch.testing.assert_close(
        mixture_quantile_of_score(torch.full((6,), 0.3, dtype=torch.float64), means, stds),
        mixture_quantile(level, means, stds),
    )
