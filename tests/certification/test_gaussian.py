import math

import pytest
import torch
from torch import nn

from flatbayes.certification import CertificationConfig
from flatbayes.certification.frozen_network import FrozenNetwork
from flatbayes.certification.gaussian import check_frozen, compute_divergence, fit_gaussian, make_gaussian_posterior
from flatbayes.core.weights import trainable_parameters
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import SGVB
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.training import TrainingConfig
from support import network


@pytest.fixture
def settled():
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
    return FrozenNetwork(model.eval(), None)


def fitted(settled, images, **changes):
    plan = CertificationConfig(epochs=3, batch_size=10, lr=1e-2, kl_weight=0.1, **changes)
    posterior = make_gaussian_posterior(0.05, plan.kl_weight)
    return posterior, fit_gaussian(posterior, settled, images.train, Categorical(3), plan, TrainingConfig(), seed=1)


def test_settled_networks_are_in_eval_mode_and_standardise():
    model = network()
    settled = FrozenNetwork(model, lambda x: x / 2).train()
    x = torch.randn(5, 1, 8, 8)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = settled(x)
    assert model.training  # as it came
    assert torch.equal(found, model.eval()(x / 2))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_settled_networks_take_images_in_whole_numbers_and_any_precision():
    model = network(torch.float64)
    x = torch.randint(0, 255, (3, 1, 8, 8), dtype=torch.uint8)
    assert FrozenNetwork(model, lambda x: x.float())(x).dtype == torch.float64


def test_weights_move_and_nothing_else(settled, images):
    posterior, state = fitted(settled, images)
    before, after = dict(settled.named_buffers()), dict(state.model.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    mean, prior_mean = state.statistics["mean"], state.statistics["prior_mean"]
    assert torch.equal(prior_mean, torch.cat([p.detach().reshape(-1) for p in settled.parameters()]))
    assert not torch.equal(mean, prior_mean)
    assert mean.numel() == sum(p.numel() for p in settled.parameters())
    with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        assert all(torch.equal(before[name], buffer) for name, buffer in drawn.named_buffers())
        assert not any(module.training for module in drawn.modules())


def test_frozen_parameters_stay_those_of_the_prior_network(settled, images):
    norms = [m for m in settled.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    frozen = {id(p) for norm in norms for p in norm.parameters()}
    names = [name for name, p in settled.named_parameters() if id(p) in frozen]
    for norm in norms:
        norm.requires_grad_(False)
    posterior, state = fitted(settled, images)
    assert state.statistics["mean"].numel() == sum(p.numel() for p in trainable_parameters(settled))
    before = dict(settled.named_parameters())
    with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        for name, param in drawn.named_parameters():
            assert torch.equal(param, before[name]) == (name in names), name


def test_the_divergence_is_the_formula(settled, images):
    _, state = fitted(settled, images)
    found = compute_divergence(state, (0.001, 0.05, 2.0))
    assert found.scale == 0.05
    mean, std = state.statistics["mean"].double(), raw_to_std(state.statistics["raw_scale"].detach()).double()
    shift = mean - torch.cat([p.detach().reshape(-1) for p in settled.parameters()]).double()
    expected = (torch.log(0.05 / std) + (std**2 + shift**2) / (2 * 0.05**2) - 0.5).sum()
    assert found.kl == pytest.approx(float(expected), rel=1e-9)
    assert found.complexity == pytest.approx(float(expected) + math.log(3), rel=1e-9)


def test_without_epochs_the_posterior_is_the_prior(settled, images):
    _, state = fitted(settled, images)
    assert compute_divergence(state, (0.05,)).kl > 0.1
    posterior = make_gaussian_posterior(0.05, 1.0)
    state = fit_gaussian(
        posterior, settled, images.train, Categorical(3), CertificationConfig(epochs=0), TrainingConfig(), seed=1
    )
    assert compute_divergence(state, (0.05,)).kl == pytest.approx(0.0, abs=1e-6)


def test_something_learnt_beside_the_weights_is_refused(settled):
    state = make_gaussian_posterior(0.1, 1.0).init(FrozenNetwork(network(), None), None, 10)
    with pytest.raises(RuntimeError, match=r"network.1.running_mean, .* changed while the posterior was fitted"):
        check_frozen(settled, state)


def test_weights_without_a_distribution_are_refused(settled):
    state = SGVB(params="weights", prior_mean="initial").init(settled, None, 10)
    with pytest.raises(RuntimeError, match=r"Only \d+ of \d+ trainable weights have a distribution"):
        check_frozen(settled, state)
