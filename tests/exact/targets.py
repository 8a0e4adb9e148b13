"""Losses in one and two parameters with both posteriors on a grid, and batched chains and fits.

Each chain has a ball of its own, so a thousand chains with SAM are a thousand closures; `make_row_sam_closure`
computes all of them at once, and tests/studies/double_well/test_batched_chains.py shows that each row is as with
`SAM` alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from scipy.optimize import minimize

from flatbayes.posteriors import SGVB
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.theory import gibbs_posterior, grid_points
from studies.double_well.batched_chains import BatchedChains, make_closure, make_row_sam_closure
from studies.double_well.loss import make_sharp_and_flat_wells

NUM_DATA = 1000  # only NUM_DATA / temperature counts


@dataclass(frozen=True)
class Target:
    """A loss whose two posteriors under a prior N(0, I) are known."""

    name: str
    num_params: int
    gradient: Callable
    worst_loss: Callable
    lam: float
    rho: float
    ascent_steps: int = 1

    @property
    def temperature(self):
        return NUM_DATA / self.lam

    def loss(self, points):
        return self.worst_loss(points, 0.0)

    @cache  # noqa: B019
    def points(self):
        return grid_points(self.num_params, 4.5, 3600 if self.num_params == 1 else 300)

    @cache  # noqa: B019
    def exact(self, flat):
        points = self.points()
        cell = (9 / len(points)) ** self.num_params
        return gibbs_posterior(self.worst_loss(points, self.rho * flat), -points.square().sum(-1) / 2, self.lam, cell)


def quartic_gradient(x):
    return x + x**3 / 3


def quartic_worst_loss(points, rho):
    distance = points[..., 0].abs() + rho
    return distance**2 / 2 + distance**4 / 12


HESSIAN = torch.tensor([[5.0, 1.0], [1.0, 0.5]], dtype=torch.float64)


def valley_gradient(x):
    return x @ HESSIAN


def valley_worst_loss(points, rho):
    """A convex loss is worst on the sphere; the maximum over 500 angles has a relative error of at most 1e-5."""
    angles = torch.linspace(0, 2 * math.pi, 501, dtype=torch.float64)[:-1]
    worst = torch.full(points.shape[:-1], -math.inf, dtype=torch.float64)
    for angle in angles if rho else angles[:1]:
        perturbed = points + rho * torch.stack([angle.cos(), angle.sin()])
        worst = torch.maximum(worst, ((perturbed @ HESSIAN) * perturbed).sum(-1) / 2)
    return worst


def wells_gradient(x, wells):
    """The derivative of 1 - Σ d (1 - r² / R²)², once more, without the run-time checks of shapes."""
    total = torch.zeros_like(x)
    for centre, radius, depth in zip(wells.centres, wells.radii, wells.depths, strict=True):
        away = x - torch.tensor(centre, dtype=torch.float64)
        total += 4 * depth / radius**2 * (1 - away.square().sum(1, keepdim=True) / radius**2).clamp(min=0) * away
    return total


def wells(num_params):
    loss = make_sharp_and_flat_wells(num_params)
    name = f"two wells, {num_params}-D"
    return Target(name, num_params, partial(wells_gradient, wells=loss), loss.worst_loss, lam=4.0, rho=0.3)


QUARTIC = Target("quartic", 1, quartic_gradient, quartic_worst_loss, lam=10.0, rho=0.4)
VALLEY = Target("valley", 2, valley_gradient, valley_worst_loss, lam=8.0, rho=0.4, ascent_steps=6)
LINE, PLANE = wells(1), wells(2)
TARGETS = [QUARTIC, VALLEY, LINE, PLANE]


def flat_closure(target, model, flat):
    closure = make_closure(model, target.gradient)
    return make_row_sam_closure(closure, model, target.rho, target.ascent_steps) if flat else closure


def run_sampler(sampler, target, flat, step_size, time, chains, snapshots=50, seed=0):
    """Draws of shape `chains x snapshots x params`, of the second half of chains that start from the prior.

    Args:
        step_size: On the negative log posterior.
        time: Number of steps times the step size.
    """
    torch.manual_seed(seed)
    model = BatchedChains(torch.randn(chains, target.num_params, dtype=torch.float64))
    make = partial(torch.optim.SGD, lr=step_size * target.lam)
    state = sampler.init(model, make, NUM_DATA)
    closure = flat_closure(target, model, flat)
    steps = round(time / step_size)
    period, draws = steps // 2 // snapshots, []
    for left in reversed(range(steps)):
        sampler.step(state, closure)
        if left % period == 0 and left < period * snapshots:
            draws.append(model.weight.detach().clone())
    return torch.stack(draws, dim=1)


def mean_and_error(values):
    """Of values `chains x snapshots`; chains are independent of each other."""
    by_chain = values.mean(1)
    return float(by_chain.mean()), float(by_chain.std()) / math.sqrt(len(by_chain))


def best_member(target, values, mean, std):
    """The minimum of λ E_q[values] + KL(q || prior) over factorised Gaussians near a start, by quadrature."""
    d, axis = target.num_params, target.points().flatten(0, -2)[-len(target.points()) :, -1]

    def cost(v):
        mean, std = v[:d], [math.exp(u) for u in v[d:]]
        expected = values
        for k in reversed(range(d)):  # the last coordinate first
            expected = expected @ torch.softmax(-(((axis - mean[k]) / std[k]) ** 2) / 2, 0)
        divergence = sum((m**2 + s**2 - 1) / 2 - math.log(s) for m, s in zip(mean, std, strict=True))
        return target.lam * float(expected) + divergence

    options = {"xatol": 1e-6, "fatol": 1e-12, "maxiter": 2000}
    optimum = minimize(cost, [*mean, *[math.log(std)] * d], method="Nelder-Mead", options=options)
    assert optimum.success
    return torch.from_numpy(optimum.x[:d]), torch.from_numpy(optimum.x[d:]).exp(), optimum.fun


def fit_sgvb(target, flat, start, std, fits=64, steps=1500):
    """Means and standard deviations of SGVB's fits, all from one start, of shape `fits x params`."""
    torch.manual_seed(0)
    model = BatchedChains(torch.tensor(start, dtype=torch.float64).expand(fits, -1))
    posterior = SGVB(prior_precision=1.0, temperature=target.temperature, initial_std=std)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.02), NUM_DATA)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(state.optimizer, steps)
    closure = flat_closure(target, model, flat)
    for _ in range(steps):
        posterior.step(state, closure)
        schedule.step()
    raw = state.statistics["raw_scale"].detach()
    return model.weight.detach(), raw_to_std(raw).view(fits, -1)
