"""SGLD and SGHMC against exact stationary distributions, and the sharpness-aware one (oracle O10).

Losses that are not quadratic, and more than one weight, are in tests/exact.

Many chains run side by side as independent parameters of one module. SAM's ball would join them, so there each
chain has its own worst point, in a closure of its own.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes import MLP, Arrays, Ensemble, fit
from flatbayes.core.spec import short_name
from flatbayes.diagnostics.mixing import effective_sample_size
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors.entropy_mcmc import EntropyMCMC
from flatbayes.posteriors.presets import NEAR_NOISELESS_SGLD
from flatbayes.posteriors.sghmc import SGHMC
from flatbayes.posteriors.sgld import SGLD, noise_std
from flatbayes.training import TrainingConfig
from flatbayes.training.schedules import Constant, Cyclical, Polynomial, SWALinear

SAMPLERS = [SGLD(), SGHMC(), SGHMC(friction=0.4)]
every = pytest.mark.parametrize("posterior", SAMPLERS, ids=["SGLD", "SGHMC-0.1", "SGHMC-0.4"])


class Chains(nn.Module):
    """Independent chains, a row each."""

    def __init__(self, chains, params=1):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(chains, params, dtype=torch.float64))


def descent(lr, **options):
    return lambda params: torch.optim.SGD(params, lr=lr, **options)


def forced(model, force):
    """A closure that leaves `force(weight)` as the gradient of every chain by itself."""

    def closure():
        model.weight.grad = force(model.weight.detach())
        return torch.zeros((), dtype=torch.float64)

    return closure


def simulate(posterior, force, lr, num_data, steps, *, chains, params=1, decay=0.0, seed=0):
    torch.manual_seed(seed)
    model = Chains(chains, params)
    state = posterior.init(model, descent(lr, weight_decay=decay), num_data)
    closure = forced(model, force)
    for _ in range(steps):
        posterior.step(state, closure)
    return state


def friction(posterior):
    return getattr(posterior, "friction", 1.0)


def stationary_variance(curvature, lr, temperature, num_data, friction):
    """Exact variance of w_(t+1) = w_t + (1 - f)(w_t - w_(t-1)) - lr k w_t + noise, an AR(2) process.

    With coefficients p = 2 - f - lr k and q = f - 1 its variance is (1 - q) s² / ((1 + q)((1 - q)² - p²)), where
    s² = 2 f lr T / n; that is T / (n k) / (1 - lr k / (2 (2 - f))). At f = 1, AR(1): s² / (1 - (1 - lr k)²).
    """
    p, q = 2 - friction - lr * curvature, friction - 1
    return (1 - q) * noise_std(lr, temperature, num_data, friction) ** 2 / ((1 + q) * ((1 - q) ** 2 - p**2))


def test_the_stationary_variance_of_this_file():
    assert stationary_variance(2.0, 0.3, 0.7, 50, 1.0) == pytest.approx(
        2 * 0.3 * 0.7 / 50 / (1 - (1 - 0.6) ** 2), rel=1e-12
    )
    for f in (0.1, 0.4, 1.0):
        simple = 0.7 / (50 * 2.0) / (1 - 0.3 * 2.0 / (2 * (2 - f)))
        assert stationary_variance(2.0, 0.3, 0.7, 50, f) == pytest.approx(simple, rel=1e-12)


@every
@pytest.mark.parametrize(
    ("lr", "temperature", "num_data", "prior_precision"),
    [(0.25, 1.0, 10, None), (0.25, 1.0, 1000, 300.0), (0.1, 0.2, 10, 5.0), (0.1, 3.0, 10, 5.0)],
)
def test_variance_of_a_quadratic_is_exact_with_its_discretisation_error(
    posterior, lr, temperature, num_data, prior_precision
):
    a, chains = 2.0, 40_000
    posterior = replace(posterior, temperature=temperature, prior_precision=prior_precision)
    state = simulate(posterior, lambda w: a * w, lr, num_data, 150, chains=chains)
    w = state.model.weight.detach()
    curvature = a + temperature * (prior_precision or 0.0) / num_data
    exact = stationary_variance(curvature, lr, temperature, num_data, friction(posterior))
    assert w.square().mean().item() == pytest.approx(exact, rel=5 * math.sqrt(2 / chains))
    assert abs(w.mean().item()) < 5 * math.sqrt(exact / chains)
    if lr == 0.25 and prior_precision is None:  # the error is there to be seen
        assert w.square().mean().item() > 1.1 * temperature / num_data / curvature


def exact_variance_at_the_end(factors, curvature, lr, num_data, friction):
    """Variance of a chain that starts in the posterior, from the recursion of the covariance of momentum and weight.

    The momentum m = v / sqrt(lr) follows m' = (1 - f) m - h k w + noise, w' = w + h m', with h = sqrt(lr).
    """
    covariance = torch.diag(torch.tensor([1 / (num_data * curvature), 0.0], dtype=torch.float64))
    for factor in factors:
        h = math.sqrt(lr * factor)
        m = torch.tensor([-h * curvature, 1 - friction], dtype=torch.float64)
        matrix = torch.stack([torch.tensor([1.0, 0.0], dtype=torch.float64) + h * m, m])
        direction = torch.tensor([h, 1.0], dtype=torch.float64)
        noise = 2 * friction / num_data * torch.outer(direction, direction)
        covariance = matrix @ covariance @ matrix.T + noise
    return covariance[0, 0].item()


@every
@pytest.mark.parametrize("schedule", [Cyclical(4), Cyclical(2), SWALinear(), Polynomial(), Constant()], ids=str)
def test_the_variance_is_that_of_the_posterior_while_the_learning_rate_changes(posterior, schedule):
    curvature, num_data, chains, steps, f = 2.0, 10, 20_000, 100, friction(posterior)
    lr = 0.3 * f
    torch.manual_seed(0)
    model = Chains(chains)
    with torch.no_grad():
        model.weight.normal_(0, (num_data * curvature) ** -0.5)
    state = posterior.init(model, descent(lr), num_data)
    factors = [schedule.factor(step, steps) for step in range(steps)]
    for factor in factors:
        state.optimizer.param_groups[0]["lr"] = lr * factor
        posterior.step(state, forced(model, lambda w: curvature * w))
    ratio = model.weight.square().mean().item() * num_data * curvature
    exact = exact_variance_at_the_end(factors, curvature, lr, num_data, f) * num_data * curvature
    assert ratio == pytest.approx(exact, rel=4.5 * math.sqrt(2 / chains))
    assert 1 < exact < (1.11 if schedule.num_cycles > 1 else 1.5)  # momenta of the wrong size: up to 2.3
    if f < 1 and schedule.num_cycles > 1:
        assert state.statistics["velocity"].abs().max() < 0.1


def test_a_learning_rate_of_zero_stops_the_chain_and_the_next_step_goes_on():
    torch.manual_seed(0)
    model = Chains(100)
    state = SGHMC().init(model, descent(0.1), 10)
    for lr in (0.1, 0.0, 0.0, 0.1):
        before = model.weight.detach().clone()
        state.optimizer.param_groups[0]["lr"] = lr
        SGHMC().step(state, forced(model, lambda w: 2.0 * w))
        assert torch.equal(model.weight, before) == (lr == 0)
        assert model.weight.isfinite().all()


def test_energy_is_shared_between_position_and_velocity():
    lr, f, n, chains = 0.01, 0.2, 10, 40_000
    state = simulate(SGHMC(friction=f), lambda w: 2.0 * w, lr, n, 300, chains=chains)
    # E v² = 2 (1 - r) var(w), with r = p / (1 - q) the lag-one autocorrelation of the AR(2) process above
    r = (2 - f - lr * 2.0) / (2 - f)
    exact = 2 * (1 - r) * stationary_variance(2.0, lr, 1.0, n, f)
    mean_square_velocity = state.statistics["velocity"].square().mean().item()
    assert mean_square_velocity == pytest.approx(exact, rel=5 * math.sqrt(2 / chains))


@every
def test_std_scales_with_the_root_of_temperature_over_num_data(posterior):
    def force(w):
        return 2.0 * w

    first = simulate(posterior, force, 0.1, 10, 30, chains=5).model.weight
    hot = simulate(replace(posterior, temperature=4.0), force, 0.1, 10, 30, chains=5).model.weight
    many = simulate(posterior, force, 0.1, 90, 30, chains=5).model.weight
    torch.testing.assert_close(hot, 2 * first)
    torch.testing.assert_close(many, first / 3)


COLDEST = 1e-80  # of which the noise is below the last bit of any weight
A, N, RHO, SCALE = 4.0, 10, 0.2, 1.0  # lambda = N at temperature 1
SHARPNESS_AWARE, GIBBS = 0.07479500037652, math.sqrt(2 * 0.024390243902439 / math.pi)  # exact E|theta| of each


def mean_distance(step_size, burn_in, until, chains):
    """E|theta| and its standard error, with the exact sharpness-aware force on each chain.

    The step size is that on the negative log posterior, so the learning rate on the mean loss is N times as large.
    """
    torch.manual_seed(0)
    model = Chains(chains)
    posterior = SGLD(prior_precision=1 / SCALE**2)
    state = posterior.init(model, descent(step_size * N), N)
    closure = forced(model, lambda w: A * (w + RHO * w.sign()))
    total, steps, first = torch.zeros_like(model.weight), round(until / step_size), round(burn_in / step_size)
    for k in range(steps):
        posterior.step(state, closure)
        if k >= first:
            total += model.weight.detach().abs()
    per_chain = total / (steps - first)
    return per_chain.mean().item(), per_chain.std().item() / math.sqrt(chains)


def test_the_sharpness_aware_posterior_of_a_quadratic():
    (coarse, error), (fine, fine_error) = (mean_distance(h, 0.2, 0.8, 8000) for h in (1e-3, 2.5e-4))
    assert coarse / SHARPNESS_AWARE - 1 == pytest.approx(0.056, abs=0.008)
    assert fine / SHARPNESS_AWARE - 1 == pytest.approx(0.0136, abs=0.008)
    extrapolated = (4 * fine - coarse) / 3  # Richardson: the error is linear in the step size
    assert extrapolated == pytest.approx(SHARPNESS_AWARE, rel=5e-3)
    assert GIBBS - extrapolated > 50 * (error + fine_error)


def test_sam_makes_sgld_sample_the_sharpness_aware_posterior():
    step_size, steps = 2e-3, 3000
    means, errors = [], []
    for flat in (SAM(rho=RHO), Plain()):
        torch.manual_seed(0)
        model = Chains(1)
        posterior = SGLD(prior_precision=1 / SCALE**2)
        state = posterior.init(model, descent(step_size * N), N)
        flat_closure, path = flat(forced(model, lambda w: A * w), model), []
        for _ in range(steps):
            posterior.step(state, flat_closure)
            path.append(abs(model.weight.item()))
        chain = torch.tensor(path[200:], dtype=torch.float64)
        means.append(chain.mean().item())
        errors.append(chain.std().item() / math.sqrt(effective_sample_size(chain[None])))
    reference, reference_error = mean_distance(step_size, 0.2, 0.8, 4000)
    assert abs(means[0] - reference) < 4 * math.hypot(errors[0], reference_error)
    assert abs(means[1] - GIBBS / math.sqrt(1 - step_size * (N * A + 1) / 2)) < 4 * errors[1]
    assert GIBBS - means[0] > 8 * errors[0]


def small():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def classified(model):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))

    def closure():
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(8) % 3)
        loss.backward()
        return loss.detach()

    return closure


def run(posterior, flat=SAM(), steps=10, n=10, **options):
    model = small()
    state = posterior.init(model, descent(0.3, **options), n)
    torch.manual_seed(5)
    for _ in range(steps):
        posterior.step(state, flat(classified(model), model))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("flat", [Plain(), SAM(rho=0.1)])
@pytest.mark.parametrize("posterior", [SGLD(temperature=COLDEST), SGHMC(friction=1.0, temperature=COLDEST)])
def test_tiny_temperature_is_gradient_descent_bit_for_bit(posterior, flat, decay):
    model = small()
    optimizer, closure = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=decay), classified(model)
    for _ in range(10):
        flat(closure, model)()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(run(posterior, flat, weight_decay=decay), expected)


def test_tiny_temperature_is_momentum():
    model = small()
    optimizer, closure = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), classified(model)
    for _ in range(10):
        closure()
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(run(SGHMC(friction=0.1, temperature=COLDEST), Plain()), expected)


def test_full_friction_is_sgld_bit_for_bit():
    assert torch.equal(run(SGHMC(friction=1.0, prior_precision=2.0)), run(SGLD(prior_precision=2.0)))


@every
def test_prior_precision_times_temperature_over_data_is_weight_decay(posterior):
    cold = replace(posterior, temperature=0.5)
    torch.testing.assert_close(
        run(replace(cold, prior_precision=6.0), n=40), run(cold, n=40, weight_decay=6.0 * 0.5 / 40)
    )


@every
def test_each_group_has_its_own_learning_rate_and_a_schedule_acts(posterior):
    model = nn.Sequential(nn.Linear(1, 200, bias=False), nn.Linear(1, 200, bias=False)).double()

    def groups(params):
        first, second = params
        return torch.optim.SGD([{"params": [first]}, {"params": [second], "lr": 0.0}], lr=0.08)

    def closure():
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return torch.zeros(())

    before = [p.detach().clone() for p in model.parameters()]
    state = posterior.init(model, groups, 10)
    posterior.step(state, closure)
    std = noise_std(0.08, 1.0, 10, friction(posterior))
    shift = model[0].weight.detach() - before[0]
    assert shift.std().item() == pytest.approx(std, rel=5 / math.sqrt(400))
    assert torch.equal(model[1].weight.detach(), before[1])

    for group in state.optimizer.param_groups:
        group["lr"] = 0.0
    posterior.step(state, closure)
    torch.testing.assert_close(model[0].weight.detach() - before[0], shift)


@every
def test_a_parameter_without_gradient_is_unchanged(posterior):
    model = small()
    model.register_parameter("idle", nn.Parameter(torch.ones(4)))
    state = posterior.init(model, descent(0.1), 10)
    for _ in range(3):
        posterior.step(state, classified(model))
    assert torch.equal(model.idle.detach(), torch.ones(4))


@every
@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "momentum=0.9"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "momentum=0.9, nesterov=True"),
        (lambda p: torch.optim.SGD(p, lr=0.1, dampening=0.5), "dampening=0.5"),
        (lambda p: torch.optim.SGD([{"params": p, "maximize": True}], lr=0.1), "maximize=True"),
        (lambda p: torch.optim.Adam(p, lr=0.1), "Adam"),
        (lambda p: torch.optim.AdamW(p, lr=0.1), "AdamW"),
    ],
)
def test_refuses_optimizers_other_than_plain_sgd(posterior, make, found):
    with pytest.raises(ValueError, match=rf"{type(posterior).__name__} adds noise .*; got {found}\. Use"):
        posterior.init(small(), make, 10)


@every
def test_a_weight_decay_beside_a_prior_is_refused(posterior):
    with pytest.raises(ValueError, match="prior is given twice"):
        replace(posterior, prior_precision=1.0).init(small(), descent(0.1, weight_decay=0.1), 10)


@pytest.mark.parametrize("sampler", [SGLD, SGHMC])
@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan])
def test_refuses_an_invalid_temperature_or_precision(sampler, value):
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        sampler(temperature=value)
    with pytest.raises(ValueError, match="temperature must be positive"):
        sampler(temperature=0.0)
    with pytest.raises(ValueError, match="prior_precision must be finite"):
        sampler(prior_precision=value)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, math.nan])
def test_refuses_an_invalid_friction(value):
    with pytest.raises(ValueError, match="friction must be above 0 and at most 1"):
        SGHMC(friction=value)


def test_the_preset_has_the_noise_of_the_published_code():
    preset = NEAR_NOISELESS_SGLD
    assert noise_std(0.2, preset.temperature, 50_000, preset.friction) == pytest.approx(4e-6, rel=0.01)


@pytest.mark.parametrize("sampler", [SGLD(), SGHMC(), EntropyMCMC()], ids=short_name)
def test_a_temperature_that_is_not_set_is_low_where_the_number_of_epochs_is_automatic(sampler):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=generator)
    data = Arrays(x, (x[:, 0] > 0).long(), val_size=0.2, test_size=0.1).load(seed=0)
    automatic = TrainingConfig(min_epochs=2, min_steps=8, batch_size=16)
    assert fit(MLP, data, sampler, Plain(), automatic).posterior.temperature == 0.01
    warm = replace(sampler, temperature=1.0)
    assert fit(MLP, data, warm, Plain(), automatic).posterior.temperature == 1.0
    fixed = TrainingConfig(epochs=2, batch_size=16)
    first, second = (fit(MLP, data, chosen, Plain(), fixed) for chosen in (sampler, warm))
    assert first.posterior.temperature is None
    for name, tensor in first.states[0].statistics.items():
        assert torch.equal(tensor, second.states[0].statistics[name])  # the same chain
    assert first.posterior.trajectory == second.posterior.trajectory
    ensemble = Ensemble(sampler, size=2).with_automatic_options()
    assert ensemble.member.temperature == 0.01
