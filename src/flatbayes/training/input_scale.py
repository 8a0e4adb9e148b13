"""Inputs of arrays and data sets that are not standardized: token ids, and those of some trained networks.

A network that was trained elsewhere may take inputs as they are in the data. Training examples tell: the loss is
lower on the inputs that it was trained on.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.networks import cast_inputs
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import Standardize
from flatbayes.likelihoods import Categorical, Likelihood
from flatbayes.training.data import InMemoryData

NUM_EXAMPLES, MIN_GAIN = 256, 0.1
"""Examples that are predicted; and the fraction by which the NLL of a trained network is below that of a constant."""


def keep_token_ids(data: InMemoryData, build_model: Callable[[], nn.Module]) -> InMemoryData:
    """The data with inputs as integers, if the network has an embedding that takes nothing else.

    Args:
        data: Data whose inputs are standardized by default.
        build_model: Builds the network; called if all inputs are rows of whole numbers.
    """
    inputs = data.splits.train.inputs
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not torch.equal(inputs, inputs.floor()):
        return data
    with preserve_rng(None):
        network = build_model()
    if not any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules()):
        return data
    mean = torch.zeros(data.standardize.mean.shape, dtype=torch.int64)
    as_ids, example = Standardize(mean=mean, std=torch.ones_like(mean)), inputs[:2]
    takes_ids = _can_call(network, as_ids(example)) and not _can_call(network, data.standardize(example))
    return replace(data, transform_override=as_ids) if takes_ids else data


def _can_call(network: nn.Module, inputs: Tensor) -> bool:
    try:
        with eval_mode(network), torch.no_grad():
            network(cast_inputs(network, inputs))
    except Exception:  # of torch, or of the network itself
        return False
    return True


def match_input_scale(data: InMemoryData, network: nn.Module, likelihood: Likelihood) -> InMemoryData:
    """The data without a standardization of the inputs if the network was trained without it.

    That is so if it predicts training examples better than their class frequencies do, and better than with
    standardized inputs. Only classifications are compared: outputs for numbers have a scale of their own.

    Args:
        data: Data whose inputs are standardized by default.
        network: The network with its initial weights.
        likelihood: Distribution of the targets.

    Returns:
        The data, with the two losses if inputs are used as they are.
    """
    inputs, targets = data.splits.train.inputs, data.splits.train.targets
    if not isinstance(likelihood, Categorical) or not isinstance(inputs, Tensor):
        return data
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), NUM_EXAMPLES)).long()
    mean, std = data.standardize.mean, data.standardize.std
    as_given = Standardize(mean=torch.zeros_like(mean), std=torch.ones_like(std))
    losses = []
    for transform in (as_given, data.standardize):
        try:
            with eval_mode(network), torch.no_grad():
                outputs = network(cast_inputs(network, transform(inputs[rows])))
                losses.append(float(likelihood.loss(outputs, targets[rows])))
        except Exception:  # which the trial step explains
            return data
    labels = targets[rows][targets[rows] >= 0]
    shares = torch.bincount(labels).double() / max(1, len(labels))
    constant_nll = float(-torch.xlogy(shares, shares).sum())
    if losses[0] > (1 - MIN_GAIN) * constant_nll or losses[0] >= losses[1]:
        return data
    return replace(data, transform_override=as_given, scale_nlls=(losses[0], losses[1]))
