"""Representation in which inputs are compared with those of training: features of a table, or of a network."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flatbayes.core.buffers import eval_mode
from flatbayes.core.prediction_lock import lock_predictions
from flatbayes.core.randomness import preserve_rng
from flatbayes.data import LazyImages
from flatbayes.posteriors.last_layer import find_last_linear
from flatbayes.prediction.sampling import NetworkSampler
from flatbayes.prediction.training_inputs import MAX_ROWS, TrainingInputs

EXAMPLES_PER_PASS = 256
MAX_DECODED_IMAGES = 500
"""Largest number of images in files that are decoded for the statistics."""


def fit_training_inputs(sampler: NetworkSampler, inputs: Tensor | LazyImages) -> TrainingInputs | None:
    """Statistics of the training inputs of a posterior; None where they have no representation.

    It costs one pass of one network over at most 4,000 images, and none for a table.
    """
    if len(inputs.shape) not in (2, 4):
        return None
    limit = MAX_DECODED_IMAGES if isinstance(inputs, LazyImages) else MAX_ROWS
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), limit)).long()
    in_memory = None if isinstance(inputs, LazyImages) else inputs
    try:
        return TrainingInputs.fit(in_memory, lambda batch: represent_inputs(sampler, batch), inputs[rows])
    except ValueError:  # a network without a linear layer, or whose last one is not called with vectors
        return None


@lock_predictions()
@torch.no_grad()
def represent_inputs(sampler: NetworkSampler, inputs: Tensor) -> Tensor:
    """Standardised features of a table, or for images the inputs of the last linear layer of the first network.

    Raw inputs are [n, features] or [n, channels, height, width]; the result is [n, size].

    Raises:
        ValueError: The network has no linear layer, or does not call it with one vector for each image.
    """
    if inputs.ndim == 2:
        return inputs if sampler.transform is None else sampler.transform(inputs)
    model, features = sampler.states[0].model, list[Tensor]()

    def record(_: nn.Module, arguments: Sequence[Tensor]) -> None:
        features.append(arguments[0].detach())

    handle = find_last_linear(model).register_forward_pre_hook(record)
    try:
        with preserve_rng(model), eval_mode(model):
            for batch in inputs.split(EXAMPLES_PER_PASS):
                model(sampler.preprocess(batch))
    finally:
        handle.remove()
    if not features or any(feature.ndim != 2 for feature in features) or sum(map(len, features)) != len(inputs):
        raise ValueError("The last linear layer is not called with one vector for each image.")
    return torch.cat(features)
