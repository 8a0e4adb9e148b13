"""Network linearised in its weights: first-order Taylor expansion (Immer, Korzepa & Bauer, AISTATS 2021).

The generalised Gauss-Newton matrix is the exact Hessian of a loss of this model. The Laplace approximation with it is
a posterior of this model, and the average over draws is the predictive of a generalised linear model.
"""

import warnings
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import jvp

from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.network_calls import call_with_tensors, plain_attention, plain_recurrence


class LinearisedNetwork(nn.Module):
    """f(x; w) + J(x) offset: the first-order expansion of a network in its weights, at a fixed offset.

    One forward pass in forward-mode differentiation computes both terms. The weights of the network stay unchanged.

    Args:
        network: f, in the mode in which it is evaluated.
        offsets: Offset by parameter name; the other parameters have offset zero.
    """

    def __init__(self, network: nn.Module, offsets: Mapping[str, Tensor]) -> None:
        super().__init__()
        _register_forward_mode_rules()
        self.network = network
        self.offsets = dict(offsets)
        self.training = network.training

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Return the outputs of the expansion."""
        params = dict(self.network.named_parameters())
        solution = {name: params[name] for name in self.offsets}

        def evaluate_at(weights: dict[str, Tensor]) -> Tensor:
            return call_with_tensors(self.network, weights, inputs)

        with plain_attention(), plain_recurrence(self.network):
            outputs, change = jvp(evaluate_at, (solution,), (self.offsets,))[:2]
        expansion: Tensor = outputs + change
        return expansion


def explain_derivative_error(error: Exception) -> str:
    """What torch cannot differentiate: the first line of its message, which for packed sequences names none."""
    text = str(error).strip().splitlines()[0]
    if "data pointer of Tensor that doesn't have storage" in text:
        return "packed sequences (pack_padded_sequence) have no forward-mode derivative in torch."
    return text


@cache
def _register_forward_mode_rules() -> None:
    # On first use torch registers forward-mode rules through functions that torch itself has deprecated.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))
