"""IVON: steps against the published update; fixed points, also with SAM and PosteriorSAM, in closed form."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from flatbayes import MLP, Arrays, TrainingConfig, fit
from flatbayes.core.context import vectorized
from flatbayes.core.tensor_lists import flatten
from flatbayes.flatness import SAM, Plain, PosteriorSAM
from flatbayes.posteriors.ivon import IVON, gaussian_std, update_hessian

NUM_DATA = 40


class Weights(nn.Module):
    """Two parameters, and a third one that the loss does not use."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, size in (("first", 3), ("second", 2), ("unused", 2)):
            values = torch.randn(size, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(values))

    def closure(self, seen=None):
        def closure():
            self.zero_grad()
            if seen is not None:
                seen.append(flatten([*self.parameters()]))
            loss = (self.first.sin() * torch.tensor([3.0, -1.0, 0.5])).sum() + self.second.square().sum()
            loss.backward()
            return loss.detach()

        return closure


def compute_published_steps(posterior, model, lr, decay, steps, random_sizes=(3, 2, 2)):
    """Means and h after some steps, written from Algorithm 1 with one scalar operation per line."""
    mean = flatten([*model.parameters()])
    size, total = sum(random_sizes), len(mean)
    h, momentum = torch.full_like(mean, posterior.initial_hessian), torch.zeros_like(mean)
    ess = NUM_DATA / (posterior.temperature or 1.0)
    for t in range(1, steps + 1):
        std = 1 / (ess * (h + decay)).sqrt()
        gs, curvatures = [], []
        for _ in range(posterior.num_samples):
            noise = torch.zeros(total, dtype=torch.float64)
            noise[total - size :] = torch.randn(size, dtype=torch.float64)  # the last parameters are random
            theta = (mean + std * noise).requires_grad_()
            first, second = theta[:3], theta[3:5]
            loss = (first.sin() * torch.tensor([3.0, -1.0, 0.5])).sum() + second.square().sum()
            (g,) = torch.autograd.grad(loss, theta)
            gs.append(g)
            is_price = posterior.hessian_estimator == "price"
            curvatures.append(ess * (h + decay) * std * noise * g if is_price else ess * g**2)
        g, curvature = torch.stack(gs).mean(0), torch.stack(curvatures).mean(0)
        momentum = posterior.beta1 * momentum + (1 - posterior.beta1) * g
        r = 1 - posterior.beta2
        h_new = (1 - r) * h + r * curvature + r**2 * (h - curvature) ** 2 / (2 * (h + decay))
        h = torch.where(torch.arange(total) >= total - size, h_new, h)
        direction = (momentum / (1 - posterior.beta1**t) + decay * mean) / (h + decay)
        direction = direction * (posterior.initial_hessian + decay if posterior.rescale_lr else 1)
        if posterior.clip_radius is not None:
            direction = direction.clamp(-posterior.clip_radius, posterior.clip_radius)
        mean = mean - lr * direction
    return mean, h[total - size :]


@pytest.mark.parametrize(
    "posterior",
    [
        IVON(beta2=0.9),
        IVON(prior_precision=4.0, temperature=0.5, initial_hessian=2.0, beta1=0.5, beta2=0.8, num_samples=3),
        IVON(beta2=0.9, hessian_estimator="gradsq", rescale_lr=False, clip_radius=0.3, num_samples=2),
        IVON(prior_precision=4.0, beta2=0.9, clip_radius=0.3, params=["second", "unused"]),
        IVON(beta2=0.9, rescale_lr=False, params=["second", "unused"]),
    ],
    ids=repr,
)
def test_steps_are_those_of_the_published_algorithm(posterior):
    model, weight_decay = Weights(), 0.05 if posterior.prior_precision is None else 0.0
    decay = weight_decay or posterior.prior_precision * (posterior.temperature or 1.0) / NUM_DATA
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.1, weight_decay=weight_decay), NUM_DATA)
    sizes = (3, 2, 2) if posterior.params == "all" else (2, 2)
    torch.manual_seed(3)
    mean, hessian = compute_published_steps(posterior, model, 0.1, decay, 4, sizes)
    torch.manual_seed(3)
    for _ in range(4):
        posterior.step(state, model.closure())
    torch.testing.assert_close(flatten([*model.parameters()]), mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.statistics["hessian"], hessian, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.statistics["mean"], mean[-sum(sizes) :], rtol=1e-12, atol=1e-12)


def test_the_first_step_has_the_gradient_itself():
    """Without bias correction it would be a tenth of it, as after a resume that forgets the number of steps."""
    model = Weights()
    before = model.second.detach().clone()
    posterior, seen = IVON(prior_precision=0.0, initial_hessian=1e12, rescale_lr=True), []
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.1), NUM_DATA)
    posterior.step(state, model.closure(seen))
    torch.testing.assert_close(model.second.detach(), before - 0.1 * 2 * before, rtol=1e-5, atol=1e-5)


def test_h_stays_positive_for_any_curvature():
    hessian, decay = torch.full((3,), 0.5, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    update_hessian(hessian, torch.tensor([-1e6, 0.0, -60.5], dtype=torch.float64), decay, 0.99)
    assert (hessian + decay >= 0.3 - 1e-12).all()  # at least half of what it was
    assert hessian[2].item() == pytest.approx(0.5 - 0.61 + 0.61**2 / 1.2)


# Fixed points


class Chains(nn.Module):
    """Networks of one weight each, which are vectorized."""

    def __init__(self, count, start):
        super().__init__()
        self.theta = nn.Parameter(torch.full((count, 1), start, dtype=torch.float64))


def run(flat, *, curvature, centre, sample_size, decay, start, rates, num_samples=1, count=1000):
    """Mean of m and of h over chains and the last third of the steps, on curvature/2 (theta - centre)².

    Args:
        start: Initial mean and h.
        rates: Learning rate and 1 - beta2 of each step.
    """
    model = Chains(count, start[0])

    def closure():
        distance = model.theta.detach() - centre
        model.theta.grad = curvature * distance
        return curvature / 2 * distance.square().mean(1)

    posterior = IVON(decay * sample_size, initial_hessian=start[1], rescale_lr=False, num_samples=num_samples)
    torch.manual_seed(0)
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.1), sample_size)
    means, hessians = [], []
    with vectorized(count):
        for lr, memory_rate in rates:
            state.optimizer.param_groups[0]["lr"] = lr
            replace(posterior, beta2=1 - memory_rate).step(state, flat(closure, model))
            means.append(model.theta.detach().mean())
            hessians.append(state.statistics["hessian"].mean())
    late = len(rates) * 2 // 3
    return float(torch.stack(means[late:]).mean()), float(torch.stack(hessians[late:]).mean())


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_the_estimate_of_the_curvature_is_unbiased_at_any_mean(mean):
    """With 1 - beta2 near 0, (new h - h) / (1 - beta2) is the estimate minus h."""
    a, rate, count = 2.0, 1e-7, 100_000
    _, hessian = run(
        Plain(),
        curvature=a,
        centre=0.0,
        sample_size=1,
        decay=0.5,
        start=(mean, 0.5),
        rates=[(0.0, rate)],
        count=count,
    )
    error = math.sqrt((2 * a**2 + a**2 * mean**2) / count)
    assert (hessian - 0.5) / rate + 0.5 == pytest.approx(a, abs=4 * error)


@pytest.mark.parametrize(("beta2", "num_samples"), [(0.99, 1), (0.99, 4)])
def test_the_fixed_point_on_a_quadratic_with_the_bias_of_h(beta2, num_samples):
    """m = a t0 / (a + d); h - a = (1 - beta2) v / (2 S (a + d)) to first order, v the variance of the estimate."""
    a, t0, size, d = 2.0, 1.0, 100, 0.1
    c = d * t0 / (a + d)
    bias = (1 - beta2) * (2 * a**2 + a**2 * c**2 * size * (a + d)) / (2 * num_samples * (a + d))
    options = {"curvature": a, "centre": t0, "sample_size": size, "decay": d, "num_samples": num_samples}
    mean, hessian = run(Plain(), **options, start=(0.9, 2.0), rates=[(0.05, 1 - beta2)] * 400, count=3000)
    assert mean == pytest.approx(a * t0 / (a + d), abs=3e-4)
    assert hessian - a == pytest.approx(bias, abs=0.005 if num_samples == 1 else 0.003)


ROOT = math.sqrt(2 * math.pi)
KINK = 2 * 4 * 0.2 * 10 / ROOT
PAIR = {"curvature": 4.0, "sample_size": 10, "decay": 0.1, "start": (0.46, 9.5)}


@pytest.mark.parametrize(
    ("flat", "options", "mean", "std"),
    [
        (SAM(rho=0.2), PAIR | {"centre": 0.5}, 0.4953262, 0.0967063),
        pytest.param(
            SAM(rho=0.2),
            PAIR | {"centre": 0.0, "start": (-0.04, 9.5)},
            0.0,
            (-KINK + math.sqrt(KINK**2 + 4 * 41)) / (2 * 41),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            SAM(rho=0.3),
            {"curvature": 3.0, "centre": 1.0, "sample_size": 100, "decay": 0.5, "start": (0.985, 37.0)},
            0.98883,
            0.0161054,
            marks=pytest.mark.slow,
        ),
        (PosteriorSAM(rho=0.5), PAIR | {"centre": 0.0, "start": (0.02, 5.0)}, 0.0, (10 * (5.59577 + 0.1)) ** -0.5),
    ],
    ids=["SAM", "SAM at the centre", "O18", "PosteriorSAM"],
)
def test_with_a_flatness_the_fixed_point_is_the_optimum_of_the_sharpness_aware_objective(flat, options, mean, std):
    """With h from the clean gradient the standard deviation of the first case would be .156."""
    found, hessian = run(flat, **options, rates=[(2 / (30 + k), 2 / (30 + k)) for k in range(600)])
    found_std = (options["sample_size"] * (hessian + options["decay"])) ** -0.5
    assert found == pytest.approx(mean, abs=4e-4)
    assert found_std == pytest.approx(std, rel=3e-3 if std > 0.05 else 1e-2)


# Parameters, draws and training


def test_a_parameter_without_a_gradient_converges_to_the_prior():
    model, posterior = Weights(), IVON(prior_precision=4.0, beta2=0.9, initial_hessian=0.5)
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.1), NUM_DATA)
    for _ in range(300):
        posterior.step(state, model.closure())
    std = gaussian_std(state.statistics["hessian"], state.statistics["weight_decay"], float(NUM_DATA))
    torch.testing.assert_close(std[-2:], torch.full((2,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(model.unused.detach(), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-6)


def test_draws_have_the_standard_deviations_of_h():
    model, posterior = Weights(), IVON(temperature=0.5)
    state = posterior.init(model, partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), NUM_DATA)
    state.statistics["hessian"].copy_(torch.arange(1.0, 8.0))
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        with posterior.draw(state, generator) as drawn:
            draws.append(flatten([*drawn.parameters()]))
    exact = (80 * (torch.arange(1.0, 8.0).double() + 0.1)) ** -0.5
    torch.testing.assert_close(torch.stack(draws).std(0), exact, rtol=0.06, atol=0)
    torch.testing.assert_close(torch.stack(draws).mean(0), state.statistics["mean"], rtol=0, atol=0.012)


def test_micro_batches_of_a_step_have_one_weight_sample():
    """With noise for each micro-batch, the results would differ by more than rounding."""
    inputs = torch.randn(48, 5, generator=torch.Generator().manual_seed(1))
    data = Arrays(inputs.numpy(), (inputs[:, 0] > 0).long().numpy())
    weights = []
    for accumulation_steps in (1, 4):
        config = TrainingConfig(epochs=2, batch_size=16, optimization={"accumulation_steps": accumulation_steps})
        fitted = fit(MLP, data, IVON(beta2=0.9), SAM(rho=0.05), config)
        weights.append(flatten([fitted.states[0].statistics[name] for name in ("mean", "hessian")]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


# Validation


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1"),
        ({"beta2": -0.1}, "beta2 must be at least 0 and below 1"),
        ({"initial_hessian": 0.0}, "initial_hessian must be positive and finite"),
        ({"clip_radius": math.inf}, "clip_radius must be positive and finite"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"prior_precision": -1.0}, "prior_precision"),
    ],
)
def test_invalid_hyperparameters_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        IVON(**options)


def make_groups(params):
    return torch.optim.SGD([{"params": params[:1]}, {"params": params[1:], "weight_decay": 0.1}], lr=0.1)


@pytest.mark.parametrize(
    ("posterior", "make_optimizer", "message"),
    [
        (IVON(), torch.optim.Adam, r"momentum and step sizes, .* got Adam.* the momentum of IVON is beta1"),
        (IVON(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), r"got momentum=0\.9"),
        (IVON(), make_groups, r"weight_decay=0\.0 and 0\.1"),
        (IVON(1.0), partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), "prior is given twice"),
    ],
)
def test_other_optimizers_are_refused(posterior, make_optimizer, message):
    with pytest.raises(ValueError, match=message):
        posterior.init(Weights(), make_optimizer, NUM_DATA)
