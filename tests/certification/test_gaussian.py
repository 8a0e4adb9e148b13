"""Gaussian posterior around the fixed prior network."""

import math

import pytest
import torch
from torch import nn

from flatbayes.certification import CertificationConfig
from flatbayes.certification.gaussian import check_frozen, compute_divergence, fit_gaussian, make_gaussian_posterior
from flatbayes.certification.prior import FrozenNetwork
from flatbayes.core.weights import trainable_parameters
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import SGVB
from flatbayes.posteriors.variational import raw_to_std
from flatbayes.training import TrainingConfig
from support import network


@pytest.fixture
def prior_network():
    model = network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
    return FrozenNetwork(model.eval(), None)


def fit_posterior(prior_network, images, **changes):
    config = CertificationConfig(epochs=3, batch_size=10, lr=1e-2, kl_weight=0.1, **changes)
    posterior = make_gaussian_posterior(0.05, config.kl_weight)
    return posterior, fit_gaussian(
        posterior, prior_network, images.train, Categorical(3), config, TrainingConfig(), seed=1
    )


def test_frozen_network_uses_eval_mode_and_the_transform():
    model = network()
    prior_network = FrozenNetwork(model, lambda x: x / 2).train()
    x = torch.randn(5, 1, 8, 8)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    logits = prior_network(x)
    assert model.training  # the mode is restored
    assert torch.equal(logits, model.eval()(x / 2))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_frozen_network_takes_integer_images_and_any_precision():
    model = network(torch.float64)
    x = torch.randint(0, 255, (3, 1, 8, 8), dtype=torch.uint8)
    assert FrozenNetwork(model, lambda x: x.float())(x).dtype == torch.float64


def test_only_weights_change(prior_network, images):
    posterior, state = fit_posterior(prior_network, images)
    before, after = dict(prior_network.named_buffers()), dict(state.model.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    mean, prior_mean = state.statistics["mean"], state.statistics["prior_mean"]
    assert torch.equal(prior_mean, torch.cat([p.detach().reshape(-1) for p in prior_network.parameters()]))
    assert not torch.equal(mean, prior_mean)
    assert mean.numel() == sum(p.numel() for p in prior_network.parameters())
    with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        assert all(torch.equal(before[name], buffer) for name, buffer in drawn.named_buffers())
        assert not any(module.training for module in drawn.modules())


def test_frozen_parameters_have_no_distribution(prior_network, images):
    norms = [m for m in prior_network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    frozen = {id(p) for norm in norms for p in norm.parameters()}
    names = [name for name, p in prior_network.named_parameters() if id(p) in frozen]
    for norm in norms:
        norm.requires_grad_(False)
    posterior, state = fit_posterior(prior_network, images)
    assert state.statistics["mean"].numel() == sum(p.numel() for p in trainable_parameters(prior_network))
    before = dict(prior_network.named_parameters())
    with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn:
        for name, param in drawn.named_parameters():
            assert torch.equal(param, before[name]) == (name in names), name


def test_divergence_equals_the_closed_form(prior_network, images):
    _, state = fit_posterior(prior_network, images)
    prior_scale = compute_divergence(state, (0.001, 0.05, 2.0))
    assert prior_scale.scale == 0.05
    mean, std = state.statistics["mean"].double(), raw_to_std(state.statistics["raw_scale"].detach()).double()
    shift = mean - torch.cat([p.detach().reshape(-1) for p in prior_network.parameters()]).double()
    expected = (torch.log(0.05 / std) + (std**2 + shift**2) / (2 * 0.05**2) - 0.5).sum()
    assert prior_scale.kl == pytest.approx(float(expected), rel=1e-9)
    assert prior_scale.complexity == pytest.approx(float(expected) + math.log(3), rel=1e-9)


def test_zero_epochs_give_the_prior(prior_network, images):
    _, state = fit_posterior(prior_network, images)
    assert compute_divergence(state, (0.05,)).kl > 0.1
    posterior = make_gaussian_posterior(0.05, 1.0)
    state = fit_gaussian(
        posterior,
        prior_network,
        images.train,
        Categorical(3),
        CertificationConfig(epochs=0),
        TrainingConfig(),
        seed=1,
    )
    assert compute_divergence(state, (0.05,)).kl == pytest.approx(0.0, abs=1e-6)


def test_changed_buffer_is_refused(prior_network):
    state = make_gaussian_posterior(0.1, 1.0).init(FrozenNetwork(network(), None), None, 10)
    with pytest.raises(RuntimeError, match=r"network.1.running_mean, .* changed while the posterior was fitted"):
        check_frozen(prior_network, state)


def test_weight_without_distribution_is_refused(prior_network):
    state = SGVB(params="weights", prior_mean="initial").init(prior_network, None, 10)
    with pytest.raises(RuntimeError, match=r"Only \d+ of \d+ trainable weights have a distribution"):
        check_frozen(prior_network, state)
