"""Corruption of images of any size and value range, reproducible by seed.

Names and severities are those of CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019). The images differ from the published
ones: strengths, and the synthesis of frost, snow, spatter and glass blur, are those of this library. State this with
reported numbers; to compare with published numbers, read the original files with `CIFAR10C`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from flatbayes.core.randomness import Stream, spawn_seed
from flatbayes.data.checks import check_finite
from flatbayes.data.corruptions.families import (
    brightness,
    contrast,
    defocus_blur,
    elastic_transform,
    fog,
    frost,
    gaussian_blur,
    gaussian_noise,
    glass_blur,
    impulse_noise,
    jpeg_compression,
    motion_blur,
    pixelate,
    saturate,
    shot_noise,
    snow,
    spatter,
    speckle_noise,
    zoom_blur,
)

STANDARD_CORRUPTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = MappingProxyType(
    {
        "gaussian_noise": gaussian_noise,
        "shot_noise": shot_noise,
        "impulse_noise": impulse_noise,
        "defocus_blur": defocus_blur,
        "glass_blur": glass_blur,
        "motion_blur": motion_blur,
        "zoom_blur": zoom_blur,
        "snow": snow,
        "frost": frost,
        "fog": fog,
        "brightness": brightness,
        "contrast": contrast,
        "elastic_transform": elastic_transform,
        "pixelate": pixelate,
        "jpeg_compression": jpeg_compression,
    }
)
"""The 15 corruptions that results are usually averaged over."""

CORRUPTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = MappingProxyType(
    {
        **STANDARD_CORRUPTIONS,
        "speckle_noise": speckle_noise,
        "gaussian_blur": gaussian_blur,
        "spatter": spatter,
        "saturate": saturate,
    }
)
"""All corruptions: functions of images from 0 to 1, a severity and a generator."""

MOVING_CORRUPTIONS = frozenset({"elastic_transform", "zoom_blur"})
"""Corruptions that move what an image shows, so that the class of a pixel is no longer that of its mask."""
NUM_SEVERITIES = 5
IMAGES_PER_CHUNK = 500
WHITE_VALUES = (1.0, 16.0, 255.0)


def corrupt_images(
    inputs: Tensor, name: str, severity: int, seed: int = 0, white_value: float | None = None
) -> Tensor:
    """Corrupt images; shape, dtype and value range stay the same.

    The noise of an image is independent of other images and the same for all severities.

    Args:
        inputs: Raw images before standardization, [n, channels, height, width], from 0 (black) to `white_value`.
        name: One of `CORRUPTIONS`.
        severity: From 1 to 5; 0 returns a copy.
        seed: Seed of all randomness.
        white_value: The value of white; by default `infer_white_value(inputs)`.

    Raises:
        ValueError: There is no such corruption or severity, or the inputs are not images in this range.
        ImportError: Pillow, which compresses to JPEG, is not installed.

    Examples:
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> corrupted = corrupt_images(images, "gaussian_noise", severity=3)
        >>> corrupted.shape, corrupted.dtype
        (torch.Size([4, 3, 32, 32]), torch.uint8)
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"Unknown corruption {name!r}. Known: {', '.join(CORRUPTIONS)}.")
    if severity not in range(NUM_SEVERITIES + 1):
        raise ValueError(f"A severity is a whole number from 1 to {NUM_SEVERITIES}, or 0 for none; got {severity}.")
    if inputs.ndim != 4 or 0 in inputs.shape[1:]:
        raise ValueError(
            f"Corruptions are for images, [n, channels, height, width], got the shape {tuple(inputs.shape)}."
        )
    white_value = infer_white_value(inputs) if white_value is None else white_value
    if not severity or not len(inputs):
        return inputs.clone()
    chunks = [
        _corrupt_chunk(chunk, name, severity, spawn_seed(Stream.CORRUPTION, seed, index), white_value)
        for index, chunk in enumerate(inputs.split(IMAGES_PER_CHUNK))
    ]
    return torch.cat(chunks)


def list_corruptions(channels: int, *, standard_only: bool = False, with_moving: bool = True) -> tuple[str, ...]:
    """List the corruptions for images with this number of channels.

    Args:
        channels: 3 for color images; others cannot be saturated.
        standard_only: List the 15 corruptions that results are usually averaged over.
        with_moving: Also those that move what an image shows, `elastic_transform` and `zoom_blur`, which do not suit
            images with a class for each pixel.

    Examples:
        >>> list_corruptions(channels=3)[:3], len(list_corruptions(channels=1, standard_only=True))
        (('gaussian_noise', 'shot_noise', 'impulse_noise'), 15)
    """
    return tuple(
        name
        for name in (STANDARD_CORRUPTIONS if standard_only else CORRUPTIONS)
        if (channels == 3 or name != "saturate") and (with_moving or name not in MOVING_CORRUPTIONS)
    )


def infer_white_value(inputs: Tensor) -> float:
    """Infer the value of white: the smallest of 1, 16 (scikit-learn's digits) and 255 that no pixel exceeds.

    Args:
        inputs: Many images, [n, channels, height, width]; for a few dark images the value could be too small.

    Raises:
        ValueError: Values are negative, above 255 or not finite.

    Examples:
        >>> infer_white_value(torch.tensor([0, 9, 14]).reshape(1, 1, 1, 3))
        16.0
    """
    low, high = (float(value) for value in inputs.aminmax()) if inputs.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= WHITE_VALUES[-1]):
        check_finite(inputs, "images")
        raise ValueError(
            f"Images must have values from 0 (black) to 255 at most (white), got {low:g} to {high:g}. Pass them "
            "raw, before any standardisation: a fitted posterior applies its own."
        )
    return next(white for white in WHITE_VALUES if high <= white)


def _corrupt_chunk(chunk: Tensor, name: str, severity: int, seed: int, white_value: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corrupted = CORRUPTIONS[name](chunk.float() / white_value, severity, generator).clamp(0, 1) * white_value
    return corrupted.to(chunk.dtype) if chunk.is_floating_point() else corrupted.round().to(chunk.dtype)
