import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from flatbayes.metrics import (
    REGRESSION_METRICS,
    coverage_curve,
    crps,
    interval_width,
    metrics_per_target,
    miscalibration,
    regression_metrics,
    rmse,
)
from flatbayes.metrics.regression import folded_normal_mean


def example(seed, draws=4, examples=6):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(draws, examples, generator=generator, dtype=torch.float64)
    stds = torch.rand(draws, examples, generator=generator, dtype=torch.float64) + 0.2
    return means, stds, 2 * torch.randn(examples, generator=generator, dtype=torch.float64)


def compute_metrics(means, stds, targets):
    """Compute the metrics with densities of SciPy."""
    members = stats.norm(means.numpy(), stds.numpy())
    half = 1.96 * stds.mean(0)
    return regression_metrics(
        targets,
        means=means,
        stds=stds,
        log_density=torch.from_numpy(np.log(members.pdf(targets.numpy()).mean(0))),
        pit=torch.from_numpy(members.cdf(targets.numpy()).mean(0)),
        interval=(means.mean(0) - half, means.mean(0) + half),
    )


class TestRmse:
    def test_by_hand(self):
        assert rmse(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 6.0])) == pytest.approx(math.sqrt(12.5))
        assert rmse(torch.tensor([3.0]), torch.tensor([3.0])) == 0

    def test_huge_and_tiny_errors(self):
        for size in (1e200, 1e-200):
            errors = torch.tensor([3 * size, 4 * size], dtype=torch.float64)
            assert rmse(errors, torch.zeros(2, dtype=torch.float64)) == pytest.approx(size * math.sqrt(12.5))

    def test_float32_is_summed_in_float64(self):
        expected = float(torch.tensor(0.1).double())
        assert rmse(torch.full((100_000,), 0.1), torch.zeros(100_000)) == pytest.approx(expected, rel=1e-12)

    def test_shapes_that_would_broadcast_are_refused(self):
        with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(3, 1\): other shapes would be broadcast"):
            rmse(torch.zeros(3), torch.zeros(3, 1))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_invalid_targets_are_refused(self, bad):
        with pytest.raises(ValueError, match="1 of the targets is missing or not finite"):
            rmse(torch.zeros(2), torch.tensor([1.0, bad]))
        with pytest.raises(ValueError, match="1 of the predicted means is missing or not finite.*diverged"):
            rmse(torch.tensor([1.0, bad]), torch.zeros(2))
        with pytest.raises(ValueError, match=r"at least one, got torch.float32 of shape \(0,\)"):
            rmse(torch.zeros(0), torch.zeros(0))
        with pytest.raises(ValueError, match="targets as floating-point numbers"):
            rmse(torch.zeros(2), torch.zeros(2, dtype=torch.int64))


class TestCrps:
    def test_of_a_normal_distribution(self):  # oracle O28
        def one(value):
            return torch.tensor([value], dtype=torch.float64)

        assert crps(one(0.3)[None], one(0.7)[None], one(1.1)) == pytest.approx(0.49327034572, abs=1e-10)

    def test_of_one_member_is_the_closed_form(self):
        means, stds, y = example(0, draws=1)
        z = ((y - means[0]) / stds[0]).numpy()
        closed = stds[0].numpy() * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
        assert crps(means, stds, y) == pytest.approx(closed.mean(), rel=1e-12)

    @pytest.mark.parametrize("seed", range(3))
    def test_is_the_integral_of_squared_differences_of_distribution_functions(self, seed):
        means, stds, y = example(seed, examples=1)
        members = stats.norm(means[:, 0].numpy(), stds[:, 0].numpy())
        target = y.item()

        def squared(x):
            return (members.cdf(x).mean() - (x >= target)) ** 2

        expected = (
            integrate.quad(squared, -15, target, limit=200)[0] + integrate.quad(squared, target, 15, limit=200)[0]
        )
        assert crps(means, stds, y) == pytest.approx(expected, abs=1e-7)

    def test_zero_standard_deviation_gives_the_absolute_error(self):
        means = torch.full((3, 2), 5.0)
        assert crps(means, torch.zeros(3, 2), torch.tensor([2.0, 6.0])) == pytest.approx(2.0)

    def test_ensemble_of_point_predictions(self):
        """E|X - y| - E|X - X'| / 2 of the points themselves."""
        points, y = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([2.0])
        spread = np.abs(points.numpy() - points.numpy().T).mean()
        assert crps(points, torch.zeros(3, 1), y) == pytest.approx((2 + 1 + 3) / 3 - spread / 2)

    def test_scales_with_the_unit(self):
        means, stds, y = example(1)
        for unit in (1e100, 1e-100):
            assert crps(unit * means, unit * stds, unit * y) == pytest.approx(unit * crps(means, stds, y), rel=1e-12)

    def test_folded_normal_by_integration(self):
        for mean, std in ((0.7, 0.3), (-2.0, 1.5), (0.0, 1.0)):
            expected = stats.norm(mean, std).expect(np.abs)
            mean = folded_normal_mean(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))
            assert mean.item() == pytest.approx(expected, abs=1e-8)

    def test_invalid_inputs_are_refused(self):
        means, stds, y = example(0)
        with pytest.raises(ValueError, match=r"must not be negative, got -"):
            crps(means, -stds, y)
        with pytest.raises(ValueError, match="one shape"):
            crps(means, stds[:1], y)
        with pytest.raises(ValueError, match="1 of the targets is missing"):
            crps(means, stds, torch.where(y == y[2], math.nan, y))


class TestCoverage:
    def test_by_hand(self):
        pit = torch.tensor([0.5, 0.1, 0.9, 0.999], dtype=torch.float64)
        curve = coverage_curve(pit, (0.5, 0.9))
        assert curve.coverage == (0.25, 0.75)
        assert curve.to_dict() == {"levels": [0.5, 0.9], "coverage": [0.25, 0.75], "count": 4}

    def test_is_the_fraction_inside_intervals(self):
        generator = torch.Generator().manual_seed(0)
        y = 1.3 * torch.randn(1000, generator=generator, dtype=torch.float64)
        curve = coverage_curve(torch.from_numpy(stats.norm.cdf(y.numpy())))
        for level, coverage in zip(curve.levels, curve.coverage, strict=True):
            low, high = stats.norm.interval(level)
            assert coverage == ((y >= low) & (y <= high)).double().mean().item()

    def test_calibrated_predictions_have_only_sampling_error(self):
        grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        assert miscalibration(grid) < 1e-3
        assert miscalibration(torch.rand(1000, generator=torch.Generator().manual_seed(0))) < 0.03

    def test_confident_wrong_predictions(self):
        assert miscalibration(torch.tensor([0.0, 1.0])) == pytest.approx(0.5)
        assert miscalibration(torch.full((3,), 0.5)) == pytest.approx(0.5)  # far too unsure

    @pytest.mark.parametrize("bad", [-0.1, 1.1])
    def test_invalid_inputs_are_refused(self, bad):
        with pytest.raises(ValueError, match="lie between 0 and 1"):
            coverage_curve(torch.tensor([0.5, bad]))
        with pytest.raises(ValueError, match="missing or not finite"):
            miscalibration(torch.tensor([math.nan]))
        with pytest.raises(ValueError, match="Levels lie strictly between 0 and 1"):
            coverage_curve(torch.tensor([0.5]), (0.95, 1.0))


def test_width():
    assert interval_width(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0])) == 2
    with pytest.raises(ValueError, match="one shape"):
        interval_width(torch.zeros(2), torch.zeros(1))


class TestAll:
    def test_equals_each_metric_on_its_own(self):
        means, stds, y = example(0)
        values = compute_metrics(means, stds, y)
        members = stats.norm(means.numpy(), stds.numpy())
        pit = torch.from_numpy(members.cdf(y.numpy()).mean(0))
        assert values == {
            "nll": pytest.approx(-np.log(members.pdf(y.numpy()).mean(0)).mean(), rel=1e-12),
            "rmse": rmse(means.mean(0), y),
            "crps": crps(means, stds, y),
            "miscalibration": miscalibration(pit),
            "coverage_95": coverage_curve(pit, (0.95,)).coverage[0],
            "width_95": pytest.approx(2 * 1.96 * stds.mean().item()),
        }
        assert {type(value) for value in values.values()} == {float}

    def test_one_example_is_enough(self):
        assert all(map(math.isfinite, compute_metrics(*example(0, examples=1)).values()))

    def test_constant_targets_are_accepted(self):
        means, stds, y = example(0)
        assert compute_metrics(means, stds, torch.full_like(y, 3.0))["rmse"] == rmse(
            means.mean(0), torch.full_like(y, 3.0)
        )

    def test_every_metric_has_a_definition_and_lower_is_better(self):
        names = list(compute_metrics(*example(0)))
        assert names == list(REGRESSION_METRICS)
        directions = {name: REGRESSION_METRICS[name].higher_is_better for name in names}
        assert directions == dict.fromkeys(names, False) | {"coverage_95": None, "width_95": None}

    def test_directions_are_true(self):
        """The true mean and noise are better than a wrong mean and noise."""
        y = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        good = compute_metrics(torch.zeros(1, 2000, dtype=torch.float64), torch.ones(1, 2000, dtype=torch.float64), y)
        bad = compute_metrics(
            torch.ones(1, 2000, dtype=torch.float64), torch.full((1, 2000), 0.3, dtype=torch.float64), y
        )
        assert all(good[name] < bad[name] for name in ("nll", "rmse", "crps", "miscalibration"))

    def test_log_densities_of_nan_are_refused(self):
        means, stds, y = example(0)
        ready = {"means": means, "stds": stds, "pit": torch.rand(6), "interval": (y, y)}
        with pytest.raises(ValueError, match="1 log density is NaN"):
            regression_metrics(y, log_density=torch.tensor([math.nan]), **ready)


def test_several_targets_are_averaged_each_in_its_own_unit():
    means = torch.zeros(1, 4, 2, dtype=torch.float64)
    y = torch.tensor([[1.0, 100.0], [-1.0, 100.0], [1.0, -100.0], [-1.0, -100.0]], dtype=torch.float64)
    assert rmse(means[0], y) == pytest.approx(50.5)
    assert rmse(means[0], y / 1e300) == pytest.approx(50.5e-300)
    assert crps(means, torch.zeros_like(means), y) == pytest.approx(50.5)
    assert interval_width(-y.abs(), y.abs()) == pytest.approx(101)


def test_opposite_errors_of_targets_do_not_cancel():
    even = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    narrow, wide = 0.5 + (even - 0.5).sign() * (even - 0.5).abs().sqrt() / 2**0.5, 0.5 + (even - 0.5) ** 3 * 4
    pit = torch.stack([narrow, wide], 1).clamp(0, 1)
    apart = [miscalibration(pit[:, k]) for k in range(2)]
    assert min(apart) > 0.1
    assert miscalibration(pit) == pytest.approx(sum(apart) / 2)
    curve = coverage_curve(pit)
    for k in range(2):
        assert curve.target_coverage[k] == pytest.approx(coverage_curve(pit[:, k]).coverage)
    assert coverage_curve(pit[:, :1]) == coverage_curve(pit[:, 0])


@pytest.mark.parametrize("num_targets", [2, 3])
def test_metrics_are_the_means_of_those_of_each_target(num_targets):
    random = torch.Generator().manual_seed(num_targets)
    scale = 10.0 ** torch.arange(num_targets, dtype=torch.float64)
    y, means, stds = (
        scale * torch.rand(*shape, generator=random, dtype=torch.float64)
        for shape in ((20, num_targets), (3, 20, num_targets), (3, 20, num_targets))
    )
    pit = torch.rand(20, num_targets, generator=random, dtype=torch.float64)
    arguments = {"means": means, "stds": stds, "pit": pit, "interval": (y - scale, y + scale * pit)}
    pooled = regression_metrics(y, log_density=y[:, 0], **arguments)
    apart = metrics_per_target(y, **arguments)
    assert {*apart} == {*pooled} - {"nll"}
    for name, values in apart.items():
        assert len(values) == num_targets
        assert pooled[name] == pytest.approx(sum(values) / num_targets), name
