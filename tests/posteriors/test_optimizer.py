"""Optimizers that users write for parts of a network: which parameters they may have, and which they may omit."""

import pytest
import torch
from torch import nn

from flatbayes.core import State
from flatbayes.core.spec import short_name
from flatbayes.flatness import SAM
from flatbayes.integrations.posterior_steps import PosteriorSteps
from flatbayes.posteriors import MAP, SGHMC, SGLD, SGVB, SWAG, Ensemble, EntropyMCMC, Laplace
from flatbayes.posteriors.optimization import ExistingOptimizer, build_optimizer, refuse_optimizer
from flatbayes.training import TrainingConfig, fit, fit_together
from support import POSTERIORS, network

ONE_OF_EACH_CLASS = list({type(posterior): posterior for posterior in POSTERIORS}.values())
CONFIG = TrainingConfig(epochs=1, batch_size=12)


class OfAUser(MAP):
    """A posterior that calls the factory itself."""

    def init(self, model, make_optimizer, num_data):
        return State(model, make_optimizer and make_optimizer(model.parameters()), num_data)


def by_name(posterior):
    return type(posterior).__name__


def two_rates(net):
    """A factory that has the parameters of a network that the user has, in groups."""
    layers = [layer for layer in net.modules() if [*layer.parameters(recurse=False)]]
    groups = [{"params": [*layer.parameters(recurse=False)], "lr": 0.1 / (k + 1)} for k, layer in enumerate(layers)]
    return lambda params: torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("posterior", ONE_OF_EACH_CLASS, ids=by_name)
def test_an_optimizer_of_another_network_is_refused(posterior):
    with pytest.raises(ValueError, match=r"parameters that the function for it was not given.*trains a copy"):
        posterior.init(network(), two_rates(network()), 12)


@pytest.mark.parametrize("posterior", [MAP(), Ensemble(size=2), OfAUser()], ids=by_name)
def test_a_fit_refuses_an_optimizer_of_the_network_that_it_copies(posterior):
    net = nn.Linear(4, 2)
    model = (lambda: nn.Linear(4, 2)) if posterior.num_members > 1 else net
    x = torch.randn(24, 4)
    with pytest.raises(ValueError, match="2 trainable parameters that the function for it was not given"):
        fit(model, (x, x[:, 0] > 0), posterior, SAM(), CONFIG.with_options(optimizer=two_rates(net)))


def test_posteriors_of_one_training_refuse_it_too():
    net, x = nn.Linear(4, 2), torch.randn(24, 4)
    config = CONFIG.with_options(optimizer=two_rates(net))
    with pytest.raises(ValueError, match="that the function for it was not given"):
        fit_together(net, (x, x[:, 0] > 0), [MAP(), SWAG()], SAM(), config)


def test_one_group_of_another_network_is_refused():
    """The network would be trained, and the learning rate of the group would have no effect."""
    other = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="1 trainable parameter that"):
        build_optimizer(
            lambda params: torch.optim.SGD([{"params": params}, {"params": [other.bias]}]), network().parameters()
        )


def test_frozen_parameters_and_omitted_ones_are_allowed():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    state = MAP().init(net, lambda _: torch.optim.SGD(net.parameters()), 12)
    assert len(state.optimizer.param_groups[0]["params"]) == 4
    MAP().init(net, lambda params: torch.optim.SGD(params[1:]), 12)


def test_groups_by_name_are_those_of_the_trained_copy():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    names = [name for name, _ in net.named_parameters()]
    groups = []

    def make_optimizer(params):
        parts = {"0.": [], "1.": []}
        for name, param in zip(names, params, strict=True):
            parts[name[:2]].append(param)
        groups.append(torch.optim.SGD([{"params": parts["0."], "lr": 0.0}, {"params": parts["1."], "lr": 0.5}]))
        return groups[-1]

    x = torch.randn(24, 4)
    trained = fit(net, (x, (x[:, 0] > 0).long()), MAP(), SAM(), CONFIG.with_options(optimizer=make_optimizer))
    weights = trained.states[0].model.state_dict()
    is_kept = {name: torch.equal(weights[name], param) for name, param in net.named_parameters()}
    assert is_kept == {"0.weight": True, "0.bias": True, "1.weight": False, "1.bias": False}


@pytest.mark.parametrize(("rho", "factor"), [(0.05, 2.0), ("auto", None)])
def test_the_weight_decay_is_that_of_an_optimizer_over_the_head(rho, factor):
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(24, 4)
    data = (x, (x[:, 0] > 0).long())
    config = CONFIG.with_options(optimizer=lambda params: torch.optim.SGD(params[2:], lr=0.1, weight_decay=0.01))
    config = config.with_options(optimization={"prior_factor": factor})
    fitted = fit(net, data, MAP(), SAM(rho), config, val=data)
    assert torch.equal(fitted.states[0].model[0].weight, net[0].weight)


def test_the_optimizer_of_another_loop_may_train_other_networks_too():
    net, other = network(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)
    PosteriorSteps.init(SGVB(), net, optimizer, 12)
    assert all(param.requires_grad for param in other.parameters())
    assert len(optimizer.param_groups[0]["params"]) == len([*net.parameters(), *other.parameters()])


@pytest.mark.parametrize("posterior", [SGLD(), SGLD(noise="lattice"), SGHMC(), EntropyMCMC()], ids=short_name)
def test_a_sampler_moves_the_trainable_parameters_of_its_network_only(posterior):
    """An optimizer of another loop can have frozen parameters, and those of other networks."""
    net, other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), nn.Linear(2, 2)
    net[0].requires_grad_(False)
    params = [*net.parameters(), *other.parameters()]
    state = posterior.init(net, ExistingOptimizer(lambda _: torch.optim.SGD(params, lr=1e-3)), 12)
    before = [param.detach().clone() for param in params]
    for _ in range(2):
        for param in params:
            param.grad = torch.zeros_like(param) if param.requires_grad else None
        posterior.step(state, lambda: torch.zeros(()))
    is_changed = [not torch.equal(old, new) for old, new in zip(before, params, strict=True)]
    assert is_changed == [False, False, True, True, False, False]


@pytest.mark.parametrize("posterior", [MAP(), SWAG(rank=2), SGVB(), Laplace(prior_precision=1.0)], ids=repr)
def test_an_optimizer_that_computes_several_gradients_is_refused(posterior):
    with pytest.raises(ValueError, match=r"LBFGS computes several gradients in a step.* in a loop of your own"):
        posterior.init(nn.Linear(2, 2), torch.optim.LBFGS, num_data=10)


def test_an_optimizer_in_place_of_a_function_is_refused_with_advice():
    refuse_optimizer(torch.optim.Adam)
    optimizer = torch.optim.Adam(nn.Linear(2, 2).parameters())
    with pytest.raises(TypeError, match=r"pass lambda params: torch\.optim\.Adam\(params, lr=\.\.\.\)"):
        refuse_optimizer(optimizer)
