"""Noise corruptions of images, after Hendrycks & Dietterich (ICLR 2019), with strengths for small images.

Each is a function of images [n, channels, height, width] from 0 (black) to 1 (white), a severity from 1 to 5 and a
generator. `corrupt_images` clamps the result to this range.
"""

import torch
from torch import Tensor

from flatbayes.data.corruptions.sampling import sample_normal, sample_uniform


def gaussian_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Additive normal noise."""
    std = (0.04, 0.06, 0.08, 0.10, 0.13)[severity - 1]
    return images + std * sample_normal(images.shape, images, generator)


def shot_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Shot noise: Poisson counts of photons, with a mean proportional to the pixel value."""
    photons = (300.0, 150.0, 80.0, 45.0, 25.0)[severity - 1]
    counts = torch.poisson((images.clamp(0, 1) * photons).to(generator.device), generator=generator)
    return counts.to(images.device) / photons


def impulse_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Salt-and-pepper noise: each value becomes 0 or 1 with equal, small probability."""
    rate = (0.01, 0.02, 0.04, 0.07, 0.11)[severity - 1]
    uniform = sample_uniform(images.shape, images, generator)
    return images.masked_fill(uniform < rate / 2, 0.0).masked_fill(uniform > 1 - rate / 2, 1.0)


def speckle_noise(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Speckle noise: multiplicative normal noise."""
    std = (0.06, 0.10, 0.15, 0.20, 0.30)[severity - 1]
    return images * (1 + std * sample_normal(images.shape, images, generator))
