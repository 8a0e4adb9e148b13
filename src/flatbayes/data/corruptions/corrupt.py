"""Corrupted images of any size and range, the same for the same seed.

The kinds, their names and their number of severities are those of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019);
the images are not: strengths, and the ways in which frost, snow, spatter and glass are drawn, are this library's. Say
so beside a number, and read the original files with `CIFAR10C` to compare with published ones.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from flatbayes.core.randomness import spawn_seeds
from flatbayes.data.corruptions.blur import defocus_blur, gaussian_blur, glass_blur, motion_blur, zoom_blur
from flatbayes.data.corruptions.digital import (
    contrast,
    elastic_transform,
    jpeg_compression,
    pixelate,
    saturate,
)
from flatbayes.data.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from flatbayes.data.corruptions.weather import brightness, fog, frost, snow, spatter

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
"""The fifteen that results are usually averaged over."""

CORRUPTIONS: Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]] = MappingProxyType(
    {
        **STANDARD_CORRUPTIONS,
        "speckle_noise": speckle_noise,
        "gaussian_blur": gaussian_blur,
        "spatter": spatter,
        "saturate": saturate,
    }
)
"""All of them: images from 0 to 1, severity and generator to images."""

NUM_SEVERITIES = 5
IMAGES_PER_CHUNK = 500
WHITE_VALUES = (1.0, 16.0, 255.0)


def corrupt_images(
    inputs: Tensor, name: str, severity: int, seed: int = 0, white_value: float | None = None
) -> Tensor:
    """Images of the same shape, dtype and range, corrupted.

    Every image has noise of its own, drawn alike for all severities: these differ in strength and not in luck.

    Args:
        inputs: Images, [n, channels, height, width], from 0 (black) to `white`; raw, before any standardisation.
        name: One of `CORRUPTIONS`.
        severity: From 1 to 5; 0 changes nothing.
        seed: Decides all that is random.
        white_value: The value of white; by default that of `infer_white_value`, which looks at all of these images.

    Raises:
        ValueError: There is no such corruption or severity, or these are not such images.
        ImportError: Pillow is needed for JPEG, and is not installed.
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
        _corrupt_chunk(chunk, name, severity, spawn_seeds(seed, place, count=1)[0], white_value)
        for place, chunk in enumerate(inputs.split(IMAGES_PER_CHUNK))
    ]
    return torch.cat(chunks)


def list_corruptions(channels: int, *, standard_only: bool = False) -> tuple[str, ...]:
    """Names of the corruptions for images of so many channels.

    Args:
        channels: 3 for colour.
        standard_only: Only the fifteen that results are usually averaged over.
    """
    return tuple(
        name
        for name in (STANDARD_CORRUPTIONS if standard_only else CORRUPTIONS)
        if channels == 3 or name != "saturate"
    )


def infer_white_value(inputs: Tensor) -> float:
    """The value of white: the least of 1, 16 (scikit-learn's digits) and 255 that no pixel exceeds.

    Args:
        inputs: Many images, [n, channels, height, width]: of a few dark ones it would be too low.

    Raises:
        ValueError: Values are negative, above 255 or not finite.
    """
    low, high = (float(value) for value in inputs.aminmax()) if inputs.numel() else (0.0, 1.0)
    if not (low >= 0 and high <= WHITE_VALUES[-1]):
        raise ValueError(
            f"Images must have values from 0 (black) to 255 at most (white), got {low:g} to {high:g}. Pass them "
            "raw, before any standardisation: a fitted posterior applies its own."
        )
    return next(white for white in WHITE_VALUES if high <= white)


def _corrupt_chunk(chunk: Tensor, name: str, severity: int, seed: int, white_value: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    found = CORRUPTIONS[name](chunk.float() / white_value, severity, generator).clamp(0, 1) * white_value
    return found.to(chunk.dtype) if chunk.is_floating_point() else found.round().to(chunk.dtype)
