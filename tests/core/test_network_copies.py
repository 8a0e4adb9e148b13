"""Copies of networks, which `fit` trains in their place."""

import torch
from torch import nn

from flatbayes.core.networks import copy_network
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP
from flatbayes.training import TrainingConfig, fit


def test_masks_of_gradients_hold_in_training():
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    mask = torch.arange(8) < 4
    network[2].weight.register_hook(lambda grad: grad * mask)
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(epochs=2, batch_size=16, optimizer=torch.optim.SGD)
    fitted = fit(network, (x, x[:, :3].argmax(1)), MAP(), SAM(), config, likelihood=Categorical(3))
    is_same = (fitted.states[0].model[2].weight == network[2].weight).all(0)
    assert is_same.tolist() == (~mask).tolist()


def test_hooks_of_frozen_parameters_are_left_out():
    network = nn.Linear(2, 2)
    network.weight.register_hook(lambda grad: 0 * grad)
    network.weight.requires_grad_(False)
    assert not copy_network(network).weight.requires_grad
