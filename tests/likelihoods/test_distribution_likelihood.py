"""`DistributionLikelihood`: losses, targets and functions that it takes and refuses, and its description as data."""

import math

import pytest
import torch
from scipy import stats
from torch import distributions as td

from flatbayes.core.spec import instantiate, to_spec
from flatbayes.likelihoods import DistributionLikelihood, Likelihood
from flatbayes.likelihoods.families import FAMILIES
from flatbayes.posteriors.ggn import factorize_loss_hessian

POISSON = DistributionLikelihood("Poisson", scale=(5.0,))
VALID = {"counts": 3.0, "numbers": -2.5, "positive numbers": 2.5, "fractions": 0.25}


def rate_of(outputs):
    return td.Poisson(outputs[:, 0].exp())


class TestLoss:
    def test_is_the_mean_negative_log_probability(self):
        outputs, counts = torch.randn(6, 1, dtype=torch.float64), torch.arange(6.0)
        expected = -stats.poisson(5 * outputs[:, 0].exp().numpy()).logpmf(counts.numpy()).mean()
        assert POISSON.loss(outputs, counts).item() == pytest.approx(expected, rel=1e-10)
        assert POISSON.loss(outputs, counts.long()[:, None]).item() == pytest.approx(expected, rel=1e-10)

    def test_targets_of_an_example_are_summed(self):
        outputs, counts = torch.randn(6, 4), torch.arange(12.0).reshape(6, 2)
        both = DistributionLikelihood("NegativeBinomial", num_targets=2).loss(outputs, counts)
        one = DistributionLikelihood("NegativeBinomial")
        alone = sum(one.loss(outputs[:, [k, k + 2]], counts[:, k]) for k in range(2))
        torch.testing.assert_close(both, alone)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_it_is_that_of_the_prediction_of_one_network(self, name):
        likelihood = DistributionLikelihood(name, scale=(2.0,))
        outputs = torch.randn(5, likelihood.num_outputs)
        targets = torch.full((5,), VALID[FAMILIES[name].targets])
        expected = -likelihood.predictive([outputs]).log_prob(targets).mean()
        assert likelihood.loss(outputs, targets).item() == pytest.approx(expected.item(), rel=1e-4)

    @pytest.mark.parametrize("name", FAMILIES)
    def test_gradients_are_finite_for_large_outputs_and_small_precision(self, name):
        likelihood = DistributionLikelihood(name)
        for value in (-8.0, 0.0, 8.0):
            outputs = torch.full((2, likelihood.num_outputs), value, dtype=torch.bfloat16, requires_grad=True)
            targets = torch.full((2,), VALID[FAMILIES[name].targets])
            likelihood.loss(outputs, targets).backward()
            assert outputs.grad.isfinite().all()

    def test_the_unit_of_numbers_changes_it_by_a_constant(self):
        outputs, targets = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
        plain = DistributionLikelihood("StudentT").loss(outputs, targets)
        scaled = DistributionLikelihood("StudentT", location=(9.0,), scale=(4.0,)).loss(outputs, 9 + 4 * targets)
        assert (scaled - plain).item() == pytest.approx(math.log(4))

    def test_networks_that_train_together_have_it(self):
        own = DistributionLikelihood(rate_of, num_outputs=1)
        outputs, counts = torch.randn(3, 5, 1), torch.ones(5)
        losses = torch.func.vmap(own.loss, in_dims=(0, None))(outputs, counts)
        torch.testing.assert_close(losses, torch.stack([own.loss(rows, counts) for rows in outputs]))

    def test_the_curvature_of_a_poisson_is_its_rate(self):
        outputs, counts = torch.randn(6, 1, dtype=torch.float64), torch.arange(6.0)
        factor = factorize_loss_hessian(outputs, counts, POISSON.loss)
        torch.testing.assert_close((factor @ factor.mT)[:, 0, 0], 5 * outputs[:, 0].exp())

    def test_the_curvature_of_an_outlier_is_not_negative(self):
        likelihood = DistributionLikelihood("StudentT")
        factor = factorize_loss_hessian(torch.zeros(1, 3, dtype=torch.float64), torch.tensor([50.0]), likelihood.loss)
        assert factor.isfinite().all()

    def test_shapes_are_checked(self):
        with pytest.raises(ValueError, match=r"shape \(2, 3\), but the likelihood has 1 output"):
            POISSON.loss(torch.zeros(2, 3), torch.zeros(2))
        with pytest.raises(ValueError, match=r"Expected targets of the shape \(2,\)"):
            POISSON.loss(torch.zeros(2, 1), torch.zeros(3))


class TestTargets:
    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("Poisson", -2.0, "whole numbers of at least 0, the first, -2, in row 1"),
            ("NegativeBinomial", 0.5, "whole numbers of at least 0, the first, 0.5"),
            ("LogNormal", 0.0, "numbers above 0, the first, 0"),
            ("Beta", 1.0, "numbers above 0 and below 1, the first, 1"),
            ("StudentT", math.nan, "finite numbers, the first, nan"),
        ],
    )
    def test_those_outside_of_the_support_are_named(self, name, value, words):
        likelihood = DistributionLikelihood(name)
        targets = torch.tensor([VALID[likelihood.family.targets], value])
        with pytest.raises(ValueError, match=f"1 target is outside of the support of {name}, {words}"):
            likelihood.prepare_targets(targets)

    def test_those_of_a_function_too(self):
        own = DistributionLikelihood(rate_of, num_outputs=1)
        with pytest.raises(ValueError, match="outside of the support of the distribution, the first, -1, in row 0"):
            own.prepare_targets(torch.tensor([-1, 2]))
        wide = DistributionLikelihood(lambda o: td.Uniform(o[:, 0], o[:, 0] + 1), num_outputs=1)
        assert wide.prepare_targets(torch.tensor([-4.0])).item() == -4  # its support depends on the outputs

    def test_their_shape_is_checked(self):
        with pytest.raises(
            ValueError, match=r"must have 1 target, shape \(examples, 1\); got torch.float32 of shape"
        ):
            POISSON.prepare_targets(torch.zeros(4, 2))

    def test_the_scale_of_counts_is_their_mean_and_counts_stay_as_they_are(self):
        likelihood = DistributionLikelihood.fit("poisson", torch.tensor([0, 2, 10]))
        assert (likelihood.location, likelihood.scale) == ((0.0,), (4.0,))
        assert likelihood.predictive([torch.zeros(1, 1)]).mean.item() == pytest.approx(4)

    def test_equal_targets_have_nothing_to_learn(self):
        with pytest.raises(ValueError, match="Target 0 is 3 in all 2 training examples"):
            DistributionLikelihood.fit("Poisson", torch.tensor([3, 3]))
        with pytest.raises(ValueError, match="at least one"):
            DistributionLikelihood.fit("Poisson", torch.zeros(0))


class TestFunctions:
    def test_the_number_of_targets_is_that_of_the_distribution(self):
        assert DistributionLikelihood(rate_of, 1).num_targets == 1
        assert DistributionLikelihood(lambda o: td.Poisson(o.exp()), 3).num_targets == 3
        joint = DistributionLikelihood(lambda o: td.MultivariateNormal(o, torch.eye(2).to(o)), 2)
        assert joint.num_targets == 2

    def test_wrong_ones_are_refused(self):
        with pytest.raises(ValueError, match="needs num_outputs"):
            DistributionLikelihood(rate_of)
        with pytest.raises(ValueError, match="fails for outputs of the shape"):
            DistributionLikelihood(lambda o: td.Normal(o[:, 0], o[:, 5]), 2)
        with pytest.raises(ValueError, match="batch shape"):
            DistributionLikelihood(lambda o: td.Poisson(o.exp().sum()), 2)
        with pytest.raises(ValueError, match="families with a name"):
            DistributionLikelihood(rate_of, 1, scale=(2.0,))
        with pytest.raises(TypeError, match="name of a family or a function"):
            DistributionLikelihood(3)

    def test_outputs_that_are_no_parameters_are_explained(self):
        likelihood = DistributionLikelihood(lambda o: td.Normal(o[:, 0], o[:, 1]), num_outputs=2)
        outputs = -torch.ones(3, 2)
        for call in (lambda: likelihood.loss(outputs, torch.ones(3)), lambda: likelihood.predictive([outputs])):
            with pytest.raises(ValueError, match="no parameters of the distribution: Expected parameter scale"):
                call()
        assert likelihood.loss(outputs * math.nan, torch.ones(3)).isnan()  # a training that has diverged

    @pytest.mark.parametrize("enabled", [True, False])  # torch.compile turns the checks off for good
    def test_the_checks_of_torch_are_afterwards_as_before(self, monkeypatch, enabled):
        monkeypatch.setattr(td.Distribution, "_validate_args", enabled)
        DistributionLikelihood(rate_of, 1).loss(torch.zeros(2, 1), torch.ones(2))
        assert td.Distribution._validate_args is enabled


class TestNames:
    def test_they_are_described_as_data(self):
        likelihood = DistributionLikelihood.fit("student_t", torch.tensor([[1.0, 2.0], [3.0, 9.0], [4.0, 5.0]]))
        again = instantiate(to_spec(likelihood), package="flatbayes.likelihoods", base_class=Likelihood)
        assert again == likelihood
        assert again.num_outputs == 6

    def test_functions_are_not(self):
        with pytest.raises(TypeError, match="The distribution of the DistributionLikelihood"):
            to_spec(DistributionLikelihood(lambda o: rate_of(o), num_outputs=1))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"distribution": "Poison"}, "Did you mean Poisson"),
            ({"distribution": "Poisson", "num_targets": 0}, "at least 1 target"),
            ({"distribution": "Poisson", "num_outputs": 2}, "Poisson has 1 output for 1 target"),
            ({"distribution": "Poisson", "scale": (1.0, 2.0)}, "scale must be 1 finite number"),
            ({"distribution": "Poisson", "scale": (-1.0,)}, "scale must be positive"),
            ({"distribution": "Laplace", "location": (math.inf,)}, "location must be 1 finite number"),
        ],
    )
    def test_wrong_arguments_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            DistributionLikelihood(**arguments)

    def test_there_is_no_prediction_without_networks(self):
        with pytest.raises(ValueError, match="at least 1 draw"):
            POISSON.predictive([])
