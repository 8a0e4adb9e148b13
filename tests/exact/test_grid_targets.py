"""Samplers and variational families against posteriors on a grid, plain and sharpness-aware.

Two convex losses, where the ascent is exact, and two with a sharp deep and a flat shallow well. Distances are
Kolmogorov distances of the first coordinate; the plain and the sharpness-aware posterior are so far apart that a
mix-up fails.
"""

import math

import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from exact.targets import (
    HESSIAN,
    LINE,
    NUM_DATA,
    PLANE,
    QUARTIC,
    TARGETS,
    VALLEY,
    Target,
    best_member,
    fit_sgvb,
    mean_and_error,
    run_sampler,
    valley_worst_loss,
)
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors import LRT, SGHMC, SGLD
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.theory import grid_kl, normalize_density, worst_loss
from studies.double_well.loss import make_sharp_and_flat_wells
from studies.double_well.study import kolmogorov_distance

by_target = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
by_flatness = pytest.mark.parametrize("flat", [False, True], ids=["plain", "sam"])
by_sampler = pytest.mark.parametrize("method", [SGLD, SGHMC])
COARSE = {SGLD: 2e-3, SGHMC: 1.6e-3}  # step sizes on the negative log posterior


def posterior_distance(target):
    """Kolmogorov distance between the first coordinates of the plain and the sharpness-aware posterior."""
    plain, flat = (target.exact(is_flat).cell_probabilities for is_flat in (False, True))
    if plain.dim() == 2:
        plain, flat = plain.sum(1), flat.sum(1)
    return float((plain.cumsum(0) - flat.cumsum(0)).abs().max())


@pytest.mark.parametrize(
    "target",
    [pytest.param(t, marks=[pytest.mark.slow] if t is VALLEY else []) for t in TARGETS],
    ids=lambda t: t.name,
)
def test_the_grid_has_the_worst_loss_of_the_closed_form(target):
    """Up to the slope times the spacing, since the worst point is seldom a grid point."""
    points = target.points()
    spacing = 9 / len(points)
    exact, on_grid = target.worst_loss(points, target.rho), worst_loss(target.loss(points), target.rho / spacing)
    inner = (points.abs() < 4).all(-1)
    slope = float((exact.diff(dim=0).abs()[inner[1:]]).max())
    assert (exact - on_grid)[inner].abs().max() <= 2 * slope + 1e-12
    assert (exact - target.loss(points)).max() > 5 * slope


@by_target
def test_gradients_are_those_of_the_losses(target):
    at = torch.randn(50, target.num_params, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(target.loss(at).sum(), at)
    torch.testing.assert_close(target.gradient(at.detach()), expected)


@pytest.mark.parametrize(
    ("method", "target", "flat"),
    [
        (SGLD, QUARTIC, True),
        (SGLD, LINE, False),
        (SGHMC, QUARTIC, False),
        (SGHMC, LINE, True),
        pytest.param(SGLD, QUARTIC, False, marks=pytest.mark.slow),
        pytest.param(SGLD, LINE, True, marks=pytest.mark.slow),
        pytest.param(SGHMC, QUARTIC, True, marks=pytest.mark.slow),
        pytest.param(SGHMC, LINE, False, marks=pytest.mark.slow),
        pytest.param(SGHMC, PLANE, False, marks=pytest.mark.slow),
        pytest.param(SGHMC, PLANE, True, marks=pytest.mark.slow),
    ],
    ids=lambda v: getattr(v, "name", getattr(v, "__name__", str(v))),
)
def test_samplers_converge_to_the_posterior(method, target, flat):
    """Chains start from the prior; the error of this step size is below 0.04."""
    sampler = method(prior_precision=1.0, temperature=target.temperature)
    step_size = COARSE[method]
    time = {SGLD: 7.0, SGHMC: 2.4}[method]
    draws = run_sampler(sampler, target, flat, step_size, time, 1500)[..., 0]
    assert kolmogorov_distance(draws, target.points(), target.exact(flat)) < 0.04
    assert kolmogorov_distance(draws, target.points(), target.exact(not flat)) > posterior_distance(target) - 0.04
    assert posterior_distance(target) > 0.08


@pytest.mark.slow
@by_target
@by_flatness
@by_sampler
def test_errors_of_samplers_vanish_with_the_step_size(method, target, flat):
    """The error of a quarter of the step size is at most a quarter, to its standard error. That of SGLD is linear,
    so that Richardson extrapolation removes it; that of SGHMC falls faster at steps of this size."""
    sampler = method(prior_precision=1.0, temperature=target.temperature)
    points, exact = target.points(), target.exact(flat)
    time = {SGLD: 9.0, SGHMC: 3.0}[method] * (1.0 if target in (LINE, PLANE) else 0.5)
    coarse, fine = (run_sampler(sampler, target, flat, COARSE[method] / k, time, 2000) for k in (1, 4))
    assert kolmogorov_distance(fine[..., 0], points, exact) < 0.02
    assert kolmogorov_distance(fine[..., 0], points, target.exact(not flat)) > posterior_distance(target) - 0.02
    for value_fn in (target.loss, lambda w: w[..., 0], lambda w: w[..., 0].square()):
        truth = exact.expect(value_fn(points))
        sd = math.sqrt(exact.expect((value_fn(points) - truth) ** 2))
        (rough, rough_error), (close, error) = mean_and_error(value_fn(coarse)), mean_and_error(value_fn(fine))
        assert abs(close - truth) < abs(rough - truth) / 4 + 4 * math.hypot(error, rough_error / 4) + 0.005 * sd
        assert abs(close - truth) < 0.1 * sd
        if method is SGLD:
            extrapolated = (4 * close - rough) / 3
            assert abs(extrapolated - truth) < 4 * math.hypot(4 * error, rough_error) / 3 + 0.005 * sd


@pytest.mark.slow
def test_one_step_of_ascent_is_first_order_where_the_curvature_has_directions():
    """In the valley the worst point is not along the gradient: several steps find it, a single step does not."""
    sampler = SGLD(prior_precision=1.0, temperature=VALLEY.temperature)
    distances = []
    for ascent_steps in (1, 6):
        target = type(VALLEY)(**{**vars(VALLEY), "ascent_steps": ascent_steps})
        draws = run_sampler(sampler, target, True, 1e-3, 6.0, 4000)
        distances.append(
            max(
                kolmogorov_distance(draws[..., k : k + 1][..., 0], VALLEY.points(), exact)
                for k, exact in enumerate((VALLEY.exact(True), transpose(VALLEY.exact(True))))
            )
        )
    assert distances[1] < 0.01
    assert distances[0] > 2 * distances[1]


def transpose(posterior):
    return type(posterior)(posterior.log_density.T, posterior.cell_volume, posterior.log_evidence)


# Variational families


def gaussian(mean, std, points, cell):
    return normalize_density(-((points - mean) / std).square().sum(-1) / 2, cell)


@pytest.mark.parametrize(
    "target", [LINE, pytest.param(PLANE, marks=pytest.mark.slow)], ids=lambda target: target.name
)
@pytest.mark.parametrize(
    ("flat", "well"),
    [
        pytest.param(False, 0, id="plain-sharp", marks=pytest.mark.slow),
        pytest.param(False, 1, id="plain-flat", marks=pytest.mark.slow),
        pytest.param(True, 1, id="sam-flat"),
    ],
)
def test_sgvb_finds_the_best_gaussian(target, flat, well):
    """The optimum nearest to each well. With SAM that of the sharp well is so shallow that gradient noise moves fits
    to the flat one."""
    target = type(target)(**{**vars(target), "lam": 7.0})
    start = make_sharp_and_flat_wells(target.num_params).centres[well]
    values = target.worst_loss(target.points(), target.rho * flat)
    mean, std, _ = best_member(target, values, start, 0.2)

    fitted_means, fitted_stds = fit_sgvb(target, flat, start, 0.2)
    for fits, exact in ((fitted_means, mean), (fitted_stds, std)):
        error = fits.std(0) / math.sqrt(len(fits))
        assert ((fits.mean(0) - exact).abs() < 4 * error + 0.01 * std).all(), (fits.mean(0), exact)


@pytest.mark.parametrize("target", [LINE, PLANE], ids=lambda t: t.name)
def test_the_best_gaussians_of_the_two_objectives_lie_in_different_wells(target):
    target = type(target)(**{**vars(target), "lam": 7.0})
    wells, wells_of_optima = make_sharp_and_flat_wells(target.num_params), []
    for flat in (False, True):
        values = target.worst_loss(target.points(), target.rho * flat)
        optima = [best_member(target, values, centre, 0.2) for centre in wells.centres]
        mean, std, least = min(optima, key=lambda optimum: optimum[2])
        wells_of_optima.append([bool(wells.is_inside_well(mean, k)) for k in (0, 1)])
        exact = target.exact(flat)
        divergence = grid_kl(gaussian(mean, std, target.points(), exact.cell_volume), exact)
        assert least == pytest.approx(divergence - exact.log_evidence, abs=1e-4)  # Theorem A; the grid is finite
    assert wells_of_optima == [[True, False], [False, True]]


def parabola_gradient(x):
    return 4 * (x - 0.5)


def parabola_worst_loss(points, rho):
    return 2 * ((points[..., 0] - 0.5).abs() + rho) ** 2


@pytest.mark.parametrize(
    ("flat", "mean", "std"),
    [
        pytest.param(False, 0.4878048780, 0.1561737619, marks=pytest.mark.slow),
        (True, 0.4953261900, 0.0967063249),
    ],
)
def test_sgvb_has_the_optimum_of_a_parabola(flat, mean, std):
    """Worst loss inside the expectation (W): outside of it SAM would have mean .5 and the plain std .1562."""
    parabola = Target("parabola", 1, parabola_gradient, parabola_worst_loss, lam=10.0, rho=0.2)
    fitted_means, fitted_stds = fit_sgvb(parabola, flat, (0.4,), 0.12)
    assert fitted_means.mean().item() == pytest.approx(mean, abs=2e-3)
    assert fitted_stds.mean().item() == pytest.approx(std, abs=2e-3)
    by_quadrature = best_member(parabola, parabola_worst_loss(parabola.points(), 0.2 * flat), (0.4,), 0.12)
    assert [float(v) for v in by_quadrature[:2]] == pytest.approx([mean, std], abs=1e-4)


class OneWeight(nn.Module):
    """Outputs are w x with x = 1: noise in activations is noise in the weight, one draw per example."""

    def __init__(self, start):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(self.layer.weight, start)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(
    ("flat", "well"),
    [
        pytest.param(Plain(), 0, id="plain-sharp"),
        pytest.param(Plain(), 1, id="plain-flat", marks=pytest.mark.slow),
        pytest.param(SAM(rho=0.3), 1, id="sam-flat"),
    ],
)
def test_lrt_finds_the_best_gaussian(flat, well):
    """With SAM, that of the maximum of an expectation (M): examples differ in their noise and share a perturbation.

    (M) is the plain expected loss of the Gaussian, dilated in its mean. Its optimum is at the bottom of the well,
    where a finite batch rounds the kink off; that of (W) would be 1.09 and .36.
    """
    target = type(LINE)(**{**vars(LINE), "lam": 7.0})
    points, axis = target.points(), target.points()[:, 0]
    start = make_sharp_and_flat_wells(1).centres[well][0]

    def cost(v):
        mean, std = v[0], math.exp(v[1])
        shifts = torch.linspace(-getattr(flat, "rho", 0.0), getattr(flat, "rho", 0.0), 61, dtype=torch.float64)
        q = torch.exp(-(((axis - mean - shifts[:, None]) / std) ** 2) / 2)
        expected = (q * target.loss(points)).sum(1) / q.sum(1)
        return target.lam * float(expected.max()) + (std**2 + mean**2 - 1) / 2 - math.log(std)

    best = minimize(cost, [start, math.log(0.2)], method="Nelder-Mead", options={"xatol": 1e-5, "fatol": 1e-9})
    mean, std = float(best.x[0]), math.exp(best.x[1])

    torch.manual_seed(0)
    posterior = LRT(prior_precision=1.0, temperature=target.temperature, initial_std=0.2)
    state = posterior.init(OneWeight(start), lambda params: torch.optim.Adam(params, lr=0.02), NUM_DATA)
    model, ones, steps, path = state.model, torch.ones(2048, 1, dtype=torch.float64), 700, []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(state.optimizer, steps)

    def closure():
        model.zero_grad()
        loss = target.loss(model(ones)).mean()
        loss.backward()
        return loss.detach()

    for step in range(steps):
        posterior.step(state, flat(closure, model))
        schedule.step()
        if step >= steps * 2 // 3:
            (raw,) = state.statistics.values()
            path.append((model.layer.weight.item(), raw_to_std(raw.detach().view(1)).item()))
    averages = torch.tensor(path, dtype=torch.float64).mean(0)
    assert averages[0].item() == pytest.approx(mean, abs=0.05 * std)
    assert averages[1].item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize(
    "flat",
    [
        pytest.param(Plain(), id="plain", marks=pytest.mark.slow),
        pytest.param(SAM(rho=0.4, ascent_steps=6), id="sam"),
    ],
)
def test_lrt_finds_the_best_gaussian_of_a_valley(flat):
    """Two weights, as two outputs of one input; with SAM that of (M), whose standard deviation is the plain one.

    On a quadratic (M) is the worst loss at the mean plus a constant, so the best mean is the MAP estimate
    of the worst loss; the best variances are 1 / (lam h + 1), h being the diagonal of the Hessian.
    """
    lam, centre = 2.0, torch.tensor([0.9, -1.2], dtype=torch.float64)

    def loss(points):
        return ((points - centre) @ HESSIAN * (points - centre)).sum(-1) / 2

    def cost(v, rho):
        at = torch.tensor(v, dtype=torch.float64)
        return lam * float(valley_worst_loss(at - centre, rho)) + float(at.square().sum()) / 2

    best = {
        rho: torch.from_numpy(minimize(cost, centre.tolist(), args=(rho,), method="Nelder-Mead").x)
        for rho in (0.0, 0.4)
    }
    std = (lam * HESSIAN.diagonal() + 1) ** -0.5
    assert ((best[0.4] - best[0.0]).abs() / std).max() > 0.18  # so a mix-up would fail below

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 2, bias=False).double())
    posterior = LRT(prior_precision=1.0, temperature=NUM_DATA / lam, initial_std=0.3)
    state = posterior.init(model, lambda params: torch.optim.Adam(params, lr=0.02), NUM_DATA)
    network, ones, steps, path = state.model, torch.ones(2048, 1, dtype=torch.float64), 900, []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(state.optimizer, steps)

    def closure():
        network.zero_grad()
        value = loss(network(ones)).mean()
        value.backward()
        return value.detach()

    for step in range(steps):
        posterior.step(state, flat(closure, network))
        schedule.step()
        if step >= steps * 2 // 3:
            (raw,) = state.statistics.values()
            path.append(torch.stack([network[0].weight.detach().flatten(), raw_to_std(raw.detach().flatten())]))
    mean, average_std = torch.stack(path).mean(0)
    best_mean = best[getattr(flat, "rho", 0.0)]
    assert ((mean - best_mean).abs() / std).max() < 0.07
    torch.testing.assert_close(average_std, std, rtol=0.04, atol=0)
