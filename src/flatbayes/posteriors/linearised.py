"""A network linearised in its weights (Immer, Korzepa & Bauer, AISTATS 2021).

The generalised Gauss-Newton matrix is the exact curvature of a loss of this model, so Laplace's Gaussian with it is a
posterior of this model, and averages over networks drawn from that are the predictive of a generalised linear model.
"""

import warnings
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp


class LinearisedNetwork(nn.Module):
    """f(x; w) + J(x) offset: the network's first-order expansion around its weights, at a fixed offset.

    One forward pass in forward mode gives both terms. The network's weights stay what they are.

    Args:
        network: f, in the mode that it is to be run in.
        offsets: By name of a parameter, its offset; parameters without one stay put.
    """

    def __init__(self, network: nn.Module, offsets: Mapping[str, Tensor]) -> None:
        super().__init__()
        _prepare_forward_mode()
        self.network = network
        self.offsets = dict(offsets)
        self.training = network.training

    def forward(self, inputs: Tensor) -> Tensor:
        """The expansion's outputs."""
        params = dict(self.network.named_parameters())
        centre = {name: params[name] for name in self.offsets}

        def evaluate_at(weights: dict[str, Tensor]) -> Tensor:
            outputs: Tensor = functional_call(self.network, weights, (inputs,))
            return outputs

        outputs, change = jvp(evaluate_at, (centre,), (self.offsets,))[:2]
        moved: Tensor = outputs + change
        return moved


@cache
def _prepare_forward_mode() -> None:
    # On first use torch registers rules of forward mode, by a function that it has deprecated itself.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))
