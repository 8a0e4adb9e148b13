"""Weather corruptions of images, after Hendrycks & Dietterich (ICLR 2019), with strengths for small images.

Frost is synthesized from noise, where the original overlays photographs. Each is a function of images [n, channels,
height, width] from 0 (black) to 1 (white), a severity from 1 to 5 and a generator. `corrupt_images` clamps the result
to this range.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.data.corruptions.sampling import average_shifts, compute_pixel_scale, sample_clouds, sample_uniform

ICE_RGB = (0.85, 0.93, 1.0)
WATER_RGB = (0.72, 0.82, 0.86)


def fog(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Fog: clouds are added, and the image is rescaled so that its largest value is unchanged."""
    strength = (0.25, 0.5, 0.8, 1.15, 1.6)[severity - 1]
    brightest = images.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
    return (images + strength * sample_clouds(images, generator)) * brightest / (brightest + strength)


def frost(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Frost: ridges of noise on a dimmed image, thicker towards the border."""
    visibility = (0.95, 0.88, 0.80, 0.72, 0.64)[severity - 1]
    ice = (0.18, 0.28, 0.38, 0.50, 0.64)[severity - 1]
    ridges = sum((1 - (2 * sample_clouds(images, generator, 0.75) - 1).abs()).pow(4) for _ in range(2))
    height, width = images.shape[-2:]
    rows = torch.linspace(-1, 1, height, device=images.device)[:, None].abs()
    columns = torch.linspace(-1, 1, width, device=images.device).abs()
    edge = 0.35 + 0.65 * torch.maximum(rows, columns)
    return visibility * images + ice * edge * (0.25 + 0.75 * ridges) * _broadcast_color(ICE_RGB, images)


def snow(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Snow: motion-blurred flakes on an image that is blended with white."""
    density = (0.02, 0.035, 0.055, 0.08, 0.11)[severity - 1]
    visibility = (0.92, 0.85, 0.78, 0.70, 0.62)[severity - 1]
    flakes = sample_uniform((len(images), 1, *images.shape[-2:]), images, generator)
    flakes = ((flakes - (1 - density)) / density).clamp_min(0).sqrt()
    angle = math.pi * (0.15 + 0.2 * sample_uniform((len(images), 1), images, generator))
    shifts = (
        torch.linspace(-1, 1, 7, device=images.device)[:, None] * torch.cat([angle.cos(), angle.sin()], -1)[:, None]
    )
    flakes = 1.8 * average_shifts(flakes, 1.2 * compute_pixel_scale(images) * shifts, shifts.new_full((7,), 1 / 7))
    white = torch.maximum(images, 0.3 + 0.6 * images.mean(1, keepdim=True))
    return visibility * images + (1 - visibility) * white + flakes


def brightness(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Increased brightness: the value of HSV grows by some amount; hue and saturation are unchanged."""
    increase = (0.07, 0.14, 0.21, 0.29, 0.38)[severity - 1]
    value = images.amax(1, keepdim=True)
    brighter = (value + increase).clamp_max(1)
    return torch.where(value > 0, images * brighter / value.clamp_min(1e-6), brighter)


def spatter(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Spatter: drops of water cover the image where smooth noise is high."""
    covered_fraction = (0.06, 0.11, 0.17, 0.24, 0.33)[severity - 1]
    cells = max(min(images.shape[-2:]) // 3, 4)
    noise = sample_uniform((len(images), 1, cells, cells), images, generator)
    field = F.interpolate(noise, tuple(images.shape[-2:]), mode="bicubic", align_corners=False)
    level = field.flatten(1).quantile(1 - covered_fraction, dim=1).view(-1, 1, 1, 1)
    cover = (0.5 + (field - level) / 0.1).clamp(0, 1) * 0.85
    return images + cover * (_broadcast_color(WATER_RGB, images) - images)


def _broadcast_color(rgb: tuple[float, float, float], images: Tensor) -> Tensor:
    """A color for images of three channels, its mean for others; [channels or 1, 1, 1]."""
    values = images.new_tensor(rgb).view(3, 1, 1)
    return values if images.shape[1] == 3 else values.mean(0, keepdim=True)
