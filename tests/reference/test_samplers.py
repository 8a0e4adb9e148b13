"""MCLMC and HMC: identities of single steps, and draws of densities that are known exactly."""

import math
from dataclasses import replace

import pytest
import torch

from flatbayes.reference.chain import RunningVariance, descend, run_chain, tune_mclmc
from flatbayes.reference.config import ReferenceConfig
from flatbayes.reference.hmc import DualAveraging, HMCPoint, hmc_step, integrate_leapfrog
from flatbayes.reference.mclmc import StepSizeTuner, mclmc_step, refresh_velocity, start_chain, turn_velocity
from flatbayes.reference.potential import maximize_loss
from flatbayes.theory.quadratic import quadratic_posterior

VARIANCES = torch.logspace(-1, 1, 50, dtype=torch.float64)


def make_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(variances):
    return lambda x: (float((x**2 / variances).sum() / 2), x / variances)


def random_vector(dims, seed=0):
    return torch.randn(dims, generator=make_generator(seed), dtype=torch.float64)


def run_mclmc(potential, position, step_size, length, num_steps, seed=0):
    """Positions and energy errors of a chain."""
    generator = make_generator(seed)
    point, positions, errors = start_chain(position, potential, generator), [], []
    for _ in range(num_steps):
        point, error = mclmc_step(point, potential, step_size, length, generator)
        positions.append(point.position)
        errors.append(error)
    return torch.stack(positions), torch.tensor(errors, dtype=torch.float64)


def test_turns_in_a_constant_field_compose():
    velocity = random_vector(7)
    velocity /= velocity.norm()
    gradient = 5 * random_vector(7, 1)
    half, first = turn_velocity(velocity, gradient, 0.3)
    twice, second = turn_velocity(half, gradient, 0.3)
    once, total = turn_velocity(velocity, gradient, 0.6)
    assert torch.allclose(twice, once, rtol=0, atol=1e-14)
    assert total == pytest.approx(first + second, abs=1e-13)
    far, _ = turn_velocity(velocity, gradient, 1e9)
    assert torch.allclose(far, -gradient / gradient.norm(), rtol=0, atol=1e-14)
    assert turn_velocity(velocity, 0 * gradient, 0.3) == (velocity, 0.0)


def test_refreshed_velocity_has_length_one_and_the_correlation_of_the_formula():
    velocity = random_vector(4000)
    velocity /= velocity.norm()
    refreshed = refresh_velocity(velocity, random_vector(4000, 1), 0.4, 2.0)
    assert float(refreshed.norm()) == pytest.approx(1, abs=1e-14)
    assert float(refreshed @ velocity) == pytest.approx(math.exp(-0.1), abs=0.03)  # 1 / sqrt(1 + D nu^2)
    assert torch.allclose(refresh_velocity(velocity, velocity, 0.4, math.inf), velocity, rtol=0, atol=1e-15)


def test_a_step_without_noise_is_reversible():
    potential, position = gaussian(VARIANCES), random_vector(50)
    start = start_chain(position, potential, make_generator())
    end, error = mclmc_step(start, potential, 2.0, math.inf, make_generator())
    back, returned = mclmc_step(replace(end, velocity=-end.velocity), potential, 2.0, math.inf, make_generator())
    assert torch.allclose(back.position, position, rtol=0, atol=1e-12)
    assert error == pytest.approx(-returned, abs=1e-10)


@pytest.mark.parametrize(("step_size", "expected"), [(1.0, 9.6e-9), (2.0, 1.2e-6), (4.0, 4.7e-4)])
def test_energy_variance_of_a_gaussian(step_size, expected):
    length = math.sqrt(float(VARIANCES.sum()))
    position = random_vector(50) * VARIANCES.sqrt()
    _, errors = run_mclmc(gaussian(VARIANCES), position, step_size, length, 800)
    assert float(errors.var()) / 50 == pytest.approx(expected, rel=0.5)


def test_variances_of_a_gaussian():
    length, position = math.sqrt(float(VARIANCES.sum())), random_vector(50) * VARIANCES.sqrt()
    positions, _ = run_mclmc(gaussian(VARIANCES), position, 4.0, length, 3000)
    assert float((positions.square().mean(0) / VARIANCES - 1).abs().mean()) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [1.0, 2.0, 4.0])
def test_variances_of_a_gaussian_by_many_chains(step_size):
    length = math.sqrt(float(VARIANCES.sum()))
    chains = [
        run_mclmc(
            gaussian(VARIANCES), random_vector(50, 100 + seed) * VARIANCES.sqrt(), step_size, length, 6000, seed
        )[0]
        for seed in range(16)
    ]
    assert float((torch.cat(chains).square().mean(0) / VARIANCES - 1).abs().mean()) < 0.02


def test_step_size_for_errors_that_grow_as_its_third_power():
    tuner = StepSizeTuner(0.1, target=1e-4)
    for _ in range(400):  # dE = sqrt(D) 0.01 eps^3
        tuner = tuner.update(math.sqrt(20) * 0.01 * tuner.step_size**3, num_dims=20)
    assert tuner.step_size == pytest.approx(1.0, rel=1e-3)
    stopped = tuner.update(math.inf, num_dims=20)
    assert stopped.step_size == stopped.largest == pytest.approx(0.8, rel=1e-3)
    assert stopped.update(0.0, num_dims=20).step_size <= stopped.largest


def test_tuning_of_a_gaussian():
    config = ReferenceConfig(num_tuning_steps=1500, energy_variance=5e-4)
    generator = make_generator()
    start = start_chain(random_vector(50) * VARIANCES.sqrt(), gaussian(VARIANCES), generator)
    _, step_size, length = tune_mclmc(gaussian(VARIANCES), start, config, generator)
    assert step_size == pytest.approx(4.0, rel=0.15)  # the oracle has 4.7e-4 there
    assert length == pytest.approx(math.sqrt(float(VARIANCES.sum())), rel=0.2)


@pytest.mark.parametrize("sampler", ["mclmc", "hmc"])
def test_a_potential_that_is_never_finite_is_refused(sampler):
    config = ReferenceConfig(num_tuning_steps=20, num_descent_steps=0, sampler=sampler)
    with pytest.raises(RuntimeError, match="not finite"):
        run_chain(lambda x: (math.nan, x), random_vector(5), config, make_generator())


def test_running_variance():
    rows = random_vector(60).view(12, 5)
    variance = RunningVariance()
    for row in rows:
        variance.update(row)
    assert variance.sum_of_variances == pytest.approx(float(rows.var(0).sum()), rel=1e-12)


def test_cusp_densities():
    """Sharpness-aware posteriors of quadratic losses, one in each coordinate."""
    exact, dims = quadratic_posterior(4.0, 10.0, rho=0.2, prior_std=1.0), 20

    def potential(x):
        gradient = exact.precision * x + exact.slope * x.sign()
        return float((exact.precision * x**2 / 2 + exact.slope * x.abs()).sum()), gradient

    length = math.sqrt(dims * exact.mean_square)
    positions, _ = run_mclmc(potential, 0.1 * random_vector(dims), 0.05, length, 6000)
    assert float(positions.abs().mean()) == pytest.approx(exact.mean_abs, rel=0.03)
    assert float(positions.square().mean()) == pytest.approx(exact.mean_square, rel=0.06)


def test_sharpness_aware_posterior_of_an_isotropic_quadratic():
    """L = a ||w||^2 / 2 in 6 dimensions, where a step of SAM is exact: the density of the radius is known."""
    curvature, scale, rho, dims = 2.0, 5.0, 0.5, 6

    def potential(x):
        maximum = maximize_loss(lambda w: (float(curvature * w @ w / 2), curvature * w), x, rho, 1)
        return scale * maximum.loss + float(x @ x) / 2, scale * maximum.gradient + x

    positions, _ = run_mclmc(potential, 0.3 * random_vector(dims), 0.08, 0.7, 4000)
    radii = torch.linspace(0, 5, 20_001, dtype=torch.float64)
    weights = radii ** (dims - 1) * (-scale * curvature * (radii + rho) ** 2 / 2 - radii**2 / 2).exp()
    exact = float((radii * weights).sum() / weights.sum())
    assert float(positions.norm(dim=1).mean()) == pytest.approx(exact, rel=0.04)


def test_leapfrog_is_reversible_and_of_second_order():
    potential, position, momentum = gaussian(VARIANCES), random_vector(50), random_vector(50, 1)

    def energy_error(step_size, num_steps):
        start = HMCPoint(position, *potential(position))
        end, moved = integrate_leapfrog(start, momentum, potential, step_size, num_steps)
        back, _ = integrate_leapfrog(end, -moved, potential, step_size, num_steps)
        assert torch.allclose(back.position, position, rtol=0, atol=1e-12)
        return end.potential - start.potential + float(moved @ moved - momentum @ momentum) / 2

    assert energy_error(0.02, 20) / energy_error(0.01, 40) == pytest.approx(4, rel=0.02)


def test_metropolis_test_corrects_a_large_step():
    """Leapfrog with eps = 1.2 alone samples variances of 1 / (1 - eps^2 / 4) = 1.56."""
    potential, generator = gaussian(torch.ones(3, dtype=torch.float64)), make_generator()
    point, squares, acceptances = HMCPoint(*(lambda x: (x, *potential(x)))(random_vector(3))), [], []
    for index in range(4000):
        point, acceptance = hmc_step(point, potential, 1.2, 1 + index % 2, generator)
        squares.append(point.position.square().mean())
        acceptances.append(acceptance)
    assert float(torch.stack(squares).mean()) == pytest.approx(1.0, abs=0.05)
    assert 0.5 < sum(acceptances) / len(acceptances) < 0.95


def test_dual_averaging_reaches_its_target():
    state = DualAveraging.start(0.1, target=0.7)
    for _ in range(2000):
        state = state.update(math.exp(-state.step_size))
    assert math.exp(-state.final_step_size) == pytest.approx(0.7, abs=0.01)


def test_hmc_chain_of_a_gaussian():
    variances = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    config = ReferenceConfig(
        sampler="hmc",
        num_leapfrog_steps=4,
        num_steps=8000,
        num_tuning_steps=800,
        num_descent_steps=10,
        num_draws=2000,
    )
    chain = run_chain(gaussian(variances), random_vector(3), config, make_generator())
    assert torch.allclose(chain.positions.var(0) / variances, torch.ones(3, dtype=torch.float64), atol=0.12)
    assert chain.acceptance == pytest.approx(0.8, abs=0.15)
    assert len(chain.positions) == 2000


def test_descent_reaches_a_mode():
    end = descend(gaussian(torch.ones(4, dtype=torch.float64)), torch.full((4,), 0.5, dtype=torch.float64), 300)
    assert float(end.abs().max()) < 1e-2
