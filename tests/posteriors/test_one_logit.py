"""Curvature of a network with one logit for two classes: the closed form, and that of the same network with two."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from flatbayes.core.tensor_lists import flatten
from flatbayes.likelihoods import Categorical
from flatbayes.likelihoods.categorical import pad_logit
from flatbayes.posteriors import Laplace
from flatbayes.posteriors.curvature_structures import make_curvature
from flatbayes.posteriors.ggn import ExampleVjps, factorize_loss_hessian, ggn_diagonal
from support import compute_ggn

SIZE, PRIOR = 9, 0.7
ONE, TWO = Categorical(2, single_logit=True), Categorical(2)


class TwoLogits(nn.Module):
    """The logits 0 and f of a network f."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return pad_logit(self.network(x).flatten())


@pytest.fixture(autouse=True)
def double_precision():
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(previous)


def make_network(*last):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), *last).eval()


NETWORKS = pytest.mark.parametrize("last", [(), (nn.Flatten(0),)], ids=["column", "vector"])


def make_examples():
    return torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(1)), torch.arange(SIZE) % 2


def compute_closed_form(network, x):
    """Sum of p (1 - p) over the examples, times the outer products of the gradients of the logit."""
    params = {name: param.detach() for name, param in network.named_parameters()}
    jacobians = jacrev(lambda values: functional_call(network, values, (x,)).flatten())(params)
    rows = torch.cat([jacobian.reshape(SIZE, -1) for jacobian in jacobians.values()], 1)
    probs = network(x).detach().sigmoid().reshape(SIZE, 1)
    return rows.T @ (probs * (1 - probs) * rows)


@NETWORKS
def test_the_hessian_of_the_loss_is_that_of_a_sigmoid(last):
    x, y = make_examples()
    outputs = make_network(*last)(x)
    factor = factorize_loss_hessian(outputs, y, ONE.loss)
    probs = outputs.detach().sigmoid().flatten()
    assert factor.shape == (SIZE, 1, 1)
    torch.testing.assert_close(factor.flatten().square(), probs * (1 - probs))


@NETWORKS
def test_the_ggn_is_the_closed_form(last):
    network, (x, y) = make_network(*last), make_examples()
    vjps, expected = ExampleVjps(network, dict(network.named_parameters())), compute_closed_form(network, x)
    torch.testing.assert_close(compute_ggn(vjps, x, y, ONE.loss), expected)
    torch.testing.assert_close(ggn_diagonal(vjps, x, y, ONE.loss), expected.diagonal())


def compute_covariance(posterior, network, likelihood):
    state = posterior.init(network, None, SIZE)
    posterior.finalize(state, [make_examples()], likelihood.loss)
    curvature = make_curvature(posterior.structure, state.model)
    axes = torch.eye(sum(param.numel() for param in curvature.params.values()))
    columns = [flatten(curvature.compute_offsets(state.statistics, axis, 1.0)) for axis in axes]
    return torch.stack(columns, 1) @ torch.stack(columns)


@NETWORKS
@pytest.mark.parametrize("structure", ["diag", "kron", "last_layer", "last_layer_kron"])
def test_laplace_is_that_of_the_same_network_with_two_logits(structure, last):
    posterior = Laplace(structure, prior_precision=PRIOR)
    covariance = compute_covariance(posterior, make_network(*last), ONE)
    torch.testing.assert_close(covariance, compute_covariance(posterior, TwoLogits(make_network(*last)), TWO))


@NETWORKS
def test_laplace_of_the_last_layer_is_the_closed_form(last):
    network = make_network(*last)
    ggn = compute_closed_form(network, make_examples()[0])[-5:, -5:]
    covariance = compute_covariance(Laplace("last_layer", prior_precision=PRIOR), network, ONE)
    torch.testing.assert_close(covariance, (ggn + PRIOR * torch.eye(5)).inverse())


@NETWORKS
def test_linearised_predictions_are_those_of_the_expansion(last):
    posterior = Laplace("kron", "linearised", prior_precision=PRIOR)
    network, (x, y) = make_network(*last), make_examples()
    state = posterior.init(network, None, SIZE)
    posterior.finalize(state, [(x, y)], ONE.loss)
    with torch.no_grad(), posterior.draw(state, torch.Generator().manual_seed(3)) as linearised:
        outputs = linearised(x)
    values = {name: param.detach() for name, param in network.named_parameters()}
    jacobians = jacrev(lambda weights: functional_call(network, weights, (x,)).flatten())(values)
    change = sum((jacobians[name].flatten(1) @ offset.flatten()) for name, offset in linearised.offsets.items())
    torch.testing.assert_close(outputs.flatten(), network(x).detach().flatten() + change)
