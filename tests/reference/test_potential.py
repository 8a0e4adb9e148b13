"""The potential of a network: maxima in balls, and agreement with the gradients that flatness methods compute."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from flatbayes import SAM
from flatbayes.core.tensor_lists import flatten
from flatbayes.reference.config import ReferenceConfig
from flatbayes.reference.potential import NetworkPotential, maximize_loss

HESSIAN = torch.tensor([[5.0, 1.0], [1.0, 0.5]], dtype=torch.float64)


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def make_data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(20, 3, generator=generator, dtype=torch.float64), torch.arange(20) % 3


def test_ascent_reaches_the_exact_maximum_of_a_quadratic():
    def loss_gradient(w):
        return float(w @ HESSIAN @ w) / 2, HESSIAN @ w

    weights, exact = torch.tensor([0.3, -0.7], dtype=torch.float64), 0.8667240270908724
    one, five = (maximize_loss(loss_gradient, weights, 0.4, num_steps) for num_steps in (1, 5))
    assert one.loss == pytest.approx(0.8467625231333479, abs=1e-12)
    assert five.loss == pytest.approx(exact, abs=1e-10)
    assert five.loss <= exact + 1e-14
    assert five.residual < 1e-5 < one.residual
    assert maximize_loss(loss_gradient, weights, 0.0, 5).loss == pytest.approx(0.1375, abs=1e-15)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradient_is_that_of_sam_with_the_prior_at_the_weights(steps):
    inputs, targets = make_data()
    config = ReferenceConfig(prior_precision=2.0, temperature=0.5, rho=0.3, ascent_steps=steps)
    network, loss_fn = make_network(), nn.functional.cross_entropy
    potential = NetworkPotential(network, loss_fn, inputs, targets, config)
    value, gradient = potential(potential.position)
    model = make_network()

    def closure():
        model.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        return loss.detach()

    SAM(rho=0.3, ascent_steps=steps)(closure, model)()
    weights = flatten(list(model.parameters()))
    expected = 20 / 0.5 * flatten([param.grad for param in model.parameters()]) + 2.0 * weights
    assert torch.allclose(gradient, expected, rtol=0, atol=1e-10)
    assert potential.num_gradients == steps + 1
    assert value > NetworkPotential(network, loss_fn, inputs, targets, ReferenceConfig())(weights)[0]


def test_value_and_gradient_agree_at_a_converged_maximum():
    inputs, targets = make_data()
    config = ReferenceConfig(rho=0.2, ascent_steps=30)
    potential = NetworkPotential(make_network(), nn.functional.cross_entropy, inputs, targets, config)
    position = potential.position
    direction = torch.randn(len(position), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ends = [potential(position + sign * 1e-4 * direction)[0] for sign in (1, -1)]
    slope = float(potential(position)[1] @ direction)
    assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "hmc", "rho": 0.1}, "hmc needs a force"),
        ({"sampler": "nuts"}, "mclmc or hmc"),
        ({"rho": -1.0}, "rho is the radius"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"prior_precision": math.inf}, "prior_precision must be positive"),
        ({"num_draws": 3}, "num_draws must be from 4"),
        ({"num_steps": 50, "num_draws": 51}, "num_draws must be from 4"),
        ({"num_chains": 0}, "num_chains must be at least 1"),
        ({"num_tuning_steps": 0}, "num_tuning_steps must be at least 10"),
        ({"target_acceptance": 1.0}, "target_acceptance must be between"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ReferenceConfig(**options)


@pytest.mark.parametrize(("num_steps", "num_draws"), [(10, 4), (100, 7), (100, 100)])
def test_draws_are_evenly_spaced_and_end_with_the_chain(num_steps, num_draws):
    config = ReferenceConfig(num_steps=num_steps, num_draws=num_draws)
    kept = [index for index in range(num_steps) if config.is_draw(index)]
    assert len(kept) == num_draws
    assert kept[-1] == num_steps - 1
    gaps = [b - a for a, b in pairwise(kept)]
    assert max(gaps) - min(gaps) <= 1
