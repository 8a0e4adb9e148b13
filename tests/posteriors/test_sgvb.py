"""Mean-field variational inference: gradients against autograd, optima against closed forms (O11, O12, O15)."""

import copy
import math
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from flatbayes.core.gaussians import invert_softplus
from flatbayes.core.parameter_selection import select_parameters
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors.sgvb import SGVB
from flatbayes.posteriors.variational import gaussian_kl, raw_to_std
from support import Counted, assert_same, batch, get_weight_distribution, network, snapshot

STILL = partial(torch.optim.SGD, lr=0.0)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()


def examples():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.arange(7) % 3


def closure_on(model, zero_grad=None):
    x, y = examples()

    def closure():
        (zero_grad or model.zero_grad)()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    return closure


class Scalar(nn.Module):
    """One weight, or a few."""

    def __init__(self, *values):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def quadratic(model, curvature, centre=0.0, losses=None):
    """A closure of curvature/2 |theta - centre|², its gradient by hand."""

    def closure():
        distance = model.theta.detach() - centre
        model.theta.grad = curvature * distance
        loss = curvature / 2 * distance.square().sum()
        if losses is not None:
            losses.append(loss.item())
        return loss

    return closure


def minimise(posterior, state, closure, steps):
    """Robbins-Monro: learning rates falling as 1 / step."""
    rates = [group["lr"] for group in state.optimizer.param_groups]
    for k in range(steps):
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / (1 + k / 20)
        posterior.step(state, closure)


def two_rates(mean, scale):
    """Softplus is nearly flat at small standard deviations, so these need the larger rate."""
    return lambda params: torch.optim.SGD([{"params": params[:-1], "lr": mean}, {"params": params[-1:], "lr": scale}])


# Gradients


@pytest.mark.parametrize("num_samples", [1, 3])
@pytest.mark.parametrize("centre", ["zero", "initial"])
@pytest.mark.parametrize("selection", ["all", "weights"])
def test_gradients_are_those_of_autograd(selection, centre, num_samples):
    model = mlp()
    posterior = SGVB(3.0, 0.7, 0.2, num_samples, selection, centre)
    state = posterior.init(model, STILL, 40)
    with torch.no_grad():
        model[0].weight.add_(0.3)  # the means leave where the prior may be centred
    selected = select_parameters(model, selection, "params")
    names, params = list(selected), list(selected.values())
    mean, raw = flatten(params).requires_grad_(), state.statistics["raw_scale"].detach().clone().requires_grad_()
    others = [p for p in trainable_parameters(model) if not any(p is q for q in params)]
    assert bool(others) is (selection == "weights")

    x, y = examples()
    torch.manual_seed(5)
    losses = []
    for _ in range(num_samples):
        weights = unflatten(mean + raw_to_std(raw) * torch.randn_like(mean), params)
        losses.append(F.cross_entropy(functional_call(model, dict(zip(names, weights, strict=True)), x), y))
    prior_mean = state.statistics.get("prior_mean", torch.zeros_like(mean))
    assert centre == "zero" or prior_mean.any()
    loss = torch.stack(losses).mean()
    objective = loss + 0.7 / 40 * gaussian_kl(mean, raw_to_std(raw), prior_mean, 3.0)
    expected = torch.autograd.grad(objective, [mean, raw, *others])

    torch.manual_seed(5)
    returned = posterior.step(state, closure_on(model))
    assert returned.item() == pytest.approx(loss.item(), rel=1e-13)  # without the KL
    actual = [flatten([p.grad for p in params]), state.statistics["raw_scale"].grad, *[p.grad for p in others]]
    for one, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-11, atol=1e-13)


def test_flatness_perturbs_the_sampled_weights_with_fixed_noise():
    model, seen = Scalar(0.4, -0.2, 0.1), []
    posterior = SGVB(initial_std=0.5)
    state = posterior.init(model, STILL, 10)
    inner = quadratic(model, 2.0)

    def closure():
        seen.append(model.theta.detach().clone())
        return inner()

    torch.manual_seed(2)
    noise = torch.randn(3, dtype=torch.float64)
    torch.manual_seed(2)
    posterior.step(state, SAM(rho=0.3)(closure, model))
    first, second = seen
    torch.testing.assert_close(first, state.statistics["mean"] + 0.5 * noise)
    torch.testing.assert_close(second, first + 0.3 * first / first.norm())


def test_weight_distribution_is_set_for_every_sample_and_not_afterwards():
    model, heard = mlp(), []
    posterior = SGVB(initial_std=0.2, num_samples=2)
    state = posterior.init(model, STILL, 10)
    inner = closure_on(model)

    def closure():
        heard.append({name: get_weight_distribution(p) for name, p in model.named_parameters()})
        return inner()

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    posterior.step(state, closure)
    assert len(heard) == 2
    for spreads in heard:
        assert [name for name, s in spreads.items() if s is None] == ["1.weight", "1.bias"]
        for name in ("0.weight", "0.bias", "3.weight", "3.bias"):
            assert torch.equal(spreads[name].mean, before[name])
            torch.testing.assert_close(spreads[name].std, torch.full_like(before[name], 0.2))
    assert all(get_weight_distribution(p) is None for p in model.parameters())


def test_estimates_the_maximum_within_the_expectation():
    """O11: a maximum outside the expectation has the value .74, and 2 sigma as its gradient in sigma."""
    count, model, losses = 1000, Scalar(0.4), []
    posterior = SGVB(prior_precision=1.0, initial_std=0.5)
    state = posterior.init(model, STILL, 1)
    flat = SAM(rho=0.3)(quadratic(model, 2.0, losses=losses), model)
    torch.manual_seed(0)
    grads = []
    raw = state.statistics["raw_scale"]
    for _ in range(count):
        posterior.step(state, flat)
        grads.append(torch.stack([model.theta.grad, raw.grad / raw.sigmoid()]).view(2))
    prior = torch.tensor([0.4, 0.5 - 1 / 0.5], dtype=torch.float64)
    samples = torch.cat([torch.stack(grads) - prior, torch.tensor(losses[1::2]).double().unsqueeze(1)], 1)
    exact = torch.tensor([1.145773521699924, 1.3476298633137793, 0.8121243403368593], dtype=torch.float64)
    assert ((samples.mean(0) - exact).abs() < 5 * samples.std(0) / math.sqrt(count)).all()
    assert samples.mean(0)[2] > 0.77


def test_more_samples_reduce_the_gradient_variance():
    variances = []
    for num_samples in (1, 8):
        model = Scalar(0.4)
        posterior = SGVB(initial_std=0.5, num_samples=num_samples)
        state = posterior.init(model, STILL, 10)
        closure, grads = quadratic(model, 2.0), []
        torch.manual_seed(0)
        for _ in range(300):
            posterior.step(state, closure)
            grads.append(torch.cat([model.theta.grad, state.statistics["raw_scale"].grad]))
        variances.append(torch.stack(grads).var(0))
    ratio = variances[0] / variances[1]
    assert ((ratio > 5.5) & (ratio < 11.5)).all()  # 8


def test_each_sample_is_one_call_and_moves_running_statistics_once():
    model = network()
    state = SGVB(num_samples=3).init(model, STILL, 10)
    closure = Counted(model, *batch())
    SGVB(num_samples=3).step(state, SAM()(closure, model))
    assert closure.calls == 6
    assert model[1].num_batches_tracked == 3


def test_the_optimizer_can_zero_and_clip_all_gradients():
    """Training loops reach gradients through the optimiser, so nothing may be hidden from it."""
    runs = []
    for through_optimizer in (False, True):
        model = mlp()
        state = SGVB().init(model, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 10)
        closure = closure_on(model, state.optimizer.zero_grad if through_optimizer else None)
        torch.manual_seed(0)
        for _ in range(4):
            SGVB().step(state, SAM()(closure, model))
        runs.append(flatten([*trainable_parameters(model), state.statistics["raw_scale"]]))
    assert torch.equal(*runs)


def test_within_the_closure_the_optimizer_holds_the_gradients_of_the_loss_only():
    """So that clipping all that the optimiser holds clips what the closure has found, and no more."""
    model, seen = mlp(), []
    state = SGVB().init(model, partial(torch.optim.Adam, lr=0.1), 10)
    closure = closure_on(model)

    def watched():
        loss = closure()
        optimized = [p for group in state.optimizer.param_groups for p in group["params"]]
        seen.append([p for p in optimized if p.grad is not None])
        return loss

    for _ in range(2):
        SGVB().step(state, watched)
    assert [{id(p) for p in found} for found in seen] == [{id(p) for p in model.parameters()}] * 2


def test_parameters_unused_by_the_loss_converge_to_the_prior():
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(2, 2)}).double()
    x, y = examples()

    def closure():
        model.zero_grad()
        loss = F.cross_entropy(model["used"](x), y)
        loss.backward()
        return loss.detach()

    posterior = SGVB(prior_precision=4.0, initial_std=0.3)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.05), 10)
    for _ in range(600):
        posterior.step(state, closure)
    torch.testing.assert_close(
        flatten(list(model["unused"].parameters())), torch.zeros(6).double(), rtol=0, atol=1e-3
    )
    std = raw_to_std(state.statistics["raw_scale"])[-6:]
    torch.testing.assert_close(std, torch.full_like(std, 0.5), rtol=0, atol=1e-3)


# Optima


@pytest.mark.parametrize(
    ("flat", "mean", "std"),
    [
        pytest.param(Plain(), 0.4878048780, 0.1561737619, id="plain", marks=pytest.mark.slow),
        pytest.param(SAM(rho=0.2), 0.4953261900, 0.0967063249, id="sam", marks=pytest.mark.slow),
    ],
)
def test_finds_the_optimum_on_a_quadratic(flat, mean, std):
    """O12. With the maximum outside the expectation, SAM would have mean .5 and the plain standard deviation.

    The fast tests have the same optimum, of many fits at once, in tests/exact/test_grid_targets.py.
    """
    model = Scalar(0.4)
    posterior = SGVB(initial_std=0.12, num_samples=4)
    state = posterior.init(model, two_rates(0.02, 0.4), 10)
    torch.manual_seed(0)
    minimise(posterior, state, flat(quadratic(model, 4.0, 0.5), model), 2500)
    assert state.statistics["mean"].item() == pytest.approx(mean, abs=4e-3)  # two standard errors
    assert raw_to_std(state.statistics["raw_scale"]).item() == pytest.approx(std, abs=2e-3)


@pytest.mark.parametrize(
    ("precision", "temperature", "centre"),
    [
        (30.0, 0.25, "initial"),
        pytest.param(1.0, 1.0, "zero", marks=pytest.mark.slow),
        pytest.param(1.0, 0.25, "zero", marks=pytest.mark.slow),
        pytest.param(30.0, 1.0, "initial", marks=pytest.mark.slow),
    ],
)
def test_linear_regression_has_its_closed_form(precision, temperature, centre):
    """The best factorised Gaussian has the means of the posterior and the diagonal of its precision.

    At a temperature T the precision is XᵀX / T + prior_precision, with unit noise.
    """
    num_data = 20
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, 3, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.5 * x[:, 0]  # correlated: a mean-field posterior is narrower than the marginals
    y = x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(20, generator=generator).double()
    model = Scalar(0.5, 0.5, 0.5)

    def closure():
        residual = x @ model.theta.detach() - y
        model.theta.grad = x.T @ residual / num_data
        return residual.square().mean() / 2

    posterior = SGVB(precision, temperature, 0.15, 4, prior_mean=centre)
    state = posterior.init(model, two_rates(0.2, 4.0), num_data)
    torch.manual_seed(0)
    minimise(posterior, state, closure, 1500)
    start = torch.full((3,), 0.5 if centre == "initial" else 0.0, dtype=torch.float64)
    hessian = x.T @ x / temperature + precision * torch.eye(3, dtype=torch.float64)
    mean = torch.linalg.solve(hessian, x.T @ y / temperature + precision * start)
    std = hessian.diagonal().rsqrt()
    found_std = raw_to_std(state.statistics["raw_scale"])
    assert ((state.statistics["mean"] - mean).abs() / std).max() < 0.06
    assert (found_std / std - 1).abs().max() < 0.06
    assert (hessian.inverse().diagonal().sqrt() / std).max() > 1.09  # not the marginals


# Draws


def test_draws_share_one_set_of_weights_among_examples():
    """O15: outputs have covariance Σ sigma² x1 x2 = -.15; with noise per example it would be 0."""
    model = nn.Linear(2, 1, bias=False).double()
    posterior = SGVB()
    state = posterior.init(model, None, 10)
    raw = [invert_softplus(0.4), invert_softplus(0.1)]
    state.statistics = {  # replaced, as when a fitted posterior moves to another device
        "mean": torch.tensor([0.3, -0.2], dtype=torch.float64),
        "raw_scale": torch.tensor(raw, dtype=torch.float64),
    }
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    generator, outputs = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        with posterior.draw(state, generator) as drawn, torch.no_grad():
            outputs.append(drawn(x).view(2))
    outputs = torch.stack(outputs)
    covariance = outputs.T.cov()
    error = 5 / math.sqrt(len(outputs))
    assert outputs[:, 0].mean().item() == pytest.approx(-0.1, abs=error * 0.2**0.5)
    assert covariance[0, 0].item() == pytest.approx(0.2, abs=error * 0.2 * 2**0.5)
    assert covariance[0, 1].item() == pytest.approx(-0.15, abs=error * (0.15**2 + 0.2 * 0.1625) ** 0.5)


def test_between_steps_the_model_is_the_mean_network():
    model = mlp()
    state = SGVB(initial_std=0.3).init(model, partial(torch.optim.Adam, lr=0.1), 10)
    for _ in range(3):
        SGVB().step(state, SAM()(closure_on(model), model))
        means = list(select_parameters(model, "weights", "params").values())
        assert torch.equal(flatten(means), state.statistics["mean"])


def test_a_nested_draw_has_the_same_mean():
    model = mlp()
    state = SGVB(initial_std=0.3).init(model, None, 10)
    with SGVB().draw(state, torch.Generator().manual_seed(1)) as outer:
        expected = flatten(list(outer.parameters()))
        with SGVB().draw(state, torch.Generator().manual_seed(1)) as inner:
            assert torch.equal(flatten(list(inner.parameters())), expected)


def test_deterministic_parameters_are_trained_and_not_sampled():
    model = mlp()
    state = SGVB().init(model, partial(torch.optim.Adam, lr=0.1), 10)
    before = model[1].weight.detach().clone()
    SGVB().step(state, closure_on(model))
    learnt = model[1].weight.detach().clone()
    assert not torch.equal(before, learnt)
    with SGVB().draw(state, torch.Generator()) as drawn:
        assert torch.equal(drawn[1].weight, learnt)


def test_a_failing_closure_leaves_the_mean_network():
    model = network()
    state = SGVB().init(model, STILL, 10)
    weights = snapshot(model)["weights"]
    with pytest.raises(ArithmeticError):
        SGVB().step(state, Counted(model, *batch(), fail_at=1))
    after = snapshot(model)
    assert_same(after, after | {"weights": weights})


def test_the_initial_prior_mean_is_restored_with_the_state():
    one, other = mlp(), mlp()
    with torch.no_grad():
        other[0].weight.add_(1.0)
    posterior = SGVB(prior_mean="initial")
    state = posterior.init(one, partial(torch.optim.Adam, lr=0.1), 10)
    expected = state.statistics["mean"].clone()
    posterior.step(state, closure_on(one))
    loaded = posterior.init(other, None, 10)
    loaded.load_state_dict(copy.deepcopy(state.state_dict()))
    assert torch.equal(loaded.statistics["prior_mean"], expected)
    assert not torch.equal(loaded.statistics["mean"], expected)


# Refusals


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1, weight_decay=5e-4), torch.optim.AdamW])
def test_refuses_a_second_prior(optimizer):
    with pytest.raises(ValueError, match=r"prior is given twice.*Set weight_decay=0"):
        SGVB().init(mlp(), optimizer, 10)


def test_refuses_an_optimizer_without_the_standard_deviations():
    def chosen(params):
        return torch.optim.SGD([p for p in params if p.requires_grad], lr=0.1)

    with pytest.raises(ValueError, match="omits the standard deviations"):
        SGVB().init(mlp(), chosen, 10)


@pytest.mark.parametrize("name", ["prior_precision", "temperature", "initial_std"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refuses_invalid_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        SGVB(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("num_samples", 0), ("params", "head.*"), ("params", []), ("prior_mean", "one")]
)
def test_refuses_unknown_choices(name, value):
    posterior = SGVB()
    object.__setattr__(posterior, name, value)  # beartype, in the tests only, would be first to refuse
    with pytest.raises(ValueError, match=f"{name} must be .* got {re.escape(repr(value))}"):
        posterior.__post_init__()
