"""Shape of the outputs of a network, and the likelihood of a class at each position that it leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from flatbayes.core.input_trees import cast_integers, map_tensors
from flatbayes.core.network_interface import OutputSelector
from flatbayes.core.networks import cast_inputs, find_device
from flatbayes.core.randomness import preserve_rng
from flatbayes.likelihoods import DenseCategorical
from flatbayes.training.data import InMemoryData
from flatbayes.training.input_layout import match_input_layout
from flatbayes.training.model_builder import ModelFactory, make_adapted_builder, make_model_builder

ADVICE = (
    "Pass likelihood=Categorical(num_classes) for classes, or likelihood=Gaussian.fit(targets) for numbers, of which "
    "a network predicts mean and raw scale (two outputs for each; ConstantScale(network) makes them of one), or a "
    'distribution such as likelihood="Poisson" for counts.'
)


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
