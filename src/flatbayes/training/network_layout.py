"""Layout of inputs and outputs of a network, found by calling it: token ids, sequences, a class at each position.

Arrays of three axes are gray images, [n, 1, height, width], unless the network takes only [n, *axes]: sequences, [n,
length, channels] of recurrent layers or [n, channels, length] of convolutions. An axis of the outputs that the
positions of the targets leave is that of the classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.input_trees import cast_integers, map_tensors
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.networks import cast_inputs, find_device
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import Standardize
from flatbayes.likelihoods import DenseCategorical
from flatbayes.training.data import InMemoryData
from flatbayes.training.model_builder import ModelFactory, make_adapted_builder, make_model_builder

ADVICE = (
    "Pass likelihood=Categorical(num_classes) for classes, or likelihood=Gaussian.fit(targets) for numbers, of which "
    "a network predicts mean and raw scale (two outputs for each; ConstantScale(network) makes them of one), or a "
    'distribution such as likelihood="Poisson" for counts.'
)


def match_input_layout(
    data: InMemoryData, model: nn.Module | ModelFactory, arguments: Mapping[str, Any]
) -> InMemoryData:
    """The data with inputs as token ids or sequences, if the network takes nothing else. No random state changes."""
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

    `first` and `second` are the sizes of the axes of a sequence.
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


def infer_dense_likelihood(
    data: InMemoryData, model: nn.Module | ModelFactory, output: OutputSelector | None, *, new_head: bool
) -> DenseCategorical:
    """`DenseCategorical` with the classes of the outputs of the network, on the axis that the positions leave.

    Raises:
        ValueError: The outputs have other positions than the targets, or it is not clear which axis is the classes'.
    """
    splits, data = data.splits, match_input_layout(data, model, data.model_arguments)
    with preserve_rng(None):
        shape = find_output_shape(model, data.example_batch[0], output, data.model_arguments)
    likelihood = match_outputs(shape, tuple(splits.train.targets.shape[1:]))
    return resize_classes(likelihood, splits.num_classes) if new_head else likelihood


def resize_classes(likelihood: DenseCategorical, num_classes: int) -> DenseCategorical:
    """The likelihood of a network that gets one output for each of so many classes at every position."""
    return replace(likelihood, num_classes=num_classes, single_logit=False)


def match_outputs(shape: Sequence[int], positions: Sequence[int]) -> DenseCategorical:
    """The likelihood for the shape of an example's outputs and of its classes; for one output it is a single logit.

    >>> match_outputs((3, 4, 4), (4, 4)).class_dim, match_outputs((7, 3), (7,)).class_dim
    (1, -1)

    Raises:
        ValueError: The shapes do not match, or in two ways.
    """
    shape, positions = tuple(shape), tuple(positions)
    candidates = {1: (shape[:1], shape[1:]), -1: (shape[-1:], shape[:-1])}
    matching = [
        DenseCategorical(max(2, classes[0]), class_dim, single_logit=classes[0] == 1)
        for class_dim, (classes, rest) in candidates.items()
        if rest == positions
    ]
    if len(matching) == 1:
        return matching[0]
    reason = "either axis may be that of the classes" if matching else "no axis of the outputs is left for classes"
    sizes = [", ".join(map(str, ("n", *size))) for size in (shape, positions)]
    raise ValueError(
        f"The likelihood is not clear from outputs of the shape ({sizes[0]}) of the network and targets of the shape "
        f"({sizes[1]}): {reason}. For a class at each position pass likelihood=DenseCategorical(num_classes), with "
        "class_dim=-1 for outputs (n, *positions, classes); resize outputs or targets to the same positions, and "
        f"remove an axis of size 1 of the targets by squeeze(1). {ADVICE}"
    )


def find_output_shape(
    model: nn.Module | ModelFactory,
    inputs: Any,
    output: OutputSelector | None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[int, ...]:
    """Shape of the outputs of a network for one example.

    `arguments` are for a function that builds the network, which takes those that it has parameters for.

    Raises:
        ValueError: The network cannot be called with the inputs.
    """

    def get_inputs() -> Any:
        return inputs

    build_model = make_model_builder(model, arguments or {}, get_inputs)
    network = make_adapted_builder(build_model, get_inputs, output)().eval()
    device = find_device(network)
    inputs = map_tensors(lambda tensor: tensor.to(device), inputs)
    errors = list[Exception]()
    for candidate in (inputs, cast_integers(inputs)):  # as `check_loader_inputs` converts them
        with torch.no_grad():
            try:
                return tuple(network(cast_inputs(network, candidate))[0].shape)
            except (RuntimeError, TypeError, IndexError) as error:
                errors.append(error)
    raise ValueError(f"The network cannot be called with the first batch: {errors[0]}") from errors[0]
