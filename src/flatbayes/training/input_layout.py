"""Inputs in memory that a network does not take as standardized features or images: token ids and sequences.

Arrays of three axes are gray images, [n, 1, height, width], unless the network takes only [n, *axes]: sequences,
[n, length, channels] of recurrent layers or [n, channels, length] of convolutions. A call of the network tells.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.networks import cast_inputs, find_device
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import Standardize
from flatbayes.training.data import InMemoryData
from flatbayes.training.model_builder import ModelFactory, make_model_builder


def match_input_layout(
    data: InMemoryData, model: nn.Module | ModelFactory, arguments: Mapping[str, Any]
) -> InMemoryData:
    """The data with inputs as token ids or sequences, if the network takes nothing else. No random state changes.

    Args:
        data: Data whose inputs are standardized by default.
        model: A network, or what builds one.
        arguments: Arguments of what builds it, by name.
    """
    inputs = data.splits.train.inputs
    if not isinstance(inputs, Tensor) or data.transform_override is not None:
        return data
    with preserve_rng(None):
        if inputs.ndim == 2 and torch.equal(inputs, inputs.floor()):
            return _keep_token_ids(data, model, arguments)
        if inputs.ndim == 4 and inputs.shape[1] == 1 and data.splits.augment is None:
            return _keep_sequences(data, model, arguments)
    return data


def _keep_token_ids(
    data: InMemoryData, model: nn.Module | ModelFactory, arguments: Mapping[str, Any]
) -> InMemoryData:
    network = make_model_builder(model, arguments, lambda: data.example_batch[0])()
    if not any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules()):
        return data
    mean = torch.zeros(data.standardize.mean.shape, dtype=torch.int64)
    as_ids = replace(data, transform_override=Standardize(mean=mean, std=torch.ones_like(mean)))
    takes_ids = _count_output_axes(network, as_ids) is not None and _count_output_axes(network, data) is None
    return as_ids if takes_ids else data


def _keep_sequences(
    data: InMemoryData, model: nn.Module | ModelFactory, arguments: Mapping[str, Any]
) -> InMemoryData:
    network = _try_to_build(data, model, arguments)
    num_axes = None if network is None else _count_output_axes(network, data)
    if num_axes is not None and num_axes <= 2:  # it takes images
        return data
    sequences = data.splits.train.input_tensor[:, 0]
    scale = Standardize.fit(sequences, channel_axis=2)
    as_sequences = replace(data, transform_override=scale)
    shape = {"input_shape": as_sequences.input_shape} if "input_shape" in arguments else {}
    network = _try_to_build(as_sequences, model, {**arguments, **shape})
    num_sequence_axes = None if network is None else _count_output_axes(network, as_sequences)
    if network is None or (num_sequence_axes is None and not has_sequence_layers(network)):
        return data
    if num_axes is not None and (num_sequence_axes is None or num_sequence_axes >= num_axes):
        return data
    if takes_channels_first(network, *sequences.shape[1:]):
        return replace(data, transform_override=Standardize.fit(sequences, channel_axis=1))
    return as_sequences


def has_sequence_layers(network: nn.Module) -> bool:
    """Whether a network has layers that take sequences and no images."""
    return any(isinstance(module, nn.RNNBase | nn.Conv1d | nn.MultiheadAttention) for module in network.modules())


def takes_channels_first(network: nn.Module, first: int, second: int) -> bool:
    """Whether a network takes sequences of the shape [n, channels, length], as convolutions do.

    Args:
        network: A network that takes sequences.
        first: Size of the first axis of a sequence.
        second: Size of the second axis.
    """
    for module in network.modules():
        if isinstance(module, nn.RNNBase | nn.Linear):
            size = module.input_size if isinstance(module, nn.RNNBase) else module.in_features
            if size == second:
                return False
        elif isinstance(module, nn.Conv1d) and module.in_channels == first:
            return True
    return False


def _try_to_build(
    data: InMemoryData, model: nn.Module | ModelFactory, arguments: Mapping[str, Any]
) -> nn.Module | None:
    """The network; None where it cannot be built for such inputs, which the preparation of a fit explains."""
    try:
        return make_model_builder(model, arguments, lambda: data.example_batch[0])()
    except Exception:  # of the user's function, or of lazy modules
        return None


def _count_output_axes(network: nn.Module, data: InMemoryData) -> int | None:
    """Number of axes of the output for a few examples, 1 if it is no tensor; None if the network cannot take them."""
    inputs = data.example_batch[0].to(find_device(network))
    try:
        with eval_mode(network), torch.no_grad():
            outputs = network(cast_inputs(network, inputs))
    except Exception:  # of torch, or of the network itself
        return None
    return outputs.ndim if isinstance(outputs, Tensor) else 1
