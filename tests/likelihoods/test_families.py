"""Families of distributions: parameters, densities and distribution functions against SciPy, standardization."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from torch import distributions as td

from flatbayes.likelihoods import DistributionLikelihood, ZeroInflated
from flatbayes.likelihoods.distribution_functions import compute_cdf, compute_log_prob, find_bounds
from flatbayes.likelihoods.families import FAMILIES, find_family, standardize_targets

LOCATION, SCALE = 3.0, 7.0
COUNTS, POSITIVE = np.arange(0.0, 12.0), np.array([0.02, 1.0, 6.5, 40.0])
NUMBERS, FRACTIONS = np.array([-30.0, -1.0, 3.0, 25.0]), np.array([0.03, 0.4, 0.97])


def positive(output):
    return 0.01 + math.log1p(math.exp(output))


EXPECTED = {
    "Poisson": (lambda o: stats.poisson(SCALE * math.exp(o[0])), COUNTS),
    "NegativeBinomial": (
        lambda o: stats.nbinom(positive(o[1]), positive(o[1]) / (positive(o[1]) + SCALE * math.exp(o[0]))),
        COUNTS,
    ),
    "StudentT": (
        lambda o: stats.t(2 + positive(o[2]), LOCATION + SCALE * o[0], SCALE * positive(o[1])),
        NUMBERS,
    ),
    "Laplace": (lambda o: stats.laplace(LOCATION + SCALE * o[0], SCALE * positive(o[1])), NUMBERS),
    "LogNormal": (lambda o: stats.lognorm(positive(o[1]), scale=SCALE * math.exp(o[0])), POSITIVE),
    "Gamma": (
        lambda o: stats.gamma(positive(o[1]), scale=SCALE * math.exp(o[0]) / positive(o[1])),
        POSITIVE,
    ),
    "Weibull": (lambda o: stats.weibull_min(positive(o[1]), scale=SCALE * math.exp(o[0])), POSITIVE),
    "Beta": (
        lambda o: stats.beta(positive(o[1]) / (1 + math.exp(-o[0])), positive(o[1]) / (1 + math.exp(o[0]))),
        FRACTIONS,
    ),
}


def make(name, outputs, values):
    likelihood = DistributionLikelihood(name, location=(LOCATION,), scale=(SCALE,))
    rows = torch.tensor(outputs, dtype=torch.float64)[: likelihood.num_outputs].expand(len(values), -1)
    return likelihood.make_distribution(rows)


@pytest.mark.parametrize("outputs", [(0.3, -0.4, 0.9), (-1.2, 2.5, -2.0)])
@pytest.mark.parametrize("name", EXPECTED)
def test_density_distribution_function_and_moments_are_those_of_scipy(name, outputs):
    expected, values = EXPECTED[name][0](outputs), EXPECTED[name][1]
    distribution, points = make(name, outputs, values), torch.from_numpy(values)
    log_density = expected.logpmf(values) if values is COUNTS else expected.logpdf(values)
    np.testing.assert_allclose(compute_log_prob(distribution, points), log_density, rtol=1e-9)
    np.testing.assert_allclose(compute_cdf(distribution, points), expected.cdf(values), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(distribution.mean[0], expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(distribution.variance[0], expected.var(), rtol=1e-8)


def test_a_negative_binomial_is_a_poisson_whose_rate_has_a_gamma_distribution():
    mean, shape = SCALE * math.exp(0.3), positive(-0.4)
    rates = stats.gamma(shape, scale=mean / shape)
    mixture = [quad(lambda rate, k=k: rates.pdf(rate) * stats.poisson(rate).pmf(k), 0, 400)[0] for k in range(5)]
    distribution = make("NegativeBinomial", (0.3, -0.4), COUNTS[:5])
    np.testing.assert_allclose(distribution.log_prob(torch.arange(5.0).double()).exp(), mixture, rtol=1e-6)
    assert distribution.variance[0].item() == pytest.approx(mean + mean**2 / shape)


@pytest.mark.parametrize("name", ["Poisson", "NegativeBinomial"])
def test_zero_inflation_adds_zeros(name):
    gate = 1 / (1 + math.exp(-0.7))
    outputs = (0.1, 0.7) if name == "Poisson" else (0.1, 0.5, 0.7)
    base, inflated = make(name, outputs[:-1], COUNTS), make(f"ZeroInflated{name}", outputs, COUNTS)
    counts = torch.from_numpy(COUNTS)
    expected = (1 - gate) * base.log_prob(counts).exp() + gate * (counts == 0)
    torch.testing.assert_close(inflated.log_prob(counts).exp(), expected)
    torch.testing.assert_close(compute_cdf(inflated, counts), expected.cumsum(0))
    many = torch.arange(4000.0).double()
    probs = make(f"ZeroInflated{name}", outputs, many).log_prob(many).exp()
    mean = (probs * many).sum()
    torch.testing.assert_close(inflated.mean[0], mean)
    torch.testing.assert_close(inflated.variance[0], (probs * many.square()).sum() - mean.square())


def test_samples_of_zero_inflated_counts_have_its_mean():
    distribution = ZeroInflated(td.Poisson(torch.tensor([4.0])), torch.tensor([-0.5]))
    samples = distribution.sample((40_000,))
    assert samples.mean().item() == pytest.approx(distribution.mean.item(), abs=0.05)
    assert (samples == 0).float().mean().item() == pytest.approx(
        distribution.log_prob(torch.zeros(1)).exp().item(), abs=0.01
    )


@pytest.mark.parametrize(
    ("distribution", "expected", "values"),
    [
        (td.Geometric(0.3), stats.geom(0.3, loc=-1), COUNTS),
        (td.Binomial(6, torch.tensor(0.3)), stats.binom(6, 0.3), COUNTS),
        (td.Exponential(0.3), stats.expon(scale=1 / 0.3), np.array([-1.0, 0.0, 2.0])),
        (td.Uniform(1.0, 3.0), stats.uniform(1, 2), np.array([0.0, 1.5, 3.5])),
        (td.Cauchy(1.0, 2.0), stats.cauchy(1, 2), NUMBERS),
        (td.LogNormal(0.0, 1.0), stats.lognorm(1), np.array([-3.0, 0.0, 2.0])),
    ],
)
def test_distribution_functions_of_other_distributions(distribution, expected, values):
    points = torch.from_numpy(values).float()
    np.testing.assert_allclose(compute_cdf(distribution, points), expected.cdf(values), rtol=1e-5, atol=1e-7)


def test_the_distribution_function_of_a_mixture_is_the_mean_of_its_parts():
    parts = td.Normal(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 2.0]]))
    mixture = td.MixtureSameFamily(td.Categorical(torch.tensor([[0.25, 0.75]])), parts)
    expected = 0.25 * stats.norm(0, 1).cdf(1.0) + 0.75 * stats.norm(3, 2).cdf(1.0)
    assert compute_cdf(mixture, torch.ones(1)).item() == pytest.approx(expected, rel=1e-5)


def test_values_outside_of_the_support_have_no_density():
    values = torch.tensor([-1.0, 0.5, 2.0])
    assert compute_log_prob(td.Poisson(torch.ones(3)), values).isneginf().tolist() == [True, True, False]
    assert find_bounds(td.Uniform(1.0, 3.0).support) == (torch.tensor(1.0), torch.tensor(3.0))


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "Student T", "zero_inflated_poisson"])
def test_names_in_other_letter_cases_are_found(name):
    assert find_family(name) in FAMILIES


def test_what_is_no_family_is_not_found():
    assert find_family("Gaussian") is None
    assert find_family(None) is None


def test_outliers_do_not_change_location_and_scale_of_numbers():
    targets = torch.randn(2001, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5 + 20
    targets[:20] = 1e9
    location, scale = standardize_targets("numbers", targets)
    assert location.item() == pytest.approx(20, abs=0.5)
    assert scale.item() == pytest.approx(5, rel=0.1)


def test_half_equal_numbers_have_a_scale():
    targets = torch.tensor([[0.0]] * 8 + [[1.0], [4.0]], dtype=torch.float64)
    assert standardize_targets("numbers", targets)[1].item() == pytest.approx(targets.std(correction=0).item())
