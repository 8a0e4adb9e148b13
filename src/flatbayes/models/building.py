"""Shared parts of the architectures: validation of constructor arguments, weight initialisation, common layers."""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
from torch import nn

Stem = Literal["small", "large"]
"""First layers of a network: a 3x3 convolution for small images, or a 7x7 convolution and pooling for large ones."""


def check_arguments(input_shape: Sequence[int], num_classes: int, dropout: float) -> None:
    """Check the arguments that all architectures have.

    Raises:
        ValueError: A size is not positive, or the dropout rate is outside [0, 1).
    """
    check_sizes("input_shape", input_shape)
    check_sizes("num_classes", [num_classes])
    if not 0 <= dropout < 1:
        raise ValueError(f"The dropout rate must be at least 0 and below 1, got {dropout}.")


def check_image_shape(input_shape: Sequence[int], model_name: str) -> int:
    """Check that inputs are images, and return their number of channels."""
    if len(input_shape) != 3:
        raise ValueError(
            f"{model_name} needs images, an input shape of (channels, height, width), got {tuple(input_shape)}. "
            "Use MLP for inputs of any other shape, or reshape them: one grey image of 8 x 8 is (1, 8, 8)."
        )
    return input_shape[0]


def check_hidden(hidden: Any) -> None:
    """Check the numbers of units of hidden layers.

    Raises:
        TypeError: They are no sequence of whole numbers.
        ValueError: One is below 1.
    """
    is_sequence = isinstance(hidden, Sequence | np.ndarray) and not isinstance(hidden, str)
    if not is_sequence or not all(isinstance(units, Integral) for units in hidden):
        example = f", such as ({hidden},)" if isinstance(hidden, Integral) else ", such as (64, 64)"
        raise TypeError(f"hidden has the units of each hidden layer{example}; got {hidden!r}.")
    for units in hidden:
        check_sizes("hidden", [units])


def check_sizes(name: str, sizes: Sequence[int]) -> None:
    """Check that there are sizes, and that all are positive."""
    if not sizes or min(sizes) < 1:
        got = sizes[0] if len(sizes) == 1 else tuple(sizes)
        raise ValueError(f"{name} must be whole numbers from 1, got {got}.")


def check_depth(model_name: str, depth: int, valid_depths: Sequence[int]) -> None:
    """Check that the architecture exists with this depth."""
    if depth in valid_depths:
        return
    below = max((d for d in valid_depths if d < depth), default=-math.inf)
    above = min((d for d in valid_depths if d > depth), default=math.inf)
    nearest = " or ".join(str(d) for d in (below, above) if math.isfinite(d))
    raise ValueError(f"{model_name} cannot have depth {depth}: the nearest possible depth is {nearest}.")


def init_kaiming_(model: nn.Module) -> None:
    """Initialise all convolutions from N(0, 2 / fan-out) (He et al., ICCV 2015), and their biases with 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_truncated_normal_(model: nn.Module, std: float = 0.02) -> None:
    """Initialise all linear layers and convolutions from a truncated normal distribution, and their biases with 0.

    Values are truncated at -2 and 2, as is usual for transformers.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def norm_relu(channels: int) -> nn.Sequential:
    """BatchNorm, then ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
