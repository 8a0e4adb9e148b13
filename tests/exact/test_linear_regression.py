"""Bayesian linear regression: closed forms for the plain posterior, quadrature for the sharpness-aware one.

tests/posteriors/test_sgvb.py and test_lrt.py compare SGVB and LRT with the closed form of the best factorised
Gaussian at several temperatures and priors.
"""

import math
from functools import partial

import pytest
import torch

from exact.targets import Target, best_member, fit_sgvb, mean_and_error, run_sampler
from flatbayes.flatness import Plain
from flatbayes.posteriors import SGHMC, SGLD
from studies.double_well.batched_chains import BatchedChains


def data(num_data, num_params, seed=0):
    """Inputs of different scales, correlated, and outputs with unit noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_data, num_params, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([1.0, 0.6, 1.4], dtype=torch.float64)[:num_params]
    x[:, 1] += 0.4 * x[:, 0]
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)[:num_params]
    return x, y + torch.randn(num_data, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("posterior", [SGLD(), SGHMC(), SGHMC(friction=0.4)], ids=["SGLD", "SGHMC-0.1", "SGHMC-0.4"])
def test_samplers_have_the_posterior_with_its_covariance(posterior):
    """Up to the larger variance that a finite step size gives on a quadratic, in closed form."""
    n, precision, chains = 40, 5.0, 10_000
    friction = getattr(posterior, "friction", 1.0)
    lr = 0.1 * friction**0.5
    x, y = data(n, 3)
    model = BatchedChains(torch.zeros(chains, 3, dtype=torch.float64))

    def closure():
        model.zero_grad()
        loss = (x @ model.weight.T - y[:, None]).square().mean(0).sum() / 2  # unit noise, mean over data
        loss.backward()
        return loss.detach()

    torch.manual_seed(1)
    posterior = type(posterior)(**{**vars(posterior), "prior_precision": precision})
    state = posterior.init(model, partial(torch.optim.SGD, lr=lr), n)
    for _ in range(150):
        posterior.step(state, Plain()(closure, model))

    eye = torch.eye(3, dtype=torch.float64)
    hessian = x.T @ x + precision * eye
    mean, covariance = torch.linalg.solve(hessian, x.T @ y), torch.linalg.inv(hessian)
    exact = covariance @ torch.linalg.inv(eye - lr / n * hessian / (2 * (2 - friction)))
    draws = model.weight.detach()
    sd = exact.diagonal().sqrt()
    assert (((draws - mean) / sd).mean(0).abs() < 5 / math.sqrt(chains)).all()
    assert ((draws.T.cov() - exact).abs() / sd.outer(sd) < 5 * math.sqrt(2 / chains)).all()
    assert ((exact - covariance).abs() / sd.outer(sd) < 0.12).all()
    new = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)  # the predictive distribution of a new example
    assert float((draws @ new).var()) == pytest.approx(float(new @ exact @ new), rel=5 * math.sqrt(2 / chains))


N = 16
X, Y = data(N, 2)
SECOND_MOMENT, CENTRE = X.T @ X / N, torch.linalg.solve(X.T @ X, X.T @ Y)


def gradient(w):
    return (w - CENTRE) @ SECOND_MOMENT


def worst_loss(points, rho):
    """Of the mean squared error / 2, up to a constant; on the sphere, since it is convex."""
    angles = torch.linspace(0, 2 * math.pi, 501, dtype=torch.float64)[:-1]
    worst = torch.full(points.shape[:-1], -math.inf, dtype=torch.float64)
    for angle in angles if rho else angles[:1]:
        away = points - CENTRE + rho * torch.stack([angle.cos(), angle.sin()])
        worst = torch.maximum(worst, ((away @ SECOND_MOMENT) * away).sum(-1) / 2)
    return worst


REGRESSION = Target("regression", 2, gradient, worst_loss, lam=float(N), rho=0.5, ascent_steps=6)


def test_the_grid_has_the_closed_form_of_the_plain_posterior():
    hessian = X.T @ X + torch.eye(2, dtype=torch.float64)
    mean, covariance = torch.linalg.solve(hessian, X.T @ Y), torch.linalg.inv(hessian)
    posterior, points = REGRESSION.exact(False), REGRESSION.points()
    for k in range(2):
        assert posterior.expect(points[..., k]) == pytest.approx(float(mean[k]), abs=1e-3)
        variance = posterior.expect((points[..., k] - mean[k]) ** 2)
        assert variance == pytest.approx(float(covariance[k, k]), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("method", [SGLD, SGHMC])
def test_samplers_with_sam_have_the_sharpness_aware_posterior(method):
    """Moments by extrapolation from two step sizes; those of the plain posterior differ by more than the error."""
    sampler = method(prior_precision=1.0, temperature=REGRESSION.temperature)
    points, exact, plain = REGRESSION.points(), REGRESSION.exact(True), REGRESSION.exact(False)
    step_size, time = {SGLD: (4e-3, 4.0), SGHMC: (2e-3, 1.6)}[method]
    coarse, fine = (run_sampler(sampler, REGRESSION, True, step_size / k, time, 1500, snapshots=25) for k in (1, 2))
    differences = []
    for k in range(2):
        centre = exact.expect(points[..., k])
        sd = math.sqrt(exact.expect((points[..., k] - centre) ** 2))
        for power in (1, 2):
            truth, other = (q.expect(((points[..., k] - centre) / sd) ** power) for q in (exact, plain))
            rough, rough_error = mean_and_error(((coarse[..., k] - centre) / sd) ** power)
            close, error = mean_and_error(((fine[..., k] - centre) / sd) ** power)
            assert abs(2 * close - rough - truth) < 4 * math.hypot(2 * error, rough_error) + 0.01
            assert abs(2 * close - rough - truth) < 0.15
            differences.append(abs(truth - other))
    assert max(differences) > 0.5


@pytest.mark.parametrize(
    "flat", [pytest.param(False, id="plain", marks=pytest.mark.slow), pytest.param(True, id="sam")]
)
def test_sgvb_has_the_best_factorised_gaussian(flat):
    mean, std, _ = best_member(REGRESSION, worst_loss(REGRESSION.points(), 0.5 * flat), CENTRE.tolist(), 0.2)
    fitted_means, fitted_stds = fit_sgvb(REGRESSION, flat, CENTRE.tolist(), 0.2, steps=1000)
    for fits, exact in ((fitted_means, mean), (fitted_stds, std)):
        error = fits.std(0) / math.sqrt(len(fits))
        assert ((fits.mean(0) - exact).abs() < 4 * error + 0.01 * std).all(), (fits.mean(0), exact)
    plain = (X.T @ X + torch.eye(2, dtype=torch.float64)).diagonal().rsqrt()
    assert flat == bool((std < 0.9 * plain).all())  # narrower within a basin (W)
