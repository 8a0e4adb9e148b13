import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm

from flatbayes.theory import (
    best_gaussian,
    isotropic_worst_loss,
    quadratic_posterior,
    quadratic_worst_loss,
    soft_worst_loss,
    well_odds,
    worst_expected_loss,
    worst_expected_loss_gradient,
    worst_loss_expectation,
    worst_loss_expectation_gradient,
    worst_perturbation,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_problem(seed, size):
    """A symmetric, usually indefinite matrix and a vector."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return (root + root.T) / 2, torch.randn(size, generator=generator, dtype=torch.float64)


def rise(gradient, hessian, offset):
    return float(gradient @ offset + offset @ hessian @ offset / 2)


def check_global(gradient, hessian, rho, offset):
    """Necessary and sufficient: (ν I - A) e = g, ν I - A positive semi-definite, ν >= 0, and ν = 0 or ||e|| = ρ."""
    length = float(offset.norm())
    assert length <= rho * (1 + 1e-14)
    pull = gradient + hessian @ offset
    nu = float(pull @ offset) / length**2 if length else 0.0
    scale = float(hessian.norm() + gradient.norm() / rho)
    assert float((pull - nu * offset).norm()) <= 1e-12 * scale * rho
    assert nu >= max(0.0, float(torch.linalg.eigvalsh(hessian)[-1])) - 1e-12 * scale
    assert length >= rho * (1 - 1e-12) or abs(nu) <= 1e-12 * scale


# ---- the worst point in a ball

TILTED = torch.tensor([[5.0, 1.0], [1.0, 0.5]], dtype=torch.float64)
WEIGHTS = tensor(0.3, -0.7)


def test_trust_region_reference():
    exact = quadratic_worst_loss(WEIGHTS, TILTED, 0.4)
    assert exact == pytest.approx(0.8667240270908724, abs=1e-10)
    angles = torch.linspace(0, 2 * math.pi, 2_000_001, dtype=torch.float64)
    ring = WEIGHTS + 0.4 * torch.stack([angles.cos(), angles.sin()], 1)
    around = ((ring @ TILTED) * ring).sum(1) / 2
    assert exact == pytest.approx(float(around.max()), abs=1e-12)
    assert quadratic_worst_loss(WEIGHTS, TILTED, 0.0) == pytest.approx(0.1375, abs=1e-15)


def test_first_order_ascents_against_the_exact_maximum():
    exact = quadratic_worst_loss(WEIGHTS, TILTED, 0.4)

    def loss_at(offset):
        return float((WEIGHTS + offset) @ TILTED @ (WEIGHTS + offset)) / 2

    def direction(offset):
        gradient = TILTED @ (WEIGHTS + offset)
        return gradient / gradient.norm()

    offset, losses = torch.zeros(2, dtype=torch.float64), []
    for _ in range(5):
        offset = 0.4 * direction(offset)
        losses.append(loss_at(offset))
    assert losses[0] == pytest.approx(0.8467625231333479, abs=1e-10)
    assert losses == sorted(losses)
    assert 0 <= exact - losses[-1] < 1e-12
    for steps, gap in ((5, 0.00216), (20, 0.00104), (200, 0.00081)):
        offset = torch.zeros(2, dtype=torch.float64)
        for _ in range(steps):
            offset = offset + 1.5 * 0.4 / steps * direction(offset)
            offset = offset * min(1.0, 0.4 / float(offset.norm()))
        assert exact - loss_at(offset) == pytest.approx(gap, abs=5e-6)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(1e-3, 1e3))
def test_worst_offset_is_globally_optimal(seed, size, rho):
    hessian, gradient = random_problem(seed, size)
    for shift in (0.0, 4.0, -4.0):
        shifted = hessian + shift * torch.eye(size, dtype=torch.float64)
        check_global(gradient, shifted, rho, worst_perturbation(gradient, shifted, rho))


def test_losses_next_to_nothing_are_no_trouble():
    """The smallest numbers there are, where quotients overflow."""
    tiny = 5e-324 * torch.eye(2, dtype=torch.float64)
    assert float(worst_perturbation(tensor(5e-324, 0.0), tiny, 1.0).norm()) == pytest.approx(1.0)
    assert quadratic_worst_loss(tensor(0.3, 0.1), 1e-311 * torch.eye(2), 1.0) < 1e-310


@pytest.mark.parametrize("seed", range(5))
def test_no_point_of_the_ball_is_worse(seed):
    hessian, gradient = random_problem(seed, 3)
    best = rise(gradient, hessian, worst_perturbation(gradient, hessian, 0.7))
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    points *= 0.7 / points.norm(dim=1, keepdim=True)
    points[::2] *= torch.rand(100_000, 1, generator=generator, dtype=torch.float64)
    rises = points @ gradient + ((points @ hessian) * points).sum(1) / 2
    assert best - 0.01 < float(rises.max()) <= best


@pytest.mark.parametrize("component", [0.0, 1e-300, 1e-25, 1e-17, 1e-12, 1e-6, 1e-3])
@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("top", [2.0, 0.0, -2.0])
def test_hard_case_and_its_neighbourhood(component, rho, top):
    """The gradient has (next to) no component along the top eigenvector, alone or one of two."""
    for values in (tensor(top - 3, top - 1, top), tensor(top - 3, top, top)):
        gradient = tensor(0.5, 0.4 if values[1] < top else 0.0, component)
        offset = worst_perturbation(gradient, torch.diag(values), rho)
        check_global(gradient, torch.diag(values), rho, offset)
        turn = torch.linalg.qr(random_problem(1, 3)[0])[0]
        turned = turn @ torch.diag(values) @ turn.T
        turned = (turned + turned.T) / 2
        check_global(turn @ gradient, turned, rho, worst_perturbation(turn @ gradient, turned, rho))


def test_hard_case_by_hand():
    """A = diag(3, 1), g = (0, 1), ρ = 2: ν = 3, e = (±√(4 - 1/4), 1/2), rise 3/2 · 15/4 + 1/2 + 1/8."""
    offset = worst_perturbation(tensor(0.0, 1.0), torch.diag(tensor(3.0, 1.0)), 2.0)
    assert offset.abs().tolist() == pytest.approx([math.sqrt(3.75), 0.5], abs=1e-14)
    assert rise(tensor(0.0, 1.0), torch.diag(tensor(3.0, 1.0)), offset) == pytest.approx(6.25, abs=1e-14)


def test_a_maximum_inside_the_ball_is_the_worst_point():
    hessian, gradient = torch.diag(tensor(-4.0, -1.0)), tensor(2.0, -0.5)
    assert worst_perturbation(gradient, hessian, 3.0).tolist() == pytest.approx([0.5, -0.5])
    assert float(worst_perturbation(gradient, hessian, 0.1).norm()) == pytest.approx(0.1)


@pytest.mark.parametrize("size", [1, 4])
def test_limits_of_the_worst_offset(size):
    hessian, gradient = random_problem(0, size)
    zero = torch.zeros_like(hessian)
    assert torch.equal(worst_perturbation(gradient, hessian, 0.0), torch.zeros(size, dtype=torch.float64))
    torch.testing.assert_close(worst_perturbation(gradient, zero, 0.3), 0.3 * gradient / gradient.norm())
    offset = worst_perturbation(gradient, hessian, 1e-9)
    torch.testing.assert_close(offset, 1e-9 * gradient / gradient.norm(), rtol=1e-7, atol=0)
    assert worst_perturbation(gradient * 0, zero, 0.3).tolist() == [0] * size
    assert float(worst_perturbation(gradient * 0, hessian @ hessian.T, 0.3).norm()) == pytest.approx(0.3)
    for factor in (1e-200, 1e200):  # neither the loss's unit nor that of the weights matters
        scaled = worst_perturbation(gradient * factor, hessian * factor, 0.4)
        torch.testing.assert_close(scaled, worst_perturbation(gradient, hessian, 0.4))
        scaled = worst_perturbation(gradient, hessian / factor, 0.4 * factor)
        torch.testing.assert_close(scaled / factor, worst_perturbation(gradient, hessian, 0.4))


def test_at_a_minimum_the_gap_is_the_top_curvature():
    """P6, exact for a quadratic."""
    hessian = random_problem(3, 4)[0]
    hessian = hessian @ hessian
    gap = quadratic_worst_loss(torch.zeros(4), hessian, 0.3)
    assert gap == pytest.approx(0.3**2 / 2 * float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-13)


def test_envelope_theorem():
    """P4: the gradient of L^ρ is that of L at the worst point, its slope in ρ the norm of it."""
    hessian, weights = random_problem(7, 4)
    hessian = hessian @ hessian
    worst = weights + worst_perturbation(hessian @ weights, hessian, 0.5)
    h = 1e-5
    for k in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[k] = h
        up, down = (quadratic_worst_loss(weights + s * step, hessian, 0.5) for s in (1, -1))
        assert (up - down) / (2 * h) == pytest.approx(float((hessian @ worst)[k]), abs=1e-7)
    slope = (
        (quadratic_worst_loss(weights, hessian, 0.5 + h) - quadratic_worst_loss(weights, hessian, 0.5 - h)) / 2 / h
    )
    assert slope == pytest.approx(float((hessian @ worst).norm()), abs=1e-7)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.just(0.0) | st.floats(1e-100, 3), st.floats(0, 3))
def test_general_and_isotropic_forms_agree(seed, curvature, rho):
    weights = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = isotropic_worst_loss(weights, curvature, rho)
    assert float(found) == pytest.approx(curvature * (math.hypot(*weights.tolist()) + rho) ** 2 / 2, rel=1e-14)
    general = quadratic_worst_loss(weights, curvature * torch.eye(3, dtype=torch.float64), rho)
    assert float(found) == pytest.approx(general, rel=1e-12, abs=0)


def test_isotropic_form_takes_a_batch():
    batch = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    found = isotropic_worst_loss(batch, 2.0, 0.1)
    assert found.shape == (4, 5)
    assert found.dtype == torch.float64
    assert float(found[1, 2]) == pytest.approx(float(isotropic_worst_loss(batch[1, 2], 2.0, 0.1)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 2), st.floats(0, 2))
def test_worst_losses_of_a_quadratic_are_a_semigroup(seed, a, b):
    """max over ||e|| <= b of L^a = L^{a+b}: where the worst point lies, L^a reaches it, and nowhere more."""
    hessian, weights = random_problem(seed, 3)
    both = worst_perturbation(hessian @ weights, hessian, a + b)
    there = quadratic_worst_loss(weights + both * b / max(a + b, 1e-12), hessian, a)
    limit = quadratic_worst_loss(weights, hessian, a + b)
    assert there == pytest.approx(limit, abs=1e-10)
    step = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert quadratic_worst_loss(weights + b * step / step.norm(), hessian, a) <= limit + 1e-12 * (1 + abs(limit))


def test_penalised_maximum():
    value, offset = soft_worst_loss(0.5, 2.0, 0.1)
    assert value == pytest.approx(0.3125, abs=1e-14)
    assert offset == pytest.approx(0.125, abs=1e-14)
    for m, a, s in ((0.5, 2.0, 0.1), (-1.3, 0.7, 0.9), (0.4, -2.0, 3.0)):
        value, offset = soft_worst_loss(m, a, s)
        d = np.linspace(offset - 1, offset + 1, 2001)
        assert value == pytest.approx(np.max(a * (m + d) ** 2 / 2 - d**2 / (2 * s)), abs=1e-12)


# ---- posteriors in one dimension


def test_quadratic_posterior_reference():
    found = quadratic_posterior(4.0, 10.0, 0.2, 1.0)
    assert found.mean_abs == pytest.approx(0.07479500037652, abs=1e-12)
    assert found.mean_square == pytest.approx(0.00979609748751, abs=1e-12)
    assert found.log_evidence == pytest.approx(-2.51078393216475, abs=1e-12)


@pytest.mark.parametrize("a", [0.3, 4.0, 60.0])
@pytest.mark.parametrize("lam", [0.5, 10.0])
@pytest.mark.parametrize("rho", [0.0, 0.2, 1.5])
@pytest.mark.parametrize("s", [0.4, 3.0])
def test_quadratic_posterior_against_quadrature(a, lam, rho, s):
    def weight(t):
        return math.exp(-lam * a * ((t + rho) ** 2 - rho**2) / 2 - t**2 / (2 * s**2))

    c = lam * a + s**-2
    reach = min(12 / math.sqrt(c), 60 / (lam * a * rho) if rho else math.inf)
    z, m1, m2 = (
        2 * quad(lambda t, k=k: t**k * weight(t), 0, reach, epsabs=0, epsrel=1e-13, limit=500)[0] for k in range(3)
    )
    found = quadratic_posterior(a, lam, rho, s)
    assert found.log_evidence == pytest.approx(math.log(z) - lam * a * rho**2 / 2, abs=1e-12)
    assert found.mean_abs == pytest.approx(m1 / z, abs=1e-12)
    assert found.mean_square == pytest.approx(m2 / z, abs=1e-12)
    t = tensor(-0.3, 0.0, 0.1)
    torch.testing.assert_close(found.log_density(t), torch.log(tensor(*map(weight, t.abs().tolist())) / z))


def test_without_a_ball_it_is_the_gaussian():
    found = quadratic_posterior(4.0, 10.0, 0.0, 1.0)
    assert found.mean_square == pytest.approx(1 / 41, abs=1e-15)
    assert found.mean_abs == pytest.approx(math.sqrt(2 / (math.pi * 41)), abs=1e-15)
    assert found.log_evidence == pytest.approx(math.log(2 * math.pi / 41) / 2, abs=1e-14)


def test_far_tail_is_the_laplace_distribution_without_cancellation():
    """b / √c = 1e6: the differences of the textbook formula have lost all digits."""
    found = quadratic_posterior(1e4, 1e4, 100.0, 1.0)
    assert found.mean_abs * found.slope == pytest.approx(1, rel=1e-11)
    assert found.mean_square * found.slope**2 == pytest.approx(2, rel=1e-11)


@pytest.mark.parametrize("alpha", [1.99, 2.0, 2.01])
def test_both_ways_to_the_mills_ratio_agree(alpha):
    """α = ρ for λ a = 1 and a wide prior."""
    found = quadratic_posterior(1.0, 1.0, alpha, 1e9)
    h = norm.pdf(alpha) / norm.sf(alpha)
    assert found.mean_abs == pytest.approx(h - alpha, rel=1e-13)
    assert found.mean_square == pytest.approx(1 + alpha**2 - alpha * h, rel=1e-13)


def test_sharpness_aware_posterior_is_narrower_within_a_well():
    variances = [quadratic_posterior(4.0, 10.0, rho, 1.0).mean_square for rho in (0.0, 0.05, 0.2, 1.0)]
    assert variances == sorted(variances, reverse=True)
    assert variances[0] / variances[2] > 2


def test_free_energy_grows_by_the_gradient_at_the_worst_point():
    h = 1e-4
    below, above = (-quadratic_posterior(4.0, 10.0, 0.2 + d, 1.0).log_evidence for d in (-h, h))
    expected = 10 * 4 * (quadratic_posterior(4.0, 10.0, 0.2, 1.0).mean_abs + 0.2)
    assert (above - below) / (2 * h) == pytest.approx(10.9918000, abs=1e-6)
    assert expected == pytest.approx(10.9918000, abs=1e-6)


def test_odds_of_two_wells():
    assert well_odds(100.0, 1.0, 1.0, 0.3) == pytest.approx(0.00035329452645864, rel=1e-12, abs=0)
    assert well_odds(100.0, 1.0, 1.0, 0.0) == pytest.approx(0.1, rel=1e-14)
    assert well_odds(1.0, 100.0, 1.0, 0.3) == pytest.approx(1 / 0.00035329452645864, rel=1e-12)
    assert well_odds(7.0, 7.0, 2.0, 0.5) == 1
    masses = [
        quad(lambda t, a=a: math.exp(-3 * a * (abs(t) + 0.2) ** 2 / 2), -20, 20, points=[0], epsrel=1e-12)[0]
        for a in (9.0, 2.0)
    ]
    assert well_odds(9.0, 2.0, 3.0, 0.2) == pytest.approx(masses[0] / masses[1], rel=1e-10)
    far = -math.log(1.1) / 2 + norm.logsf(50 * math.sqrt(1.1)) - norm.logsf(50)  # both masses underflow
    assert well_odds(1.1e4, 1e4, 1.0, 0.5) == pytest.approx(math.exp(far), rel=1e-10, abs=0)


# ---- best Gaussians


def test_where_the_maximum_goes_reference():
    assert worst_loss_expectation(0.4, 0.5, 2.0, 0.3) == pytest.approx(0.8121243403368593, abs=1e-14)
    assert worst_expected_loss(0.4, 0.5, 2.0, 0.3) == pytest.approx(0.74, abs=1e-14)
    assert worst_loss_expectation_gradient(0.4, 0.5, 2.0, 0.3) == pytest.approx(
        (1.145773521699924, 1.3476298633137793), abs=1e-14
    )
    assert worst_expected_loss_gradient(0.4, 0.5, 2.0, 0.3) == pytest.approx((1.4, 1.0), abs=1e-14)
    assert worst_expected_loss_gradient(0.0, 0.5, 2.0, 0.3) == (0.0, 1.0)  # at the kink


def test_worst_loss_expectation_equals_a_monte_carlo_estimate():
    noise = torch.randn(10**6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    worst = ((0.4 + 0.5 * noise).abs() + 0.3) ** 2
    assert abs(float(worst.mean()) - worst_loss_expectation(0.4, 0.5, 2.0, 0.3)) < 5 * float(worst.std()) / 1e3


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 2), st.floats(0.05, 2), st.floats(0.1, 5), st.floats(0, 2))
def test_gradients_are_those_of_the_losses(mean, std, a, rho):
    h = 1e-5
    pairs = [(worst_loss_expectation, worst_loss_expectation_gradient)]
    if abs(mean) > h:
        pairs.append((worst_expected_loss, worst_expected_loss_gradient))
    for loss, gradient in pairs:
        by_mean = (loss(mean + h, std, a, rho) - loss(mean - h, std, a, rho)) / (2 * h)
        by_std = (loss(mean, std + h, a, rho) - loss(mean, std - h, a, rho)) / (2 * h)
        assert gradient(mean, std, a, rho) == pytest.approx((by_mean, by_std), abs=1e-6)
    assert worst_expected_loss(mean, std, a, rho) <= worst_loss_expectation(mean, std, a, rho) + 1e-12


@pytest.mark.parametrize(
    ("objective", "mean", "std", "value", "tol"),
    [
        ("plain", 0.4878048780, 0.1561737619, None, 1e-10),
        (
            "worst_loss_expectation",
            0.4953261900,
            0.0967063249,
            3.5689103492,
            3e-9,
        ),  # as printed: an optimiser's digits
        ("worst_expected_loss", 0.5, 0.1561737619, 2.7817860332, 1e-10),
    ],
)
def test_best_gaussian_reference(objective, mean, std, value, tol):
    found = best_gaussian(4.0, 0.5, 10.0, 0.2, 1.0, objective)
    assert found.mean == pytest.approx(mean, abs=tol)
    assert found.std == pytest.approx(std, abs=tol)
    assert value is None or found.objective == pytest.approx(value, abs=3e-10)


def test_best_expected_worst_gaussian_is_stationary():
    found = best_gaussian(4.0, 0.5, 10.0, 0.2, 1.0, "worst_loss_expectation")
    by_mean, by_std = worst_loss_expectation_gradient(found.mean - 0.5, found.std, 4.0, 0.2)
    assert 10 * by_mean + found.mean == pytest.approx(0, abs=1e-12)
    assert 10 * by_std + found.std - 1 / found.std == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("objective", ["plain", "worst_loss_expectation", "worst_expected_loss"])
@pytest.mark.parametrize(("a", "m", "lam", "rho", "s"), [(4.0, 0.5, 10.0, 0.2, 1.0), (0.3, -2.0, 1.0, 0.4, 0.7)])
def test_nothing_is_better_than_the_best_gaussian(objective, a, m, lam, rho, s):
    """Against a general minimiser of the objective, by quadrature over the noise."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    weights = weights / weights.sum()

    def value(at):
        mean, std = at[0] - m, math.exp(at[1])
        kl = ((std**2 + at[0] ** 2) / s**2 - 1) / 2 - math.log(std / s)
        radius = 0.0 if objective == "plain" else rho
        if objective == "worst_loss_expectation":
            return lam * worst_loss_expectation(mean, std, a, radius) + kl
        return lam * max(a / 2 * weights @ (mean + e + std * nodes) ** 2 for e in (-radius, radius)) + kl

    found = best_gaussian(a, m, lam, rho, s, objective)
    best = minimize(value, [m, -1.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 2000})
    assert found.objective == pytest.approx(value([found.mean, math.log(found.std)]), abs=1e-11)
    assert found.objective <= best.fun + 1e-11
    assert found.objective == pytest.approx(best.fun, abs=1e-8)
    assert [found.mean, found.std] == pytest.approx([best.x[0], math.exp(best.x[1])], abs=1e-4)


def test_plain_best_gaussian_attains_the_evidence():
    """Theorem A within the family: the Gibbs posterior of a quadratic is a Gaussian."""
    a, m, lam, s = 4.0, 0.5, 10.0, 1.5
    found = best_gaussian(a, m, lam, 0.3, s, "plain")
    stiff = lam * a
    log_evidence = -math.log(1 + stiff * s**2) / 2 - m**2 / (2 * (1 / stiff + s**2))
    assert found.objective == pytest.approx(-log_evidence, abs=1e-12)


def test_expected_gap_of_the_best_gaussians():
    """Theorem C for a restricted family: an inequality."""

    def gap(q):
        return worst_loss_expectation(q.mean - 0.5, q.std, 4.0, 0.2) - worst_loss_expectation(
            q.mean - 0.5, q.std, 4.0, 0.0
        )

    plain = best_gaussian(4.0, 0.5, 10.0, 0.2, 1.0, "plain")
    flat = best_gaussian(4.0, 0.5, 10.0, 0.2, 1.0, "worst_loss_expectation")
    assert gap(flat) < gap(plain) - 0.01
    assert best_gaussian(4.0, 0.5, 10.0, 0.0, 1.0, "worst_loss_expectation").std == pytest.approx(
        plain.std, abs=1e-14
    )


@pytest.mark.parametrize("objective", ["plain", "worst_loss_expectation", "worst_expected_loss"])
def test_best_gaussian_is_symmetric_and_centred(objective):
    right = best_gaussian(2.0, 0.5, 3.0, 0.4, 1.0, objective)
    left = best_gaussian(2.0, -0.5, 3.0, 0.4, 1.0, objective)
    assert (left.mean, left.std, left.objective) == (-right.mean, right.std, right.objective)
    assert best_gaussian(2.0, 0.0, 3.0, 0.4, 1.0, objective).mean == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_perturbation(tensor(1.0, 2.0), torch.eye(3), 0.1), r"got shapes \(3, 3\) and \(2,\)"),
        (lambda: worst_perturbation(tensor(1.0, 2.0), torch.ones(2, 2).triu(), 0.1), "symmetric, got .* pass"),
        (lambda: worst_perturbation(tensor(1.0, math.nan), torch.eye(2), 0.1), "must be finite, got NaN"),
        (lambda: worst_perturbation(tensor(1.0, 1.0), torch.eye(2), -0.1), "rho is the radius .* got -0.1"),
        (lambda: isotropic_worst_loss(tensor(1.0), -1.0, 0.1), "got -1.0; for a maximum use"),
        (lambda: soft_worst_loss(1.0, 2.0, 0.5), "curvature \\* variance < 1, got 0.5 and a product of 1.0"),
        (lambda: soft_worst_loss(1.0, 2.0, 0.0), "variance must be positive"),
        (lambda: quadratic_posterior(0.0, 1.0, 0.1, 1.0), "curvature must be positive and finite, got 0.0"),
        (lambda: quadratic_posterior(1.0, 1.0, math.inf, 1.0), "rho .* got inf"),
        (lambda: well_odds(1.0, -1.0, 1.0, 0.1), "second_curvature must be positive and finite, got -1.0"),
        (lambda: worst_loss_expectation(0.0, 0.0, 1.0, 0.1), "std must be positive"),
        (lambda: best_gaussian(1.0, math.nan, 1.0, 0.1, 1.0, "plain"), "centre must be finite, got nan"),
        (lambda: best_gaussian(1.0, 0.0, 1.0, 0.1, 0.0, "plain"), "prior_std must be positive"),
    ],
)
def test_invalid_arguments_raise_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_unknown_objective():
    with pytest.raises(Exception, match="worst_expected_loss"):  # beartype's, where types are checked
        best_gaussian(1.0, 0.0, 1.0, 0.1, 1.0, "both")
