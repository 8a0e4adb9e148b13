"""Mixtures of any distributions: moments, densities, quantiles, entropies and scores against exact values."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from flatbayes.likelihoods import DistributionLikelihood, DistributionPredictive, Gaussian
from flatbayes.metrics import crps as gaussian_crps

RATES = torch.tensor([[1.0, 30.0], [4.0, 50.0], [0.2, 31.0]], dtype=torch.float64)
POISSON = DistributionLikelihood("Poisson").predictive(RATES.log()[..., None])
GRID = torch.arange(150.0).double()
PMF = torch.from_numpy(stats.poisson(RATES[..., None]).pmf(GRID.numpy()))  # (draws, examples, counts)
NORMAL = DistributionLikelihood(lambda o: td.Normal(o[:, 0], o[:, 1].exp()), num_outputs=2)


def draw_outputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make_gaussian_pair(draws=4, examples=30):
    """The same mixtures of normal distributions as two classes."""
    outputs = draw_outputs(draws, examples, 2)
    stds = outputs[..., 1].exp()
    raw = torch.log(torch.expm1(stds - 1e-9))
    gaussian = Gaussian(floor=1e-9).predictive(torch.stack([outputs[..., 0], raw], -1))
    return NORMAL.predictive(outputs), gaussian


class TestPoisson:
    def test_mean_and_variance_are_those_of_the_mixture(self):
        mean = RATES.mean(0)
        torch.testing.assert_close(POISSON.mean, mean)
        torch.testing.assert_close(POISSON.variance, mean + RATES.var(0, correction=0))
        second = (PMF.mean(0) * GRID.square()).sum(-1)
        torch.testing.assert_close(POISSON.variance, second - mean.square())
        torch.testing.assert_close(POISSON.aleatoric, mean)
        torch.testing.assert_close(POISSON.epistemic, RATES.var(0, correction=0))

    def test_log_probabilities_and_distribution_function(self):
        for count in (0, 3, 31):
            targets = torch.full((2,), float(count))
            torch.testing.assert_close(POISSON.log_prob(targets).exp(), PMF.mean(0)[:, count])
            torch.testing.assert_close(POISSON.cdf(targets), PMF.mean(0)[:, : count + 1].sum(-1))

    def test_entropy_and_information_are_exact_sums(self):
        entropies = torch.special.entr(PMF).sum(-1).mean(0)
        entropy = torch.special.entr(PMF.mean(0)).sum(-1)
        torch.testing.assert_close(POISSON.entropy, entropy, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(POISSON.mutual_information, entropy - entropies, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("probability", [1e-6, 0.025, 0.31, 0.5, 0.975, 1 - 1e-7])
    def test_quantiles_are_the_smallest_counts_with_the_probability(self, probability):
        expected = (PMF.mean(0).cumsum(-1) >= probability).double().argmax(-1)
        assert POISSON.quantile(probability).tolist() == expected.tolist()

    def test_interval_contains_its_level(self):
        lower, upper = POISSON.interval(0.9)
        inside = POISSON.cdf(upper) - POISSON.cdf(lower - 1)
        assert (inside >= 0.9).all()
        assert (inside < 0.97).all()

    def test_crps_is_the_sum_of_squared_differences_of_distribution_functions(self):
        targets = torch.tensor([2.0, 45.0])
        expected = (PMF.mean(0).cumsum(-1) - (targets[:, None] <= GRID).double()).square().sum(-1)
        torch.testing.assert_close(POISSON.crps(targets), expected, rtol=0.1, atol=0.01)

    def test_transformed_counts_are_uniform(self):
        many = DistributionLikelihood("Poisson").predictive([torch.full((4000, 1), math.log(2.0))])
        values = many.probability_integral_transform(many.sample(1, seed=3)[0])
        assert stats.kstest(values.numpy(), "uniform").pvalue > 0.01
        torch.testing.assert_close(values, many.probability_integral_transform(many.sample(1, seed=3)[0]))

    def test_impossible_counts_have_no_probability(self):
        assert POISSON.log_prob(torch.tensor([-1.0, 2.5])).isneginf().all()

    def test_large_counts_take_samples(self):
        large = DistributionLikelihood("Poisson").predictive([torch.tensor([[math.log(1e6)]])])
        assert large.entropy.item() == pytest.approx(stats.norm(0, 1e3).entropy(), abs=0.1)

    def test_restrict_keeps_whole_numbers_of_the_support(self):
        lower, upper = POISSON.restrict(torch.tensor([-2.3, 1.2]), torch.tensor([3.9, 4.0]))
        assert (lower.tolist(), upper.tolist()) == ([0.0, 2.0], [3.0, 4.0])


class TestContinuous:
    def test_a_mixture_of_normal_distributions_is_that_of_the_gaussian(self):
        own, gaussian = make_gaussian_pair()
        targets = draw_outputs(30)
        for name in ("mean", "variance", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(own, name), getattr(gaussian, name), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own.log_prob(targets), gaussian.log_prob(targets), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(own.cdf(targets), gaussian.cdf(targets), rtol=1e-6, atol=1e-6)
        for ends in zip(own.interval(0.9), gaussian.interval(0.9), strict=True):
            torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
        assert float((own.entropy - gaussian.entropy).abs().max()) < 0.15
        assert float((own.mutual_information - gaussian.mutual_information).abs().max()) < 0.1
        expected = gaussian_crps(gaussian.member_means, gaussian.member_stds, targets)
        assert own.crps(targets).mean().item() == pytest.approx(expected, rel=0.03)
        assert own.columns().keys() == gaussian.columns().keys()

    @pytest.mark.parametrize("name", ["StudentT", "Laplace", "LogNormal", "Gamma", "Weibull"])
    def test_quantiles_invert_the_distribution_function(self, name):
        likelihood = DistributionLikelihood(name, scale=(1e5,))
        predictive = likelihood.predictive(draw_outputs(5, 20, likelihood.num_outputs))
        for probability in (0.001, 0.4, 0.999):
            found = predictive.cdf(predictive.quantile(probability))
            torch.testing.assert_close(found, torch.full_like(found, probability), rtol=1e-7, atol=1e-9)

    def test_without_a_distribution_function_quantiles_are_those_of_samples(self):
        angles = DistributionLikelihood(lambda o: td.VonMises(o[:, 0], o[:, 1].exp()), num_outputs=2)
        predictive = angles.predictive([torch.tensor([[0.5, 1.0]])])
        expected = stats.vonmises(math.e, loc=0.5).ppf(0.8)
        assert predictive.quantile(0.8).item() == pytest.approx(expected, abs=0.1)
        assert predictive.cdf(torch.tensor([expected])).item() == pytest.approx(0.8, abs=0.05)

    def test_equal_networks_have_no_information(self):
        predictive = NORMAL.predictive([torch.ones(3, 2)] * 4)
        assert predictive.mutual_information.abs().max() < 1e-12

    def test_infinite_moments_are_not_finite_and_intervals_are(self):
        cauchy = DistributionLikelihood(lambda o: td.Cauchy(o[:, 0], o[:, 1].exp()), num_outputs=2)
        predictive = cauchy.predictive([torch.zeros(2, 2)])
        assert not predictive.mean.isfinite().any()
        assert not predictive.std.isfinite().any()
        lower, upper = predictive.interval(0.5)
        torch.testing.assert_close(upper, torch.ones(2).double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(lower, -upper, rtol=1e-6, atol=1e-6)


class TestSeveralTargets:
    JOINT = DistributionLikelihood(
        lambda o: td.MultivariateNormal(o[:, :2], torch.tensor([[2.0, 1.9], [1.9, 2.0]]).to(o)), num_outputs=2
    )

    def test_shapes_and_columns(self):
        likelihood = DistributionLikelihood("NegativeBinomial", num_targets=3)
        predictive = likelihood.predictive(draw_outputs(5, 4, 6))
        assert predictive.mean.shape == (4, 3)
        assert predictive.log_prob(torch.ones(4, 3)).shape == predictive.entropy.shape == (4,)
        assert predictive.quantile(0.5).shape == predictive.crps(torch.ones(4, 3)).shape == (4, 3)
        assert "mean_b" in predictive.to_dict(["a", "b", "c"])
        assert predictive.sample(7).shape == (7, 4, 3)

    def test_independent_targets_are_those_of_each_alone(self):
        outputs = draw_outputs(3, 4, 4)
        both = DistributionLikelihood("NegativeBinomial", num_targets=2).predictive(outputs)
        alone = DistributionLikelihood("NegativeBinomial").predictive(outputs[..., [1, 3]])
        torch.testing.assert_close(both.mean[:, 1], alone.mean)
        torch.testing.assert_close(both.quantile(0.9)[:, 1], alone.quantile(0.9))
        wrapped = DistributionLikelihood(lambda o: td.Independent(td.Poisson(o.exp()), 1), num_outputs=2)
        counts = torch.tensor([[1.0, 3.0]])
        expected = stats.poisson(1).logpmf(counts.numpy()).sum()
        assert wrapped.predictive([torch.zeros(1, 2)]).log_prob(counts).item() == pytest.approx(expected)

    def test_dependent_targets_have_a_joint_density_and_entropy(self):
        predictive = self.JOINT.predictive([torch.zeros(3, 2)])
        normal = stats.multivariate_normal(np.zeros(2), [[2.0, 1.9], [1.9, 2.0]])
        assert predictive.log_prob(torch.ones(3, 2))[0].item() == pytest.approx(normal.logpdf([1, 1]), rel=1e-5)
        assert predictive.entropy[0].item() == pytest.approx(normal.entropy(), abs=0.15)
        assert predictive.cdf(torch.zeros(3, 2)).mean().item() == pytest.approx(0.5, abs=0.05)


class TestTable:
    def test_select_and_concatenate_are_inverse(self):
        predictive = DistributionLikelihood("Gamma").predictive(draw_outputs(3, 6, 2))
        parts = [predictive.select(torch.arange(2)), predictive.select(torch.arange(6) >= 2)]
        joined = DistributionPredictive.concatenate(parts)
        assert torch.equal(joined.mean, predictive.mean)
        assert torch.equal(joined.to("cpu").quantile(0.9), predictive.quantile(0.9))

    def test_it_is_the_same_in_every_call_and_leaves_random_numbers_alone(self):
        before = torch.get_rng_state()
        predictive = DistributionLikelihood("StudentT").predictive(draw_outputs(3, 6, 3))
        first, second = (
            torch.stack([predictive.select(torch.arange(6)).entropy, *predictive.sample(2)]) for _ in "ab"
        )
        assert torch.equal(first, second)
        assert torch.equal(before, torch.get_rng_state())

    def test_blocks_of_examples_have_the_values_of_all(self, monkeypatch):
        predictive = DistributionLikelihood("NegativeBinomial").predictive(draw_outputs(3, 9, 2))
        whole = [predictive.quantile(0.9), predictive.log_prob(torch.ones(9)), predictive.cdf(torch.ones(9))]
        monkeypatch.setattr("flatbayes.likelihoods.distribution_predictive.MAX_BLOCK_VALUES", 4000)
        parts = [predictive.quantile(0.9), predictive.log_prob(torch.ones(9)), predictive.cdf(torch.ones(9))]
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other)
        assert predictive.entropy.shape == (9,)

    def test_its_text_names_the_distribution(self):
        assert repr(POISSON) == "<DistributionPredictive: Poisson, 2 examples, 3 networks>"
        assert "aleatoric" in POISSON.summary()

    def test_wrong_arguments_are_refused(self):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            POISSON.quantile(1.0)
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            POISSON.interval(0.0)
        with pytest.raises(ValueError, match="one target for each prediction|Give one"):
            POISSON.log_prob(torch.zeros(3))
