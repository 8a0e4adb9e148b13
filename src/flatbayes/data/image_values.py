"""Range of the values of images: from 0 to 255 as they are stored, or scaled to about 0 to 1.

A network that was trained on the one predicts nonsense from the other, without an error.
"""

from typing import Any

import torch
from torch import Tensor

from flatbayes.data.lazy_images import LazyImages

MAX_SCALED = 10.0
"""Largest absolute value of scaled images: those that are standardized exceed 1, and no value of 255 is below it."""
MAX_SCALED_OF_STORED = 3.0
"""The same where images as they are stored are expected, of which dark ones may be given as floating numbers."""


def describe_image_values(inputs: Any) -> str | None:
    """`stored` for images of uint8, `scaled` for floating ones of small values; None for other inputs.

    Args:
        inputs: Images, [n, channels, height, width].

    Examples:
        >>> images = torch.rand(2, 3, 8, 8)
        >>> describe_image_values(images), describe_image_values((255 * images).to(torch.uint8))
        ('scaled', 'stored')
    """
    if isinstance(inputs, LazyImages):
        return "stored"
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.numel():
        return None
    if inputs.dtype == torch.uint8:
        return "stored"
    return "scaled" if inputs.is_floating_point() and float(inputs.abs().max()) <= MAX_SCALED else None


def check_image_values(inputs: Any, expected: object, description: str) -> None:
    """Refuse images whose values have another range than those of the training.

    Args:
        inputs: Images; other inputs are not looked at.
        expected: What `describe_image_values` says of the training images; anything else if it is unknown.
        description: What the inputs are, for the message.

    Raises:
        ValueError: They are stored images and the others scaled, or the other way round.
    """
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.numel():
        return
    if expected == "scaled" and inputs.dtype == torch.uint8 and int(inputs.max()) > MAX_SCALED:
        raise ValueError(
            f"{description} are uint8 images with values up to {int(inputs.max())}, and those of the training are "
            "floating-point ones with small values: convert and scale them alike, such as images.float() / 255."
        )
    if expected == "stored" and inputs.is_floating_point():
        largest = float(inputs.abs().max())
        if largest <= MAX_SCALED_OF_STORED and bool((inputs != inputs.round()).any()):
            raise ValueError(
                f"{description} are floating-point images with values up to {largest:.3g}, and those of the training "
                "are uint8 images with values up to 255: give them as they are stored, or train on scaled ones."
            )
