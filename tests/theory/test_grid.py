import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flatbayes.theory import (
    flatness_identity,
    gibbs_posterior,
    grid_kl,
    grid_points,
    jeffreys_divergence,
    mean_sharpness,
    normalize_density,
    quadratic_posterior,
    sample_cells,
    sharpness_aware_posterior,
    variational_objective,
    worst_loss,
)

CELL = 5e-4
LAM = 5.0


@pytest.fixture(scope="module")
def points():
    return torch.arange(-12000, 12001, dtype=torch.float64) * CELL  # with an exact zero


@pytest.fixture(scope="module")
def loss(points):
    """A narrow well at -2 and a wide one at 2."""
    narrow = 0.5 * torch.exp(-((points + 2) ** 2) / (2 * 0.05**2))
    wide = 0.5 * torch.exp(-((points - 2) ** 2) / (2 * 0.8**2))
    return -torch.log(narrow + wide + 1e-6)


@pytest.fixture(scope="module")
def log_prior(points):
    return -(points**2) / (2 * 2**2)


def random_loss(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(loss, radius):
    """Every ball, point by point."""
    index = torch.cartesian_prod(*(torch.arange(n) for n in loss.shape)).reshape(loss.numel(), -1)
    inside = (index[:, None] - index[None]).pow(2).sum(-1) <= radius**2 + 1e-6
    return torch.where(inside, loss.flatten(), -math.inf).amax(1).reshape(loss.shape)


# ---- the grid


def test_points_are_the_centres_of_equal_cells():
    plane = grid_points(2, half_width=3.0, cells_per_side=3)
    assert torch.equal(plane[2, 1], torch.tensor([2.0, 0.0], dtype=torch.float64))
    assert torch.equal(plane[:, 0, 0], grid_points(1, 3.0, 3)[:, 0])
    assert torch.equal(grid_points(1, 3.0, cells_per_side=1), torch.zeros(1, 1, dtype=torch.float64))
    for arguments in ((0, 3.0, 3), (3, 3.0, 3), (1, 3.0, 0)):
        with pytest.raises(ValueError, match=f"got {arguments[0]} and {arguments[2]}"):
            grid_points(*arguments)


# ---- the worst loss


@pytest.mark.parametrize("radius", [0.0, 0.9, 1.0, 2.0, 3.5, 6.0, 40.0])
def test_worst_loss_is_the_maximum_over_an_interval(radius):
    loss = random_loss(0, 17)
    assert torch.equal(worst_loss(loss, radius), brute_force(loss, radius))


@pytest.mark.parametrize("radius", [0.0, 0.5, 1.0, math.sqrt(2), 2.0, math.sqrt(5), 5.0, 5.7, math.sqrt(10), 30.0])
def test_worst_loss_is_the_maximum_over_a_disc(radius):
    loss = random_loss(1, 15, 11)
    assert torch.equal(worst_loss(loss, radius), brute_force(loss, radius))


def test_points_on_the_boundary_count_although_division_rounds():
    assert 0.7 / 0.1 < 7
    loss = torch.zeros(31)
    loss[15] = 1.0
    assert worst_loss(loss, 0.7 / 0.1).sum() == 15
    assert worst_loss(torch.outer(loss, loss), 0.7 / 0.1)[15].sum() == 15
    assert worst_loss(loss, 6.999).sum() == 13


def test_intervals_are_a_semigroup_exactly(loss):
    assert torch.equal(worst_loss(worst_loss(loss, 100.0), 250.0), worst_loss(loss, 350.0))
    assert not torch.equal(worst_loss(loss, 349.0), worst_loss(loss, 350.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 6), st.floats(0, 6))
def test_discs_are_a_semigroup_up_to_the_spacing(seed, a, b):
    loss = random_loss(seed, 20, 20)
    twice = worst_loss(worst_loss(loss, a), b)
    assert torch.all(twice <= worst_loss(loss, a + b))
    if a + b >= math.sqrt(2):
        assert torch.all(twice >= worst_loss(loss, a + b - math.sqrt(2)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 8), st.floats(0, 8), st.booleans())
def test_worst_loss_grows_with_the_radius(seed, a, b, plane):
    loss = random_loss(seed, 12, 12) if plane else random_loss(seed, 40)
    small, large = worst_loss(loss, min(a, b)), worst_loss(loss, max(a, b))
    assert torch.all(loss <= small)
    assert torch.all(small <= large)


def test_convexity_and_lipschitz_constants_are_preserved():
    x = torch.linspace(-3, 3, 601, dtype=torch.float64)
    rough = random_loss(3, 601)
    assert worst_loss(rough, 7.0).diff().abs().max() <= rough.diff().abs().max()
    convex = (x - 0.4).abs() + 0.3 * x**2
    inner = worst_loss(convex, 20.0)[20:-20]
    assert inner.diff().diff().min() >= -1e-14
    plane = convex[:, None] + 2 * x[None, ::6].abs()
    assert worst_loss(plane, 9.0)[9:-9, 9:-9].diff(dim=0).diff(dim=0).min() >= -1e-14


def test_a_linear_loss_gains_a_constant_so_flatness_says_nothing():
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    gap = (worst_loss(3 * x, 5.0) - 3 * x)[:-5]
    torch.testing.assert_close(gap, torch.full_like(gap, 0.3))


def test_excluded_points_may_be_infinite():
    loss = torch.tensor([0.0, 1.0, math.inf, 0.5])
    assert worst_loss(loss, 1.0).tolist() == [1.0, math.inf, math.inf, math.inf]


# ---- posteriors


def test_gibbs_is_the_conjugate_posterior():
    x = torch.linspace(-8, 8, 16001, dtype=torch.float64)
    found = gibbs_posterior(2 * (x - 1) ** 2, -(x**2) / 2, 10.0, 1e-3)
    mean, variance = 40 / 41, 1 / 41
    assert found.expect(x) == pytest.approx(mean, abs=1e-12)
    assert found.expect((x - mean) ** 2) == pytest.approx(variance, abs=1e-12)
    # E_p exp(-20 (x - 1)²) under N(0, 1)
    assert found.log_evidence == pytest.approx(-math.log(41) / 2 - 20 / 41, abs=1e-11)
    assert found.region_probability(x < mean) == pytest.approx(0.5, abs=2e-3)


def test_the_plane_is_the_product_of_its_lines():
    x = torch.linspace(-4, 4, 161, dtype=torch.float64)
    y = torch.linspace(-3, 3, 121, dtype=torch.float64)
    first, second = gibbs_posterior(x**2, -x.abs(), 2.0, 0.05), gibbs_posterior(y**4, -(y**2), 2.0, 0.05)
    both = gibbs_posterior(x[:, None] ** 2 + y**4, -x.abs()[:, None] - y**2, 2.0, 0.05**2)
    assert both.log_evidence == pytest.approx(first.log_evidence + second.log_evidence, abs=1e-12)
    assert both.expect(x[:, None] ** 2 * y**2) == pytest.approx(first.expect(x**2) * second.expect(y**2), abs=1e-12)
    torch.testing.assert_close(both.cell_probabilities.sum(1), first.cell_probabilities)


def test_sharpness_aware_posterior_of_an_isotropic_quadratic_in_the_plane():
    """On a grid the worst point is off by less than a spacing, here 0.02 of a radius of 0.4."""
    axis = torch.linspace(-3, 3, 301, dtype=torch.float64)
    square = axis[:, None] ** 2 + axis**2
    found = sharpness_aware_posterior(2 * square, -square / 2, 2.0, 0.02**2, 20.0)
    exact = gibbs_posterior(2 * (square.sqrt() + 0.4) ** 2, -square / 2, 2.0, 0.02**2)
    assert found.expect(square) == pytest.approx(exact.expect(square), rel=0.01)
    assert exact.expect(square) < 0.6 * gibbs_posterior(2 * square, -square / 2, 2.0, 0.02**2).expect(square)


def test_sharpness_aware_posterior_matches_the_closed_form():
    x = torch.linspace(-6, 6, 120001, dtype=torch.float64)
    found = sharpness_aware_posterior(2 * x**2, -(x**2) / 2, 10.0, 1e-4, 2000.0)
    exact = quadratic_posterior(4.0, 10.0, 0.2, 1.0)
    assert found.expect(x.abs()) == pytest.approx(exact.mean_abs, abs=1e-7)
    assert found.expect(x**2) == pytest.approx(exact.mean_square, abs=1e-7)
    assert found.log_evidence == pytest.approx(exact.log_evidence - math.log(2 * math.pi) / 2, abs=1e-6)
    inside = x.abs() < 2  # further out, the grid ends before the ball does
    torch.testing.assert_close(found.log_density[inside], exact.log_density(x[inside]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("radius", [0.0, 600.0])
def test_theorem_a(loss, log_prior, radius):
    prior = normalize_density(log_prior, CELL)
    values = worst_loss(loss, radius)
    best = sharpness_aware_posterior(loss, log_prior, LAM, CELL, radius)
    least = variational_objective(best, values, prior, LAM)
    assert least == pytest.approx(-best.log_evidence, abs=1e-11)
    generator = torch.Generator().manual_seed(0)
    for k in range(20):
        noise = torch.randn(len(loss), generator=generator, dtype=torch.float64)
        q = normalize_density(best.log_density + 0.1 * (k + 1) * noise, CELL)
        excess = variational_objective(q, values, prior, LAM) - least
        assert excess > 1e-3
        assert excess == pytest.approx(grid_kl(q, best), abs=1e-11)


def test_mass_leaves_the_sharp_well(points, loss, log_prior):
    plain, flat = (
        gibbs_posterior(loss, log_prior, LAM, CELL),
        sharpness_aware_posterior(loss, log_prior, LAM, CELL, 600.0),
    )
    assert plain.region_probability(points < 0) == pytest.approx(0.05883830710090946, rel=1e-9)
    assert flat.region_probability(points < 0) == pytest.approx(2.629275794572e-10, rel=1e-9, abs=0)
    assert mean_sharpness(plain, loss, 600.0) == pytest.approx(0.9405861371823705, rel=1e-9)
    assert mean_sharpness(flat, loss, 600.0) == pytest.approx(0.1640197061918239, rel=1e-9)
    assert flat.expect(loss) == pytest.approx(0.746257889079043, rel=1e-9)


@pytest.mark.parametrize(
    ("cells", "plain_gap", "flat_gap"),
    [(100.0, 0.07323, 0.02401), (200.0, 0.20897, 0.04718), (600.0, 0.94059, 0.16402), (2000.0, 1.92101, 0.94797)],
)
def test_theorem_c(loss, log_prior, cells, plain_gap, flat_gap):
    left, right = flatness_identity(loss, log_prior, LAM, CELL, cells)
    assert left == pytest.approx(right, abs=1e-11)
    assert left == pytest.approx(LAM * (plain_gap - flat_gap), abs=1e-4)
    plain, flat = (
        gibbs_posterior(loss, log_prior, LAM, CELL),
        sharpness_aware_posterior(loss, log_prior, LAM, CELL, cells),
    )
    assert mean_sharpness(plain, loss, cells) == pytest.approx(plain_gap, abs=5e-6)
    assert mean_sharpness(flat, loss, cells) == pytest.approx(flat_gap, abs=5e-6)
    assert right == jeffreys_divergence(plain, flat) > 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20), st.floats(0, 5), st.booleans())
def test_theorem_c_for_random_losses(seed, lam, radius, plane):
    loss = random_loss(seed, 9, 13) if plane else random_loss(seed, 50)
    left, right = flatness_identity(loss, random_loss(seed + 1, *loss.shape), lam, 0.1, radius)
    assert left == pytest.approx(right, abs=1e-11)
    assert right >= -1e-14
    assert radius < 1 or right > 1e-9


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 20), st.booleans())
def test_free_energy_grows_with_the_radius(seed, lam, plane):
    loss = random_loss(seed, 9, 13) if plane else random_loss(seed, 50)
    prior = torch.zeros_like(loss)
    energies = [
        -sharpness_aware_posterior(loss, prior, lam, 0.1, radius).log_evidence for radius in (0.0, 1.0, 1.5, 2.0, 4.0)
    ]
    assert energies == sorted(energies)
    assert energies[-1] > energies[0]


def test_free_energy_grows_by_the_gradient_at_the_worst_point():
    """dF/dρ = λ E|L'(s_ρ)|, on a grid fine enough for a central difference over ten cells."""
    x = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    loss, log_prior, lam, cell, cells = x**2 / 2 + x.pow(4) / 12, -(x**2) / 2, 3.0, 1e-4, 3000.0
    below, above = (-sharpness_aware_posterior(loss, log_prior, lam, cell, cells + d).log_evidence for d in (-10, 10))
    worst = x.abs() + 0.3
    slope = lam * sharpness_aware_posterior(loss, log_prior, lam, cell, cells).expect(worst + worst**3 / 3)
    assert (above - below) / (20 * cell) == pytest.approx(slope, rel=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 20))
def test_cooling_lowers_the_expected_loss_by_its_variance(seed, lam):
    values, prior, h = worst_loss(random_loss(seed, 50), 2.0), random_loss(seed + 1, 50), 1e-4
    at = [gibbs_posterior(values, prior, lam + d, 0.1) for d in (-h, 0, h)]
    mean = at[1].expect(values)
    variance = at[1].expect((values - mean) ** 2)
    assert (at[2].expect(values) - at[0].expect(values)) / (2 * h) == pytest.approx(-variance, abs=1e-8)
    assert variance > 1e-6


def test_limits_in_the_inverse_temperature(loss, log_prior):
    prior = normalize_density(log_prior, CELL)
    hot = gibbs_posterior(loss, log_prior, 0.0, CELL)
    assert torch.equal(hot.log_density, prior.log_density)
    assert hot.log_evidence == 0
    assert grid_kl(gibbs_posterior(loss, log_prior, 1e-9, CELL), prior) < 1e-14
    worst = worst_loss(loss, 600.0)
    best = float(worst.min())
    cold = gibbs_posterior(worst, log_prior, 1e7, CELL)
    assert cold.region_probability(worst < best + 1e-5) == pytest.approx(1, abs=1e-12)
    assert cold.region_probability(worst < best + 1e-9) < 1


def test_support_is_kept_and_divergences_know_it():
    loss = torch.tensor([0.0, 1.0, math.inf, 2.0])
    flat_prior, narrow_prior = torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, -math.inf])
    narrow, wide = gibbs_posterior(loss, narrow_prior, 1.0, 0.5), gibbs_posterior(loss, flat_prior, 1.0, 0.5)
    assert narrow.cell_probabilities.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0, 0])
    assert narrow.expect(loss) == pytest.approx(1 / (1 + math.e))
    assert grid_kl(narrow, wide) == pytest.approx(math.log((1 + math.exp(-1) + math.exp(-2)) / (1 + math.exp(-1))))
    assert grid_kl(wide, narrow) == math.inf
    assert gibbs_posterior(loss, flat_prior, 0.0, 0.5).cell_probabilities.tolist() == [0.25] * 4
    prior = normalize_density(flat_prior, 0.5)
    assert variational_objective(wide, loss, prior, 1.0) == pytest.approx(-wide.log_evidence, abs=1e-14)
    assert variational_objective(prior, loss, prior, 0.0) == 0
    assert variational_objective(prior, loss, prior, 1.0) == math.inf


def test_divergence_of_gaussians_and_its_direction():
    x = torch.linspace(-10, 10, 20001, dtype=torch.float64)
    p, q = normalize_density(-(x**2) / 2, 1e-3), normalize_density(-((x - 0.5) ** 2) / (2 * 0.5**2), 1e-3)
    there, back = (0.25 + 0.25 - 1) / 2 + math.log(2), (4 + 1 - 1) / 2 - math.log(2)
    assert grid_kl(q, p) == pytest.approx(there, abs=1e-11)
    assert grid_kl(p, q) == pytest.approx(back, abs=1e-11)
    assert jeffreys_divergence(p, q) == pytest.approx(there + back, abs=1e-11)
    assert grid_kl(p, p) == 0


def test_inputs_of_any_precision_give_float64(loss, log_prior):
    found = sharpness_aware_posterior(loss[::100].float(), log_prior[::100].float(), LAM, 0.05, 3.0)
    assert found.log_density.dtype == torch.float64
    assert worst_loss(loss.float(), 3.0).dtype == torch.float64
    assert normalize_density(log_prior.float(), 0.05).log_density.dtype == torch.float64
    assert float(found.cell_probabilities.sum()) == pytest.approx(1, abs=1e-13)


# ---- draws


def test_draws_follow_the_masses():
    posterior = gibbs_posterior(random_loss(5, 4, 3), torch.zeros(4, 3), 3.0, 0.2)
    num = 40_000
    cells = sample_cells(posterior, num, torch.Generator().manual_seed(0))
    assert cells.shape == (num, 2)
    seen = torch.zeros(4, 3, dtype=torch.float64).index_put(
        tuple(cells.T), torch.ones(num, dtype=torch.float64), accumulate=True
    )
    expected = posterior.cell_probabilities * num
    assert float(((seen - expected) ** 2 / expected).sum()) < 31.3  # chi-square, 11 degrees, one in a thousand
    line = sample_cells(
        normalize_density(torch.tensor([-math.inf, 0.0, -math.inf]), 1.0), 100, torch.Generator().manual_seed(0)
    )
    assert line.tolist() == [[1]] * 100


def test_draws_are_the_generators():
    posterior = normalize_density(random_loss(6, 1000), 0.1)
    first, again, other = (sample_cells(posterior, 50, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert sample_cells(posterior, 0, torch.Generator()).shape == (0, 1)


# ---- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_loss(torch.zeros(4), -1.0), "radius_in_cells must be finite and at least 0, got -1.0"),
        (lambda: worst_loss(torch.zeros(4), math.nan), "radius_in_cells .* got nan"),
        (lambda: worst_loss(torch.zeros(2, 2, 2), 1.0), r"one or two parameters, got shape \(2, 2, 2\); reshape"),
        (lambda: worst_loss(torch.tensor([0.0, math.nan]), 1.0), "must not be NaN or -inf, got 1 such point;"),
        (lambda: gibbs_posterior(torch.zeros(4), torch.zeros(5), 1.0, 0.1), r"got shapes \(4,\) and \(5,\)"),
        (lambda: gibbs_posterior(torch.zeros(4), torch.zeros(4), -1.0, 0.1), "inverse_temperature .* got -1.0"),
        (lambda: gibbs_posterior(torch.zeros(4), torch.zeros(4), math.inf, 0.1), "inverse_temperature .* got inf"),
        (lambda: gibbs_posterior(torch.full((4,), -math.inf), torch.zeros(4), 1.0, 0.1), "use [+]inf to exclude"),
        (lambda: gibbs_posterior(torch.full((4,), math.inf), torch.zeros(4), 1.0, 0.1), "zero on the whole grid"),
        (lambda: normalize_density(torch.zeros(4), 0.0), "positive and finite, got 0.0"),
        (lambda: normalize_density(torch.tensor(0.0), 0.1), r"got shape \(\)"),
        (lambda: normalize_density(torch.full((3,), math.nan), 0.1), "look for NaN"),
        (
            lambda: grid_kl(normalize_density(torch.zeros(4), 0.1), normalize_density(torch.zeros(4), 0.2)),
            "sizes? 0.1 and 0.2",
        ),
        (
            lambda: grid_kl(normalize_density(torch.zeros(4), 0.1), normalize_density(torch.zeros(3), 0.1)),
            "q and p must be",
        ),
        (lambda: normalize_density(torch.zeros(4), 0.1).expect(torch.zeros(3)), "values and the density must be"),
        (
            lambda: normalize_density(torch.zeros(4), 0.1).region_probability(torch.ones(3, dtype=torch.bool)),
            "region and the density",
        ),
        (lambda: sample_cells(normalize_density(torch.zeros(4), 0.1), -1, torch.Generator()), "at least 0, got -1"),
    ],
)
def test_invalid_arguments_raise_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
