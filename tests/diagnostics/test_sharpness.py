"""Gaps in a ball, against quadratics with a known maximum."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flatbayes.diagnostics import (
    LossSurface,
    SharpnessConfig,
    adaptive_gap,
    average_gap,
    measure_sharpness,
    one_step_gap,
    worst_gap,
)
from flatbayes.diagnostics.sharpness import run_ascent, sample_sphere
from flatbayes.flatness.sam import euclidean_perturbation
from flatbayes.theory import quadratic_worst_loss
from flatbayes.theory.quadratic import worst_perturbation
from support import batch, network


class Weights(nn.Module):
    """A module that returns its weights, two tensors, for any input."""

    def __init__(self, values):
        super().__init__()
        values = torch.as_tensor(values, dtype=torch.float64)
        self.head, self.tail = nn.Parameter(values[:1].clone()), nn.Parameter(values[1:].clone())

    def forward(self, x):
        return torch.cat([self.head, self.tail])


def quadratic(values, hessian):
    """L(w) = wᵀ A w / 2, in two batches of unequal size."""
    hessian = torch.as_tensor(hessian, dtype=torch.float64)
    return LossSurface(
        Weights(values), lambda w, _: w @ hessian @ w / 2, [(torch.zeros(n, 1), torch.zeros(n)) for n in (3, 1)]
    )


def random_hessian(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return root @ root.T


@pytest.mark.parametrize("rho", [0.0, 1e-4, 0.05, 2.0])
def test_isotropic_quadratic(rho):
    a, w = 3.0, torch.tensor([0.3, -0.4, 1.2, 0.0], dtype=torch.float64)
    surface = quadratic(w, a * torch.eye(4))
    expected = a * rho * float(w.norm()) + a * rho**2 / 2
    assert one_step_gap(surface, rho) == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert worst_gap(surface, rho) == pytest.approx(expected, rel=1e-10, abs=1e-15)
    average, error = average_gap(surface, rho)
    assert average == pytest.approx(a * rho**2 / 2, rel=1e-6, abs=1e-15)
    assert error == pytest.approx(0, abs=1e-15)


def test_ascents_reach_the_trust_region_optimum():
    w, rho = torch.tensor([0.3, -0.7], dtype=torch.float64), 0.4
    hessian = torch.tensor([[5.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
    surface = quadratic(w, hessian)
    assert surface.loss() == pytest.approx(0.1375)
    assert one_step_gap(surface, rho) == pytest.approx(0.8467625231333479 - 0.1375, abs=1e-12)
    exact = quadratic_worst_loss(w, hessian, rho) - surface.loss()
    assert exact == pytest.approx(0.8667240270908724 - 0.1375, abs=1e-12)
    result = worst_gap(surface, rho, ascent_steps=5, num_random_starts=0)
    assert exact - 1e-10 < result <= exact + 1e-15


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3, 4))])
def test_worst_gap_is_a_lower_bound_that_increases_with_effort(seed):
    hessian = random_hessian(8, seed)
    w = torch.randn(8, generator=torch.Generator().manual_seed(seed)).double() / 10
    surface = quadratic(w, hessian)
    exact = quadratic_worst_loss(w, hessian, 0.3) - surface.loss()
    result = [worst_gap(surface, 0.3, steps, num_random_starts=1) for steps in (1, 2, 4, 8, 200)]
    assert result == sorted(result)
    assert result[-1] == pytest.approx(exact, rel=1e-10)
    assert all(gap <= exact * (1 + 1e-12) for gap in result)
    assert result[0] >= one_step_gap(surface, 0.3) * (1 - 1e-12)


def test_random_starts_escape_a_stationary_point():
    hessian = torch.diag(torch.tensor([1.0, 5.0, 2.0]).double())
    surface = quadratic(torch.zeros(3), hessian)
    assert one_step_gap(surface, 0.2) == 0
    assert worst_gap(surface, 0.2, num_random_starts=0) == 0
    assert run_ascent(surface, lambda grads: euclidean_perturbation(grads, 0.2), None, 5) == [0.0]  # it stops
    assert worst_gap(surface, 0.2, 60, num_random_starts=1) == pytest.approx(5 * 0.2**2 / 2, rel=1e-10)


def test_gaps_at_a_maximum_are_zero():
    surface = quadratic([0.01, 0.0], -torch.eye(2))
    assert one_step_gap(surface, 0.5) < 0
    assert worst_gap(surface, 0.5) == 0
    sharpness = measure_sharpness(surface, SharpnessConfig(rho=0.5))
    assert sharpness.one_step < 0 == sharpness.worst


def test_average_gap_is_the_trace():
    hessian = random_hessian(6)
    surface = quadratic(torch.ones(6), hessian)
    rho = 0.7
    result, error = average_gap(surface, rho, num_directions=1500)
    exact = rho**2 / (2 * 6) * float(hessian.trace())
    assert abs(result - exact) < 4 * error
    assert error < 0.02 * exact
    # of one direction, (e A e) / 2 has variance rho⁴ / 4 * 2 (P tr A² - (tr A)²) / (P² (P + 2))
    variance = rho**4 / 4 * 2 * (6 * hessian.square().sum() - hessian.trace() ** 2) / (36 * 8)
    assert error == pytest.approx(math.sqrt(variance / 1500), rel=0.05)


def test_average_gap_cancels_the_gradient():
    surface = quadratic(1e3 * torch.ones(6), torch.eye(6))
    result, error = average_gap(surface, 0.1, num_directions=3)
    assert result == pytest.approx(0.005, rel=1e-4)
    assert error < 1e-6


def test_adaptive_gap_of_a_quadratic():
    hessian = random_hessian(5, 3)
    w = torch.tensor([0.5, -2.0, 0.1, 1.0, 0.0]).double()
    surface, scale = quadratic(w, hessian), torch.diag(w.abs())
    slope, bend = scale @ hessian @ w, scale @ hessian @ scale
    u = worst_perturbation(slope, bend, 0.6)
    exact = float(slope @ u + u @ bend @ u / 2)
    assert adaptive_gap(surface, 0.6, 200) == pytest.approx(exact, rel=1e-10)
    assert adaptive_gap(surface, 0.0) == 0


def test_adaptive_gap_is_invariant_under_rescaling_of_layers():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    data = [(torch.randn(20, 4).double(), torch.randint(0, 3, (20,)))]
    before = LossSurface(model, F.cross_entropy, data)
    result = adaptive_gap(before, 0.3), worst_gap(before, 0.3)
    with torch.no_grad():
        for param, factor in zip(model.parameters(), (8, 8, 1 / 8, 1), strict=True):
            param.mul_(factor)
    after = LossSurface(model, F.cross_entropy, data)
    assert adaptive_gap(after, 0.3) == pytest.approx(result[0], rel=1e-9)
    assert abs(worst_gap(after, 0.3) / result[1] - 1) > 0.1


def test_ascents_of_a_convex_loss_are_monotone():
    surface = quadratic(torch.ones(8) / 10, random_hessian(8))
    losses = run_ascent(surface, lambda g: euclidean_perturbation(g, 0.3), None, 12)
    assert losses == sorted(losses)
    assert len(losses) == 13


def test_sphere_samples_are_equal_for_equal_shapes():
    surface, other = quadratic(torch.zeros(4), torch.eye(4)), quadratic(torch.ones(4), torch.eye(4))
    one, two = sample_sphere(surface, 0.3, 7, 1), sample_sphere(other, 0.3, 7, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert torch.cat(one).norm() == pytest.approx(0.3, rel=1e-12)
    assert not torch.equal(one[1], sample_sphere(surface, 0.3, 7, 2)[1])
    assert not torch.equal(one[1], sample_sphere(surface, 0.3, 8, 1)[1])


def test_measure_sharpness_collects_all_measures():
    surface = LossSurface(network(torch.float64), F.cross_entropy, [batch(dtype=torch.float64)])
    probe = SharpnessConfig(rho=0.1, adaptive_rho=0.2, ascent_steps=3, num_random_starts=1, num_directions=4, seed=3)
    sharpness = measure_sharpness(surface, probe)
    loss, grads = surface.gradient()
    assert sharpness.loss == loss
    assert sharpness.gradient_norm == pytest.approx(float(torch.cat([g.flatten() for g in grads]).norm()), rel=1e-12)
    assert sharpness.one_step == one_step_gap(surface, 0.1)
    assert sharpness.worst == worst_gap(surface, 0.1, 3, 1, 3) >= sharpness.one_step > 0
    assert (sharpness.average, sharpness.average_error) == average_gap(surface, 0.1, 4, 3)
    assert sharpness.adaptive == adaptive_gap(surface, 0.2, 3, 1, 3) > 0
    assert sharpness == measure_sharpness(surface, probe)
    assert sharpness.one_step == pytest.approx(0.1 * sharpness.gradient_norm, rel=0.5)  # the first order of it


def test_infinite_loss_gives_infinite_gap():
    model = Weights([1.0, 1.0])
    surface = LossSurface(model, lambda w, _: torch.log(1.05 - w).sum().neg(), [(torch.zeros(1), torch.zeros(1))])
    assert worst_gap(surface, 0.5) == math.inf
    with torch.no_grad():
        model.head.fill_(2.0)
    with pytest.raises(ValueError, match="loss is nan at the weights"):
        measure_sharpness(surface)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": -1.0}, "rho is the radius of a ball"),
        ({"adaptive_rho": math.inf}, "rho is the radius of a ball"),
        ({"ascent_steps": 0}, "ascent_steps must be at least 1, got 0"),
        ({"num_random_starts": -1}, "num_random_starts must be at least 0"),
        ({"num_directions": 1}, "num_directions must be at least 2"),
        ({"num_eigenvalues": 0}, "num_eigenvalues must be at least 1"),
        ({"num_trace_probes": 1}, "num_trace_probes must be at least 2"),
    ],
)
def test_invalid_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SharpnessConfig(**arguments)


@pytest.mark.parametrize("gap", [one_step_gap, worst_gap, adaptive_gap, average_gap])
def test_negative_radius_is_refused(gap):
    with pytest.raises(ValueError, match="rho is the radius of a ball"):
        gap(quadratic([1.0, 2.0], torch.eye(2)), -0.1)
