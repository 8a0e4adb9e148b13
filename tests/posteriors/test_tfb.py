"""TFB: isotropic noise in the column space of B, and the largest standard deviation within a tolerance."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from flatbayes import (
    MAP,
    SAM,
    TFB,
    Categorical,
    Ensemble,
    FittedPosterior,
    Gaussian,
    Plain,
    evaluate,
    fit,
    tune_draws,
)
from flatbayes.core.adapters import find_factor_pairs
from flatbayes.posteriors.tfb import invert_columns
from flatbayes.training import TrainingConfig
from flatbayes.training.draw_search import find_largest

CONFIG = TrainingConfig(epochs=10, batch_size=20, num_validations=0)


class Adapted(nn.Module):
    """A frozen linear layer with an adapter, named as in torchtune."""

    def __init__(self, num_inputs=4, num_outputs=3, rank=2):
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs).requires_grad_(False)
        self.lora_a, self.lora_b = nn.Linear(num_inputs, rank, bias=False), nn.Linear(rank, num_outputs, bias=False)

    def forward(self, x):
        return self.base(x) + self.lora_b(self.lora_a(x))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make_state(model, posterior):
    return posterior.init(model, None, 10)


def product_noise(model, posterior, seed=0):
    """Noise of B A in a draw."""
    mean = model.lora_b.weight @ model.lora_a.weight
    with posterior.draw(make_state(model, posterior), generator(seed)) as network:
        return (network.lora_b.weight @ network.lora_a.weight - mean).detach()


def make_data(num_rows=120):
    inputs = torch.randn(num_rows, 4, generator=generator(1))
    targets = (inputs[:, 0] + 0.5 * torch.randn(num_rows, generator=generator(2)) > 0).long()
    return (inputs[:60], targets[:60]), (inputs[60:], targets[60:])


@pytest.mark.parametrize("shape", [(5, 3), (3, 3), (2, 4)])
def test_noise_of_the_product_is_isotropic_in_the_column_space_of_b(shape):
    """B root rootᵀ Bᵀ is the projection U Uᵀ on the columns of B, and there is one row of noise for each column."""
    outer = torch.randn(shape, dtype=torch.float64, generator=generator())
    basis = outer @ invert_columns(outer)
    torch.testing.assert_close(basis @ basis.T, outer @ torch.linalg.pinv(outer), rtol=0, atol=1e-12)
    torch.testing.assert_close(basis.T @ basis, torch.eye(min(shape), dtype=torch.float64), rtol=0, atol=1e-12)


def test_covariance_of_draws():
    """cov vec(noise of B A) = std² U Uᵀ ⊗ I: all draws of one factor of noise, in an adapter with many inputs."""
    model, std = Adapted(num_inputs=100_000, num_outputs=3).double(), 0.3
    noise = product_noise(model, TFB(std=std))
    basis = torch.linalg.svd(model.lora_b.weight.detach(), full_matrices=False)[0]
    torch.testing.assert_close(noise @ noise.T / 100_000, std**2 * basis @ basis.T, rtol=0, atol=2e-3)


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_noise_does_not_depend_on_the_scale_of_b(factor):
    model = Adapted().double()
    expected = product_noise(model, TFB(std=0.1))
    with torch.no_grad():
        model.lora_b.weight.mul_(factor)
        model.lora_a.weight.div_(factor)
    torch.testing.assert_close(product_noise(model, TFB(std=0.1)), expected, rtol=1e-9, atol=1e-12)
    assert float(expected.abs().max()) > 0.01


def test_directions_that_b_maps_to_nothing_have_no_noise():
    model = Adapted()
    with torch.no_grad():
        model.lora_b.weight[:, 1] = 2 * model.lora_b.weight[:, 0]  # rank 1
    assert torch.linalg.matrix_rank(product_noise(model, TFB(std=0.1)), rtol=1e-4) == 1
    nn.init.zeros_(model.lora_b.weight)  # before training
    assert not product_noise(model, TFB(std=0.1)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_adapter_that_is_zero_has_no_noise(dtype):
    assert torch.equal(invert_columns(torch.zeros(5, 2, dtype=dtype)), torch.zeros(2, 2, dtype=dtype))


def test_draws_change_inner_factors_only_and_are_restored():
    model, posterior = Adapted(), TFB(std=0.1)
    state, before = make_state(model, posterior), {k: v.clone() for k, v in model.state_dict().items()}
    with posterior.draw(state, generator(1)) as network:
        one = network.lora_a.weight.clone()
        changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
        with posterior.draw(state, generator(1)) as nested:
            assert torch.equal(nested.lora_a.weight, one)  # around the mean, not around the outer draw
    assert changed == ["lora_a.weight"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_without_adapters_all_weight_matrices_have_isotropic_noise():
    model, posterior = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 2)), TFB(std=0.1)
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    with posterior.draw(make_state(model, posterior), generator()) as network:
        assert float((network[0].weight.detach() - weight).std()) == pytest.approx(0.1, rel=0.01)
        assert torch.equal(network[0].bias, bias)


@pytest.mark.parametrize("flatness", [Plain(), SAM(rho=0.05)])
def test_training_is_that_of_map_and_the_choice_needs_none(flatness):
    train, val = make_data()
    torch.manual_seed(0)
    model = Adapted(num_outputs=2)
    fitted = fit(model, train, TFB(), flatness, CONFIG, val=val)
    trained = fit(model, train, MAP(), flatness, CONFIG, val=val)
    for one, other in zip(fitted.states[0].model.parameters(), trained.states[0].model.parameters(), strict=True):
        assert torch.equal(one, other)
    state = TFB().init(trained.states[0].model, None, 60)
    afterwards = tune_draws(replace(trained, posterior=TFB(), states=[state]), val)
    assert afterwards.posterior == fitted.posterior
    assert afterwards.info["training"]["draw_options"] == fitted.info["training"]["draw_options"]
    assert torch.equal(afterwards.predict(val[0]).mean, fitted.predict(val[0]).mean)


@pytest.mark.parametrize("criterion", ["nll", "pseudo_nll", "changed_classes"])
def test_the_choice_is_the_largest_value_within_the_tolerance(criterion):
    train, val = make_data()
    fitted = fit(Adapted(num_outputs=2), train, TFB(criterion=criterion, max_change=0.02), Plain(), CONFIG, val=val)
    choice = fitted.info["training"]["draw_options"]["std"]
    changes = dict(map(tuple, choice["changes"]))
    std = fitted.posterior.std
    assert std == choice["value"] == max(value for value, change in changes.items() if change <= 0.02)
    assert min(value for value, change in changes.items() if change > 0.02) < 1.1 * std
    assert "the largest with at most 0.02" in fitted.summary()
    centre, drawn = (
        replace(fitted, posterior=replace(fitted.posterior, std=value)).predict(val[0], num_draws=10)
        for value in (0.0, std)
    )
    targets = val[1] if criterion == "nll" else centre.top_class
    before, after = (-p.log_probs.gather(1, targets[:, None]).mean() for p in (centre, drawn))
    expected = (drawn.top_class != centre.top_class).double().mean() if "classes" in criterion else after / before - 1
    assert abs(float(expected)) == pytest.approx(abs(changes[std]), rel=1e-6)


def test_a_loss_that_is_twice_as_steep_accepts_half_the_noise():
    """The inputs times 2 and B A divided by 2 are the same network with half the tolerance in its weights."""
    train, val = make_data()
    fitted = fit(Adapted(num_outputs=2), train, TFB(std=0.0), Plain(), CONFIG, transform=None)

    def choose(factor):
        model = Adapted(num_outputs=2)
        model.load_state_dict(fitted.states[0].model.state_dict())
        with torch.no_grad():
            model.base.weight /= factor
            model.lora_a.weight /= factor
        candidate = FittedPosterior(TFB(max_change=0.05), [make_state(model, TFB())], Categorical(2))
        return tune_draws(candidate, factor * val[0], val[1]).posterior.std

    assert choose(2.0) / choose(1.0) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("threshold", [1e-12, 3e-4, 1e-3, 0.0123, 0.5, 20.0])
def test_search_for_the_largest_accepted_value(threshold):
    tried = []

    def is_accepted(value):
        tried.append(value)
        return value <= threshold

    result = find_largest(is_accepted, 0.001, 0.015)
    if threshold == 1e-12:
        assert result == 0.0
        return
    assert result == max(value for value in tried if value <= threshold)
    assert threshold / 15 ** (1 / 64) < result <= threshold


def test_values_without_limit_are_the_largest_that_was_tried():
    tried = []
    assert find_largest(lambda value: not tried.append(value), 0.001, 0.015) == max(tried)


def test_regression_and_ensembles():
    train, val = make_data()
    train, val = ((x, x[:, :1] + 0.1 * y[:, None]) for x, y in (train, val))
    fitted = fit(
        lambda: Adapted(num_outputs=2),
        train,
        Ensemble(TFB(), size=2),
        Plain(),
        CONFIG,
        val=val,
        likelihood=Gaussian(),
    )
    assert fitted.posterior.member.std > 0
    assert math.isfinite(evaluate(fitted, val).metrics["nll"])
    no_classes, never = TFB(criterion="pseudo_nll"), lambda *_: pytest.fail("a step was taken")
    with pytest.raises(ValueError, match="about classes"):
        fit(Adapted, train, no_classes, Plain(), CONFIG, val=val, likelihood=Gaussian(), callback=never)
    with pytest.raises(ValueError, match="about classes"):
        tune_draws(replace(fitted, posterior=Ensemble(TFB(criterion="changed_classes"), size=2)), val)
    with pytest.raises(ValueError, match="nothing to choose"):
        tune_draws(fitted, val)


def test_a_draw_needs_finalize_after_a_step():
    model, posterior = Adapted(), TFB(std=0.1)
    state = posterior.init(model, lambda params: torch.optim.SGD(params, lr=0.1), 10)

    def closure():
        model.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss.detach()

    posterior.step(state, closure)
    with pytest.raises(RuntimeError, match="call posterior.finalize"), posterior.draw(state, generator()):
        pass
    posterior.finalize(state, (), nn.functional.mse_loss)
    assert torch.equal(state.statistics["mean"], model.lora_a.weight.detach().flatten())


def test_values_are_checked():
    for options in ({"std": -1.0}, {"std": float("nan")}, {"max_change": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            TFB(**options)


def test_the_scale_of_each_rank_of_adalora_belongs_to_b():
    """AdaLoRA has B diag(E) A."""
    model = nn.Module()
    model.lora_A, model.lora_B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(3, 2))
    model.lora_E = nn.Parameter(torch.tensor([[2.0], [-3.0]]))
    (pair,) = find_factor_pairs(model).values()
    torch.testing.assert_close(pair.outer_matrix, model.lora_B.detach() * torch.tensor([2.0, -3.0]))


def test_factors_of_other_shapes_are_refused():
    model = Adapted()
    model.lora_b = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="are not the factors of a product"):
        find_factor_pairs(model)
