"""Mixtures of Gaussians against SciPy, quadrature, and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from flatbayes.likelihoods import mixture


def members(seed, draws=5, shape=(4,)):
    generator = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(draws, *shape, generator=generator, dtype=torch.float64)
    return means, torch.rand(draws, *shape, generator=generator, dtype=torch.float64) + 0.1


def density(means, stds):
    return lambda y: stats.norm(means.numpy(), stds.numpy()).pdf(y).mean()


def integrated_entropy(means, stds, step=1e-3):
    """Entropy by sums over an even grid, which converge exponentially fast once the step resolves every member."""
    grid = torch.arange(float((means - 9 * stds).min()), float((means + 9 * stds).max()), step, dtype=torch.float64)
    p = torch.zeros_like(grid)
    for mean, std in zip(means, stds, strict=True):
        p += (-0.5 * ((grid - mean) / std).square()).exp() / (std * math.sqrt(2 * math.pi) * len(means))
    return -torch.special.xlogy(p, p).sum().item() * step


def test_densities_agree_with_scipy():
    means, stds = members(0)
    y = torch.linspace(-3, 3, 4, dtype=torch.float64)
    expected = stats.norm(means.numpy(), stds.numpy()).logpdf(y.numpy())
    torch.testing.assert_close(mixture.normal_log_density(y, means, stds), torch.from_numpy(expected))
    averaged = mixture.log_mean_density(mixture.normal_log_density(y, means, stds)).exp()
    torch.testing.assert_close(averaged, torch.from_numpy(np.exp(expected).mean(0)))


def test_log_densities_are_exact_where_densities_underflow():
    log_densities = torch.tensor([[-4000.0], [-4000.0], [-5000.0]], dtype=torch.float64)
    assert mixture.log_mean_density(log_densities).item() == pytest.approx(-4000 + math.log(2 / 3), rel=1e-14)


def test_the_distribution_function_is_the_integral_of_the_density():
    means, stds = members(1, shape=())
    for y in (-2.0, 0.3, 1.7):
        expected, _ = integrate.quad(density(means, stds), -30, y, points=means[means < y].tolist(), limit=500)
        cdf = mixture.mixture_cdf(torch.tensor(y, dtype=torch.float64), means, stds)
        assert cdf.item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("spread", "narrowest"), [(1.0, 0.1), (1e-3, 1.0), (100.0, 1e-3), (1e6, 1e-6)])
def test_quantiles_of_narrow_and_distant_members_take_few_steps(spread, narrowest, monkeypatch):
    """Their own mode, and the flat distribution function between modes; a bisection takes 64 steps."""
    steps, cdf = [], mixture.mixture_cdf
    monkeypatch.setattr(mixture, "mixture_cdf", lambda *args: (steps.append(args), cdf(*args))[1])
    means, stds = members(3, draws=5, shape=(200,))
    means, stds = means * spread, stds - 0.1 + narrowest
    for probability in (0.025, 0.4, 0.975):
        steps.clear()
        quantiles = mixture.mixture_quantile(probability, means, stds)
        assert len(steps) < 50
        error = 1e-15 * (means.abs().amax(0) + 2 * stds.amax(0))  # rounding of the quantile
        below, above = (cdf(quantiles + sign * 4 * error, means, stds) for sign in (-1, 1))
        assert ((below <= probability + 1e-15) & (above >= probability - 1e-15)).all()


@pytest.mark.parametrize("probability", [1e-6, 0.025, 0.5, 0.8, 0.999])
def test_quantiles_invert_the_distribution_function(probability):
    means, stds = members(2, draws=7, shape=(3, 2))
    quantiles = mixture.mixture_quantile(probability, means, stds)
    assert quantiles.shape == (3, 2)
    expected = torch.full((3, 2), probability, dtype=torch.float64)
    torch.testing.assert_close(mixture.mixture_cdf(quantiles, means, stds), expected, rtol=0, atol=1e-13)


def test_quantiles_of_one_member_agree_with_scipy():
    means, stds = members(3, draws=1)
    expected = stats.norm(means[0].numpy(), stds[0].numpy()).ppf(0.975)
    torch.testing.assert_close(mixture.mixture_quantile(0.975, means, stds), torch.from_numpy(expected))


@pytest.mark.parametrize("probability", [0.0, 1.0, math.nan])
def test_probabilities_of_0_and_1_have_no_quantile(probability):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        mixture.mixture_quantile(probability, *members(0))


def test_entropy_of_equal_members_is_that_of_one():
    stds = torch.tensor([1e-6, 0.3, 1.0, 1e6], dtype=torch.float64).expand(8, 4)
    entropy = mixture.mixture_entropy(torch.full((8, 4), 2.0, dtype=torch.float64), stds)
    torch.testing.assert_close(entropy, mixture.normal_entropy(stds[0]), rtol=0, atol=1e-9)
    torch.testing.assert_close(entropy, torch.from_numpy(stats.norm(0, stds[0].numpy()).entropy()), rtol=0, atol=1e-9)


def test_entropy_of_members_far_apart_is_larger_by_the_log_of_their_number():
    means = 1000 * torch.arange(6, dtype=torch.float64)[:, None]
    stds = torch.linspace(0.5, 2, 6, dtype=torch.float64)[:, None]
    expected = math.log(6) + mixture.normal_entropy(stds).mean(0)
    torch.testing.assert_close(mixture.mixture_entropy(means, stds), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("seed", "draws"), [(0, 2), (1, 5), (2, 30), (3, 100)])
def test_entropy_agrees_with_sums_over_a_fine_grid(seed, draws):
    means, stds = members(seed, draws, shape=(1,))
    expected = integrated_entropy(means[:, 0], stds[:, 0])
    assert mixture.mixture_entropy(means, stds).item() == pytest.approx(expected, abs=1e-4)


def test_entropy_resolves_a_narrow_member_inside_a_wide_one():
    means, stds = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[1.0], [1e-3]], dtype=torch.float64)
    expected = integrated_entropy(means[:, 0], stds[:, 0], step=1e-4)
    assert mixture.mixture_entropy(means, stds).item() == pytest.approx(expected, abs=1e-4)


def test_entropy_in_chunks_is_entropy_at_once(monkeypatch):
    means, stds = members(4, shape=(7, 2))
    whole = mixture.mixture_entropy(means, stds)
    monkeypatch.setattr(mixture, "MAX_INTEGRATION_VALUES", 2**14)
    torch.testing.assert_close(mixture.mixture_entropy(means, stds), whole, rtol=1e-13, atol=0)
    assert whole.shape == (7, 2)
