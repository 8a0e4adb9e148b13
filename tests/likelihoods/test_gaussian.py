import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from flatbayes.core.spec import instantiate, to_spec
from flatbayes.likelihoods import Gaussian, GaussianPredictive, mixture

CONCRETE = Gaussian(location=(35.0,), scale=(16.0,))


def outputs(seed, draws=5, examples=7, targets=1):
    return torch.randn(draws, examples, 2 * targets, generator=torch.Generator().manual_seed(seed)).double()


class TestLoss:
    @pytest.mark.parametrize("factor", [None, "auto", 1.5])
    @pytest.mark.parametrize("targets", [1, 3])
    def test_is_the_negative_log_density_in_the_targets_own_unit(self, targets, factor):
        location, scale = (10.0, -3.0, 0.0)[:targets], (4.0, 0.5, 100.0)[:targets]
        raw, y = outputs(0, targets=targets)[0], 20 * torch.randn(7, targets, dtype=torch.float64)
        mean = np.asarray(location) + np.asarray(scale) * raw[:, :targets].numpy()
        std = np.asarray(scale) * (0.01 + F.softplus(raw[:, targets:]).numpy())
        std *= 1.5 if factor == 1.5 else 1.0
        expected = -stats.norm(mean, std).logpdf(y.numpy()).sum(1).mean()
        loss = Gaussian(targets, location, scale, noise_factor=factor).loss(raw, y.squeeze(1) if targets == 1 else y)
        assert loss.item() == pytest.approx(expected, rel=1e-12)

    def test_the_unit_changes_it_by_a_constant(self):
        raw, y = outputs(1)[0].requires_grad_(), torch.randn(7, dtype=torch.float64)
        plain, scaled = Gaussian().loss(raw, y), CONCRETE.loss(raw, 35 + 16 * y)
        assert (scaled - plain).item() == pytest.approx(math.log(16), rel=1e-12)
        gradients = (torch.autograd.grad(loss, raw, retain_graph=True)[0] for loss in (plain, scaled))
        torch.testing.assert_close(*gradients)

    def test_it_is_that_of_the_predictive_of_one_network(self):
        raw, y = outputs(2)[0], 35 + 16 * torch.randn(7, dtype=torch.float64)
        expected = -CONCRETE.predictive([raw]).log_prob(y).mean()
        torch.testing.assert_close(CONCRETE.loss(raw, y), expected)

    def test_a_column_of_targets_is_one_target_each(self):
        raw, y = outputs(3)[0], torch.randn(7, dtype=torch.float64)
        assert torch.equal(Gaussian().loss(raw, y[:, None]), Gaussian().loss(raw, y))

    def test_it_is_finite_at_any_raw_scale(self):
        extreme = torch.tensor([[0.0, -1e4], [0.0, 0.0], [0.0, 1e4]], requires_grad=True)
        loss = Gaussian().loss(extreme, torch.tensor([1.0, 1.0, 1.0]))
        loss.backward()
        assert loss.isfinite()
        assert extreme.grad.isfinite().all()

    def test_full_precision(self):
        raw, y = outputs(4)[0], torch.randn(7)
        assert Gaussian().loss(raw.bfloat16(), y).dtype == torch.float32
        assert Gaussian().loss(raw.double(), y).dtype == torch.float64

    @pytest.mark.parametrize("shape", [(7, 1), (7, 3), (7,), (7, 2, 1)])
    def test_outputs_of_another_shape_are_refused(self, shape):
        with pytest.raises(
            ValueError, match=r"a mean and a raw scale to predict for 1 target: expected \(batch, 2\)"
        ):
            Gaussian().loss(torch.zeros(shape), torch.zeros(7))
        with pytest.raises(ValueError, match=r"for 4 targets: expected \(batch, 8\)"):
            Gaussian(4).predictive([torch.zeros(shape)])

    @pytest.mark.parametrize("shape", [(6,), (7, 2), (1, 7), ()])
    def test_targets_of_another_shape_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"Expected targets of the shape \(7,\), got"):
            Gaussian().loss(torch.zeros(7, 2), torch.zeros(shape))


class TestPredictive:
    def test_moments_are_those_of_the_mixture(self):
        predictive, given = CONCRETE.predictive(iter(outputs(0))), outputs(0)
        means, stds = 35 + 16 * given[..., 0], 16 * (0.01 + F.softplus(given[..., 1]))
        torch.testing.assert_close(predictive.mean, means.mean(0))
        torch.testing.assert_close(predictive.aleatoric, stds.square().mean(0))
        torch.testing.assert_close(predictive.epistemic, means.var(0, correction=0))
        second = (means.square() + stds.square()).mean(0)
        torch.testing.assert_close(predictive.variance, second - predictive.mean.square())
        torch.testing.assert_close(predictive.std.square(), predictive.variance)

    def test_one_target_has_no_axis(self):
        predictive = Gaussian().predictive(outputs(0))
        assert predictive.mean.shape == predictive.entropy.shape == predictive.interval()[0].shape == (7,)
        several = Gaussian(3).predictive(outputs(0, targets=3))
        assert several.mean.shape == several.cdf(torch.zeros(7, 3)).shape == (7, 3)
        assert several.entropy.shape == several.log_prob(torch.zeros(7, 3)).shape == (7,)

    def test_log_density_is_that_of_the_mixture_not_of_its_moments(self):
        predictive, y = Gaussian().predictive(outputs(1)), torch.linspace(-2, 2, 7, dtype=torch.float64)
        members = stats.norm(predictive.member_means.numpy(), predictive.member_stds.numpy())
        torch.testing.assert_close(predictive.log_prob(y), torch.from_numpy(np.log(members.pdf(y.numpy()).mean(0))))
        torch.testing.assert_close(predictive.cdf(y), torch.from_numpy(members.cdf(y.numpy()).mean(0)))
        matched = stats.norm(predictive.mean.numpy(), predictive.std.numpy()).logpdf(y.numpy())
        assert not np.allclose(predictive.log_prob(y).numpy(), matched, atol=1e-3)

    def test_the_density_of_several_targets_is_joint(self):
        """One network is right on both targets, the other on neither."""
        means = torch.tensor([[[0.0, 0.0]], [[9.0, 9.0]]], dtype=torch.float64)
        predictive = GaussianPredictive(means, torch.ones_like(means))
        right, mixed = predictive.log_prob(torch.zeros(1, 2)), predictive.log_prob(torch.tensor([[0.0, 9.0]]))
        assert right.item() == pytest.approx(-math.log(2) - math.log(2 * math.pi), rel=1e-12)
        assert mixed.item() < right.item() - 30

    @pytest.mark.parametrize("level", [0.1, 0.5, 0.95])
    def test_intervals_have_their_probability_on_both_sides(self, level):
        predictive = CONCRETE.predictive(outputs(2))
        low, high = predictive.interval(level)
        torch.testing.assert_close(predictive.cdf(low), torch.full((7,), (1 - level) / 2, dtype=torch.float64))
        torch.testing.assert_close(predictive.cdf(high), torch.full((7,), (1 + level) / 2, dtype=torch.float64))

    def test_equal_networks_have_no_mutual_information(self):
        predictive = Gaussian().predictive([outputs(3)[0]] * 4)
        assert predictive.mutual_information.max() < 1e-9
        assert predictive.epistemic.max() < 1e-30
        torch.testing.assert_close(
            predictive.entropy, mixture.normal_entropy(predictive.member_stds[0]), rtol=0, atol=1e-9
        )

    def test_networks_far_apart_have_the_largest_mutual_information(self):
        """Log 2 for each target."""
        means = torch.tensor([[[0.0, 5.0]], [[1e3, -1e3]]], dtype=torch.float64)
        predictive = GaussianPredictive(means, torch.ones_like(means))
        assert predictive.mutual_information.item() == pytest.approx(2 * math.log(2), abs=1e-3)

    def test_batches_concatenate(self):
        given = outputs(4)
        whole = Gaussian().predictive(given)
        joined = GaussianPredictive.concatenate([Gaussian().predictive(half) for half in given.split([3, 4], dim=1)])
        assert torch.equal(joined.member_means, whole.member_means)
        assert torch.equal(joined.member_stds, whole.member_stds)

    def test_columns(self):
        predictive = CONCRETE.predictive(outputs(5))
        columns = predictive.columns(["strength"])
        assert list(columns) == ["mean", "std", "lower", "upper", "aleatoric", "epistemic", "epistemic_std"]
        np.testing.assert_allclose(columns["std"] ** 2, columns["aleatoric"] + columns["epistemic"])
        np.testing.assert_array_equal(columns["lower"], predictive.interval(0.95)[0].numpy())
        assert (columns["lower"] < columns["mean"]).all()

    def test_columns_of_several_targets_have_their_names(self):
        columns = Gaussian(2).predictive(outputs(6, targets=2)).columns(["heat", "cold"])
        assert list(columns)[::7] == ["mean_heat", "mean_cold"]
        assert len(columns) == 14
        assert next(iter(Gaussian(2).predictive(outputs(6, targets=2)).columns())) == "mean_0"

    def test_targets_may_be_an_array(self):
        predictive, targets = CONCRETE.predictive(outputs(0)), torch.linspace(20, 50, 7)
        for compute in (predictive.cdf, predictive.log_prob):
            assert torch.equal(compute(targets.numpy()), compute(targets))

    def test_targets_of_another_shape_are_refused(self):
        predictive = Gaussian().predictive(outputs(0))
        for method in (predictive.cdf, predictive.log_prob):
            with pytest.raises(ValueError, match=r"have the shape \(7,\), and the targets \(7, 1\)"):
                method(torch.zeros(7, 1))

    def test_an_average_of_nothing_is_refused(self):
        with pytest.raises(ValueError, match="at least 1 draw"):
            Gaussian().predictive([])
        with pytest.raises(ValueError, match="level of an interval"):
            Gaussian().predictive(outputs(0)).interval(95)


class TestFields:
    def test_outputs(self):
        assert Gaussian().num_outputs == 2
        assert Gaussian(3).num_outputs == 6

    def test_serialisation_round_trips(self):
        likelihood = Gaussian(2, (1.5, -2.0), (3.0, 0.1), floor=0.02)
        again = instantiate(to_spec(likelihood), package="flatbayes.likelihoods")
        assert again == likelihood
        assert hash(again) == hash(likelihood)

    def test_fit_computes_mean_and_standard_deviation(self):
        y = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        assert Gaussian.fit(y) == Gaussian(2, (2.0, 20.0), (1.0, 10.0))
        assert Gaussian.fit(y[:, 1], floor=0.1) == Gaussian(1, (20.0,), (10.0,), 0.1)

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (torch.full((5,), 7.5), r"Target 0 is 7\.5 in all 5 training examples"),
            (torch.tensor([[1.0, 2.0], [3.0, 2.0]]), "Target 1 is 2 in all 2"),
            (torch.tensor([5.0]), "Target 0 is 5 in all 1"),
            (torch.tensor([1.0, math.nan, math.inf]), "2 training targets are missing or not finite"),
            (torch.zeros(0), r"at least one, got \(0,\)"),
            (torch.zeros(3, 1, 1), r"at least one, got \(3, 1, 1\)"),
        ],
    )
    def test_targets_that_cannot_be_standardised_are_refused(self, y, message):
        with pytest.raises(ValueError, match=message):
            Gaussian.fit(y)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_targets": 0}, "at least 1 target, got num_targets=0"),
            ({"location": (1.0, 2.0)}, r"location must be 1 finite number, one for each target, got \(1\.0, 2\.0\)"),
            ({"scale": (math.inf,)}, "scale must be 1 finite"),
            ({"scale": (0.0,)}, r"scale must be positive, got \(0\.0,\)"),
            ({"floor": 0.0}, r"floor must be positive and finite, got 0\.0"),
            ({"noise_factor": -1.0}, r"noise_factor must be positive and finite, or 'auto' or None; got -1\.0"),
        ],
    )
    def test_invalid_fields_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Gaussian(**arguments)
