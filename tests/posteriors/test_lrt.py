"""Variational inference with activation samples: objective, optima, draws, and refused models."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

from flatbayes.core.gaussians import invert_softplus
from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.flatness import SAM, Plain
from flatbayes.posteriors.lrt import LRT, accumulate_kl_gradients, raw_scale_key
from flatbayes.posteriors.sgvb import SGVB
from flatbayes.posteriors.variational import gaussian_kl, raw_to_std
from flatbayes.posteriors.variational_layers import SoftplusScale
from flatbayes.posteriors.variational_network import bayesian_parameters, find_variational_layers
from support import Counted, batch, get_weight_distribution, network, snapshot

STILL = partial(torch.optim.SGD, lr=0.0)
each_estimator = pytest.mark.parametrize("estimator", ["local", "flipout"])


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)).double()


def examples():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(7, 5, generator=generator, dtype=torch.float64), torch.arange(7) % 3


def closure_on(model, zero_grad=None, pieces=1):
    x, y = examples()

    def closure():
        (zero_grad or model.zero_grad)()
        total = torch.zeros(())
        for inputs, targets in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True):
            loss = F.cross_entropy(model(inputs), targets) * (len(inputs) / len(x))
            loss.backward()
            total = total + loss.detach()
        return total

    return closure


def line(values, posterior, make_optimizer, num_data):
    """A state over one linear layer without bias, and a function that makes a closure of half the squared error."""
    model = nn.Linear(len(values), 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
    state = posterior.init(model, make_optimizer, num_data)

    def regression(x, y, curvature=1.0):
        def closure():
            state.model.zero_grad()
            loss = curvature * (state.model(x) - y).square().mean() / 2
            loss.backward()
            return loss.detach()

        return closure

    return state, regression


def minimise(posterior, state, closure, steps):
    """Learning rates falling as 1 / step; mean and standard deviation of the weight, averaged over the last half."""
    rates = [group["lr"] for group in state.optimizer.param_groups]
    found = []
    for k in range(steps):
        for group, rate in zip(state.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate / (1 + k / 20)
        posterior.step(state, closure)
        if k >= steps // 2:
            found.append(
                torch.cat([state.model.weight.detach(), raw_to_std(state.statistics[raw_scale_key("weight")])])
            )
    return torch.stack(found).mean(0)


def two_rates(mean, scale):
    """Softplus is nearly flat at small standard deviations, so these need the larger rate."""
    return lambda params: torch.optim.SGD([{"params": params[:-1], "lr": mean}, {"params": params[-1:], "lr": scale}])


# Gradients


@each_estimator
@pytest.mark.parametrize("pieces", [1, 3])
def test_gradients_are_those_of_the_objective(estimator, pieces):
    posterior = LRT(3.0, 0.7, 0.2, estimator)
    state = posterior.init(mlp(), STILL, 40)
    reference = copy.deepcopy(state)
    torch.manual_seed(5)
    returned = posterior.step(state, closure_on(state.model, pieces=pieces))

    torch.manual_seed(5)
    x, y = examples()
    params = bayesian_parameters(reference.model)
    assert list(params) == ["0.weight", "0.bias", "3.weight", "3.bias"]
    scales = [reference.statistics[raw_scale_key(name)].requires_grad_() for name in params]
    layers = [
        (mean, scale.detach()) for mean, scale in zip(params.values(), scales, strict=True)
    ]  # the loss by hand, with noise in the order of the forward pass
    assert len(layers) == 4
    loss = 0
    for inputs, targets in zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True):
        hidden = by_hand(inputs, *params.values(), scales, estimator, reference.model[1])
        loss = loss + F.cross_entropy(hidden, targets) * (len(inputs) / len(x))
    mean, raw = (torch.cat([p.reshape(-1) for p in group]) for group in (params.values(), scales))
    objective = loss + 0.7 / 40 * gaussian_kl(mean, raw_to_std(raw), torch.zeros_like(mean), 3.0)
    others = list(reference.model[1].parameters())
    expected = torch.autograd.grad(objective, [*params.values(), *scales, *others])

    assert returned.item() == pytest.approx(loss.item(), rel=1e-12)  # without the KL
    actual = [p.grad for p in bayesian_parameters(state.model).values()]
    actual += [state.statistics[raw_scale_key(name)].grad for name in params]
    actual += [p.grad for p in state.model[1].parameters()]
    for one, exact in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-10, atol=1e-12)


def by_hand(x, weight1, bias1, weight2, bias2, raws, estimator, norm):
    """The network of `mlp` with noise, the formulas written out."""
    stds = [F.softplus(raw) for raw in raws]
    for weight, bias, std_weight, std_bias in ((weight1, bias1, *stds[:2]), (weight2, bias2, *stds[2:])):
        mean = x @ weight.T + bias
        if estimator == "local":
            variance = x.square() @ std_weight.square().T + std_bias.square() + 1e-16
            x = mean + variance.sqrt() * torch.randn_like(mean)
        else:
            noise_weight, noise_bias = torch.randn_like(weight), torch.randn_like(bias)
            s, r = (torch.randint(0, 2, t.shape, dtype=t.dtype) * 2 - 1 for t in (x, mean))
            x = mean + ((x * s) @ (std_weight * noise_weight).T + std_bias * noise_bias) * r
        x = torch.tanh(norm(x)) if weight is weight1 else x
    return x


def test_kl_gradients_are_those_of_autograd():
    """O14 in the direction of the divergence; and to a tensor of any shape they are added."""
    torch.manual_seed(0)
    mean = nn.Parameter(torch.randn(2, 3, 2, dtype=torch.float64))
    raw = nn.Parameter(torch.randn(2, 3, 2, dtype=torch.float64))
    kl = gaussian_kl(mean.view(-1), raw_to_std(raw.view(-1)), torch.zeros(12, dtype=torch.float64), 5.0)
    exact = torch.autograd.grad(0.3 * kl, [mean, raw])
    mean.grad, raw.grad = torch.ones_like(mean), torch.full_like(raw, 2.0)
    accumulate_kl_gradients([mean], [SoftplusScale.from_raws([raw], "local")[0]], 5.0, 0.3)
    torch.testing.assert_close(mean.grad, 1 + exact[0])
    torch.testing.assert_close(raw.grad, 2 + exact[1])


@each_estimator
@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("flat", [Plain(), SAM(rho=0.5, ascent_steps=2)], ids=["plain", "sam"])
def test_only_the_last_pass_counts_however_gradients_are_zeroed(flat, pieces, estimator):
    results = []
    for way in ("optimizer", "optimizer_fill", "module", "module_fill", "by_hand"):
        posterior = LRT(initial_std=0.3, estimator=estimator)
        state = posterior.init(mlp(), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 10)

        def by_hand(model=state.model):
            for param in model.parameters():
                param.grad = None

        zero_grad = {
            "optimizer": state.optimizer.zero_grad,
            "optimizer_fill": partial(state.optimizer.zero_grad, set_to_none=False),
            "module": state.model.zero_grad,
            "module_fill": partial(state.model.zero_grad, set_to_none=False),
            "by_hand": by_hand,
        }[way]
        torch.manual_seed(0)
        for _ in range(3):
            posterior.step(state, flat(closure_on(state.model, zero_grad, pieces), state.model))
        results.append(flatten([*trainable_parameters(state.model), *state.statistics.values()]))
    for other in results[1:]:
        assert torch.equal(other, results[0])


def test_local_noise_has_less_gradient_variance_than_shared_weights():
    """Kingma et al.'s claim: the variance falls with the batch, where that of shared weights stays."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, dtype=torch.float64), torch.randn(64, 1, dtype=torch.float64)
    spreads = {}
    for posterior in (LRT(initial_std=0.5), LRT(initial_std=0.5, estimator="flipout"), SGVB(initial_std=0.5)):
        state, regression = line([0.5, -1.0, 0.2], posterior, STILL, 64)
        closure, grads = regression(x, y), []
        for _ in range(200):
            posterior.step(state, closure)
            grads.append(state.model.weight.grad.clone())
        spreads[str(posterior)] = torch.stack(grads).var(0).mean().item()
    local, flipout, shared = spreads.values()
    assert local < shared / 10
    assert flipout < shared / 10


def test_unused_parameters_converge_to_the_prior():
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "unused": nn.Linear(2, 2)}).double()
    posterior = LRT(prior_precision=4.0, initial_std=0.3)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.05), 10)
    x, y = examples()

    def closure():
        state.model.zero_grad()
        loss = F.cross_entropy(state.model["used"](x), y)
        loss.backward()
        return loss.detach()

    for _ in range(400):
        posterior.step(state, closure)
    mean = flatten(list(state.model["unused"].parameters()))
    std = raw_to_std(state.statistics[raw_scale_key("unused.weight")])
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-3)
    torch.testing.assert_close(std, torch.full_like(std, 0.5), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("within_one_step", "set_to_none"), [(True, True), (False, True), (False, False)])
def test_a_layer_unused_in_the_last_pass_has_the_gradient_of_the_prior(within_one_step, set_to_none):
    model = nn.ModuleDict({"always": nn.Linear(5, 3), "once": nn.Linear(5, 3)}).double()
    posterior = LRT(prior_precision=4.0, initial_std=0.3)
    state = posterior.init(model, STILL, 10)
    x, y = examples()
    passes = []

    def closure():
        state.model.zero_grad(set_to_none=set_to_none)
        out = state.model["always"](x) + (0 if passes else state.model["once"](x))
        passes.append(1)
        loss = F.cross_entropy(out, y)
        loss.backward()
        return loss.detach()

    for _ in range(1 if within_one_step else 2):
        posterior.step(state, SAM()(closure, state.model) if within_one_step else closure)
    assert len(passes) == 2
    mean, raw = state.model["once"].weight, state.statistics[raw_scale_key("once.weight")]
    actual = mean.grad.clone(), raw.grad.clone()
    mean.grad = raw.grad = None
    accumulate_kl_gradients([mean], [SoftplusScale.from_raws([raw], "local")[0]], 4.0, 1 / 10)
    assert torch.equal(actual[0], mean.grad)
    assert torch.equal(actual[1], raw.grad)


# Flatness


@each_estimator
def test_flatness_perturbs_the_means_with_fixed_noise(estimator):
    model = mlp()
    posterior = LRT(initial_std=0.3, estimator=estimator)
    state = posterior.init(model, STILL, 10)
    x, _ = examples()
    seen, outputs, scales = [], [], []
    inner = closure_on(state.model)
    state.model[0].register_forward_hook(lambda *call: outputs.append(call[2].detach().clone()))

    def closure():
        seen.append({name: p.detach().clone() for name, p in state.model.named_parameters()})
        scales.append(flatten(list(state.statistics.values())))
        return inner()

    posterior.step(state, SAM(rho=0.3)(closure, state.model))
    (first, second), grown = seen, [a - b for a, b in zip(seen[1].values(), seen[0].values(), strict=True)]
    assert flatten(grown).norm().item() == pytest.approx(0.3, rel=1e-12)
    assert torch.equal(*scales)
    shift = x @ (second["0.weight"] - first["0.weight"]).T + second["0.bias"] - first["0.bias"]
    torch.testing.assert_close(outputs[1] - outputs[0], shift)  # the same noise
    after = {name: p.detach() for name, p in state.model.named_parameters()}
    assert all(torch.equal(after[name], first[name]) for name in first)


def test_weight_distribution_is_set_during_the_closure():
    posterior, heard = LRT(initial_std=0.2), []
    state = posterior.init(mlp(), STILL, 10)
    inner = closure_on(state.model)

    def closure():
        heard.append({name: get_weight_distribution(p) for name, p in state.model.named_parameters()})
        return inner()

    posterior.step(state, closure)
    (spreads,) = heard
    assert [name for name, s in spreads.items() if s is None] == ["1.weight", "1.bias"]
    for name in bayesian_parameters(state.model):
        param, found = state.model.get_parameter(name), spreads[name]
        assert torch.equal(found.mean, param)
        torch.testing.assert_close(found.std, torch.full_like(param, 0.2))
        assert not found.mean.requires_grad
        assert not found.std.requires_grad
    assert all(get_weight_distribution(p) is None for p in state.model.parameters())


@pytest.mark.parametrize(("flat", "mean"), [(Plain(), 0.4878048780), (SAM(rho=0.2), 0.5)], ids=["plain", "sam"])
def test_the_maximum_is_outside_the_expectation(flat, mean):
    """O12 and 2.8 (M): SAM moves the mean to the kink and leaves the standard deviation, which SGVB's shrinks."""
    posterior = LRT(initial_std=0.12)
    state, regression = line([0.4], posterior, two_rates(0.02, 0.4), 10)
    x = torch.ones(10_000, 1, dtype=torch.float64)  # so that the noise averages out
    closure = regression(x, 0.5 * x, curvature=4.0)
    torch.manual_seed(0)
    found_mean, found_std = minimise(posterior, state, flat(closure, state.model), 600)
    assert found_mean.item() == pytest.approx(mean, abs=2e-3)
    assert found_std.item() == pytest.approx(0.1561737619, abs=2e-3)


# Optima


@pytest.mark.parametrize(
    ("precision", "temperature", "estimator"),
    [
        (1.0, 1.0, "local"),
        (30.0, 0.25, "flipout"),
        pytest.param(1.0, 1.0, "flipout", marks=pytest.mark.slow),
        pytest.param(30.0, 0.25, "local", marks=pytest.mark.slow),
    ],
)
def test_linear_regression_has_its_closed_form(precision, temperature, estimator):
    """The best factorised Gaussian has the means of the posterior and the diagonal of its precision.

    At a temperature T the precision is XᵀX / T + prior_precision, with unit noise.
    """
    num_data = 20
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(num_data, 3, generator=generator, dtype=torch.float64)
    x[:, 1] += 0.5 * x[:, 0]  # correlated: a mean-field posterior is narrower than the marginals
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    y += torch.randn(num_data, 1, generator=generator, dtype=torch.float64)
    posterior = LRT(precision, temperature, 0.15, estimator)
    state, regression = line([0.5, 0.5, 0.5], posterior, two_rates(0.2, 1 / temperature), num_data)
    torch.manual_seed(0)
    found_mean, found_std = minimise(posterior, state, regression(x.repeat(50, 1), y.repeat(50, 1)), 1500)
    hessian = x.T @ x / temperature + precision * torch.eye(3, dtype=torch.float64)
    mean = torch.linalg.solve(hessian, x.T @ y / temperature).view(-1)
    std = hessian.diagonal().rsqrt()
    assert ((found_mean - mean).abs() / std).max() < 0.03
    assert (found_std / std - 1).abs().max() < 0.03
    assert (hessian.inverse().diagonal().sqrt() / std).max() > 1.06  # not the marginals


def test_biases_have_a_distribution():
    """With one constant input of zero, only the bias is learnt: precision n + prior_precision."""
    posterior, num_data = LRT(prior_precision=2.0, initial_std=0.15), 12
    model = nn.Linear(1, 1).double()
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.02), num_data)
    y = torch.linspace(-1, 2, num_data, dtype=torch.float64).unsqueeze(1)

    def closure():
        state.optimizer.zero_grad()
        loss = (state.model(torch.zeros_like(y)) - y).square().mean() / 2
        loss.backward()
        return loss.detach()

    torch.manual_seed(0)
    stds = []
    for k in range(1000):
        posterior.step(state, closure)
        stds += [raw_to_std(state.statistics[raw_scale_key("bias")]).item()] if k >= 500 else []
    assert sum(stds) / len(stds) == pytest.approx(14**-0.5, rel=0.05)
    assert raw_to_std(state.statistics[raw_scale_key("weight")]).item() == pytest.approx(2**-0.5, rel=0.02)


# Draws


def test_draws_share_one_set_of_weights_among_examples():
    """O15: outputs have covariance Σ sigma² x1 x2 = -.15, unlike the noise of training."""
    posterior = LRT()
    state, _ = line([0.3, -0.2], posterior, None, 10)
    raw = torch.tensor([[invert_softplus(0.4), invert_softplus(0.1)]], dtype=torch.float64)
    state.statistics = {raw_scale_key("weight"): raw}  # replaced, as when a fitted posterior moves to another device
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)
    generator, outputs = torch.Generator().manual_seed(0), []
    for _ in range(2000):
        with posterior.draw(state, generator) as drawn, torch.no_grad():
            outputs.append(drawn(x).view(2))
    outputs = torch.stack(outputs)
    covariance, error = outputs.T.cov(), 5 / math.sqrt(len(outputs))
    assert outputs[:, 0].mean().item() == pytest.approx(-0.1, abs=error * 0.2**0.5)
    assert covariance[0, 0].item() == pytest.approx(0.2, abs=error * 0.2 * 2**0.5)
    assert covariance[0, 1].item() == pytest.approx(-0.15, abs=error * (0.15**2 + 0.2 * 0.1625) ** 0.5)


def test_a_nested_draw_has_the_same_mean():
    posterior = LRT(initial_std=0.3)
    state = posterior.init(mlp(), None, 10)
    with posterior.draw(state, torch.Generator().manual_seed(1)) as outer:
        expected = flatten(list(outer.parameters()))
        with posterior.draw(state, torch.Generator().manual_seed(1)) as inner:
            assert torch.equal(flatten(list(inner.parameters())), expected)
        assert torch.equal(flatten(list(outer.parameters())), expected)
        kept = copy.deepcopy(outer)
    assert torch.equal(flatten(list(kept.parameters())), expected)
    with posterior.draw(posterior.init(kept, None, 10), torch.Generator().manual_seed(1)) as second:
        assert not torch.equal(flatten(list(second.parameters())), expected)  # centred on what was kept


def test_deterministic_parameters_are_trained_and_not_sampled():
    posterior = LRT(initial_std=0.3)
    state = posterior.init(mlp(), partial(torch.optim.Adam, lr=0.1), 10)
    before = state.model[1].weight.detach().clone()
    posterior.step(state, closure_on(state.model))
    learnt = state.model[1].weight.detach().clone()
    assert not torch.equal(before, learnt)
    with posterior.draw(state, torch.Generator()) as drawn:
        assert torch.equal(drawn[1].weight, learnt)
        assert not torch.equal(drawn[0].bias, learnt)


def test_between_steps_the_model_is_the_mean_network():
    posterior = LRT(initial_std=0.3)
    state = posterior.init(mlp(), partial(torch.optim.Adam, lr=0.1), 10)
    posterior.step(state, SAM()(closure_on(state.model), state.model))
    plain = mlp()
    plain.load_state_dict(state.model.state_dict())
    x, _ = examples()
    for training in (True, False):
        assert torch.equal(state.model.train(training)(x), plain.train(training)(x))


def test_statistics_are_plain_data_between_steps():
    posterior = LRT()
    state = posterior.init(mlp(), partial(torch.optim.Adam, lr=0.1), 10)
    posterior.step(state, closure_on(state.model))
    assert sorted(state.statistics) == [f"raw_scale.{n}" for n in ("0.bias", "0.weight", "3.bias", "3.weight")]
    assert not any(scale.requires_grad for scale in state.statistics.values())
    assert not {id(s) for s in state.statistics.values()} & {id(p) for p in state.model.parameters()}
    loaded = posterior.init(mlp(), None, 10)
    loaded.load_state_dict(copy.deepcopy(state.state_dict()))
    outputs = []
    for one in (state, loaded):
        with posterior.draw(one, torch.Generator().manual_seed(1)) as drawn:
            outputs.append(drawn(examples()[0]))
    assert torch.equal(*outputs)


def test_a_failing_closure_leaves_no_noise():
    posterior = LRT()
    state = posterior.init(network(), STILL, 10)
    weights = snapshot(state.model)["weights"]
    with pytest.raises(ArithmeticError):
        posterior.step(state, Counted(state.model, *batch(), fail_at=1))
    assert all(layer.noise is None for layer in find_variational_layers(state.model))
    assert not any(scale.requires_grad for scale in state.statistics.values())
    assert all(torch.equal(p, weights[name]) for name, p in state.model.named_parameters())


# The model


def test_the_copy_keeps_names_hooks_and_options():
    model, calls = network(), []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    state = LRT().init(model, None, 10)
    assert state.model is not model
    assert [type(layer).__name__ for layer in find_variational_layers(state.model)] == [
        "VariationalConv2d",
        "VariationalLinear",
        "VariationalLinear",
    ]
    assert not find_variational_layers(model)
    assert state.model.state_dict().keys() == model.state_dict().keys()
    assert isinstance(state.model[0], nn.Conv2d)
    x, _ = batch()
    assert torch.equal(state.model.eval()(x), model.eval()(x))
    assert len(calls) == 2
    with torch.no_grad():
        state.model[0].weight.add_(1)
    assert not torch.equal(state.model[0].weight, model[0].weight)


def test_the_model_may_be_a_layer():
    state = LRT().init(nn.Linear(2, 1), None, 10)
    assert list(state.statistics) == ["raw_scale.weight", "raw_scale.bias"]


def test_frozen_parameters_have_no_noise_and_are_not_sampled():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    model[1].weight.requires_grad_(False)
    posterior = LRT(initial_std=0.5)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.1), 10)
    assert list(state.statistics) == ["raw_scale.1.bias", "raw_scale.2.weight", "raw_scale.2.bias"]
    assert type(state.model[0]) is nn.Linear
    posterior.step(state, SAM()(closure_on(state.model), state.model))
    with posterior.draw(state, torch.Generator()) as drawn:
        assert torch.equal(drawn[1].weight, model[1].weight)
        assert not torch.equal(drawn[1].bias, model[1].bias)


def test_parameters_frozen_after_training_are_sampled():
    model, posterior = mlp(), LRT(initial_std=0.5)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.1), 10)
    posterior.step(state, closure_on(state.model))
    trained = state.model[0].weight.detach().clone()
    state.model.requires_grad_(False)
    with posterior.draw(state, torch.Generator()) as drawn:
        assert not torch.equal(drawn[0].weight, trained)
    assert torch.equal(state.model[0].weight, trained)


def test_layers_that_share_a_weight_share_its_distribution():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    model[2].weight = model[0].weight
    posterior = LRT(initial_std=0.3)
    state = posterior.init(model, partial(torch.optim.Adam, lr=0.1), 10)
    assert list(state.statistics) == ["raw_scale.0.weight", "raw_scale.0.bias", "raw_scale.2.bias"]
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) % 3

    def closure():
        state.model.zero_grad()
        loss = F.cross_entropy(state.model(x), y)
        loss.backward()
        return loss.detach()

    for _ in range(3):
        posterior.step(state, SAM()(closure, state.model))
    assert state.model[2].weight is state.model[0].weight
    with posterior.draw(state, torch.Generator()) as drawn:
        assert torch.equal(drawn[0].weight, drawn[2].weight)


class Tied(nn.Module):
    """A decoder that reads the weights of its encoder, and one that owns them."""

    def __init__(self, owned):
        super().__init__()
        self.encoder = nn.Linear(5, 3, bias=False)
        self.norm = nn.LayerNorm(5)
        if owned:
            self.decoder = self.encoder.weight

    def forward(self, x):
        return F.linear(self.norm(F.linear(x, self.encoder.weight) @ self.encoder.weight), self.encoder.weight)


def test_refuses_weights_shared_with_a_layer_without_noise():
    with pytest.raises(ValueError, match=r"decoder of the model \(Tied\) is also a parameter of .* Use SGVB"):
        LRT().init(Tied(owned=True), None, 10)


def test_refuses_weights_used_without_noise():
    posterior = LRT()
    state = posterior.init(Tied(owned=False).double(), STILL, 10)
    with pytest.raises(RuntimeError, match=r"encoder\.weight has a gradient that did not .* use SGVB"):
        posterior.step(state, closure_on(state.model))
    state = posterior.init(mlp(), STILL, 10)
    state.model.eval()
    with pytest.raises(RuntimeError, match=r"0\.weight has a gradient .* call train\(\)"):
        posterior.step(state, closure_on(state.model))


class Projection(nn.Linear):
    """A layer that computes something else."""


@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 4),
        nn.GRUCell(4, 4),
        nn.MultiheadAttention(4, 2),
        nn.ConvTranspose2d(4, 4, 3),
        nn.Bilinear(4, 4, 4),
        nn.Embedding(4, 4),
        nn.EmbeddingBag(4, 4),
        Projection(4, 4),
        parametrizations.weight_norm(nn.Linear(4, 4)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_refuses_unsupported_layers(layer):
    model = nn.ModuleDict({"head": nn.Linear(4, 3), "body": nn.ModuleList([layer])})
    with pytest.raises(ValueError, match=rf"body\.0 \({type(layer).__name__}\) has trainable weights, .* Use SGVB"):
        LRT().init(model, None, 10)
    layer.requires_grad_(False)
    assert LRT().init(model, None, 10).statistics.keys() == {"raw_scale.head.weight", "raw_scale.head.bias"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_refuses_parametrized_layers():
    model = nn.Sequential(weight_norm(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match=r"0 \(Linear\) is parametrized: .* are bias, weight_g, weight_v"):
        LRT().init(model, None, 10)


def test_refuses_uninitialized_layers():
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"0 \(LazyLinear\) has no weights yet\. Run the model on a batch first"):
        LRT().init(model, None, 10)
    model(torch.zeros(2, 4))
    assert "raw_scale.0.weight" in LRT().init(model, None, 10).statistics


def test_refuses_a_model_without_supported_layers():
    with pytest.raises(ValueError, match="layers of type Linear, .*LayerNorm has no trainable ones"):
        LRT().init(nn.LayerNorm(3), None, 10)


# Refusals


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.1, weight_decay=5e-4), torch.optim.AdamW])
def test_refuses_a_second_prior(optimizer):
    with pytest.raises(ValueError, match=r"prior is given twice.*Set weight_decay=0"):
        LRT().init(mlp(), optimizer, 10)


def test_refuses_an_optimizer_without_the_standard_deviations():
    def chosen(params):
        return torch.optim.SGD([p for p in params if p.requires_grad], lr=0.1)

    with pytest.raises(ValueError, match="omits the standard deviations"):
        LRT().init(mlp(), chosen, 10)


@pytest.mark.parametrize("name", ["prior_precision", "temperature", "initial_std"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_refuses_invalid_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        LRT(**{name: value})


def test_refuses_an_unknown_estimator():
    posterior = LRT()
    object.__setattr__(posterior, "estimator", "shared")  # beartype, in the tests only, would be first to refuse
    with pytest.raises(ValueError, match="estimator must be local or flipout or token_flipout, got 'shared'"):
        posterior.__post_init__()
