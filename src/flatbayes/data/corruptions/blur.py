"""Blur corruptions of images, after Hendrycks & Dietterich (ICLR 2019), with strengths for small images.

Each is a function of images [n, channels, height, width] from 0 (black) to 1 (white), a severity from 1 to 5 and a
generator. Integrals over shifts are weighted sums over a few points, with bilinear interpolation.
"""

import math

import torch
from torch import Tensor

from flatbayes.data.corruptions.sampling import (
    average_shifts,
    compute_pixel_scale,
    sample_normal,
    sample_uniform,
    warp_images,
)

NUM_QUADRATURE_POINTS = 25
NUM_ZOOMS = 11


def gaussian_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Gaussian blur: the average over normally distributed shifts."""
    std = (0.5, 0.8, 1.1, 1.5, 2.0)[severity - 1] * compute_pixel_scale(images)
    line, weights = _compute_normal_quadrature(images)
    zeros = torch.zeros_like(line)
    for axes in ((line, zeros), (zeros, line)):  # separable: one axis after the other is faster
        images = average_shifts(images, std * torch.stack(axes, -1), weights)
    return images


def defocus_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Defocus blur: the average over a disk of shifts."""
    radius = (0.8, 1.2, 1.7, 2.3, 3.0)[severity - 1] * compute_pixel_scale(images)
    line = torch.linspace(-1, 1, NUM_QUADRATURE_POINTS, device=images.device)
    square = torch.cartesian_prod(line, line)
    disk = square[square.square().sum(-1) <= 1]
    return average_shifts(images, radius * disk, disk.new_full((len(disk),), 1 / len(disk)))


def motion_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Motion blur: normally distributed shifts along one random direction per image."""
    std = (0.7, 1.1, 1.6, 2.2, 3.0)[severity - 1] * compute_pixel_scale(images)
    angle = math.pi * sample_uniform((len(images), 1), images, generator)
    line, weights = _compute_normal_quadrature(images)
    shifts = std * line[:, None] * torch.cat([angle.sin(), angle.cos()], -1)[:, None]
    return average_shifts(images, shifts, weights)


def zoom_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Zoom blur: the average over zoom factors from 1 to a largest one."""
    largest = (1.10, 1.18, 1.27, 1.37, 1.50)[severity - 1]
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - (height - 1) / 2
    columns = torch.arange(width, device=images.device) - (width - 1) / 2
    from_center = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    zooms = torch.linspace(1, largest, NUM_ZOOMS).tolist()
    return torch.stack([warp_images(images, (1 / zoom - 1) * from_center[None]) for zoom in zooms]).mean(0)


def glass_blur(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Glass blur: each pixel takes the value at a normally distributed offset of its own."""
    std = (0.35, 0.55, 0.80, 1.1, 1.5)[severity - 1] * compute_pixel_scale(images)
    return warp_images(images, std * sample_normal((len(images), *images.shape[-2:], 2), images, generator))


def _compute_normal_quadrature(images: Tensor) -> tuple[Tensor, Tensor]:
    """Equally spaced points from -3 to 3, and the normalized weights of a standard normal distribution."""
    line = torch.linspace(-3, 3, NUM_QUADRATURE_POINTS, device=images.device)
    density = (-line.square() / 2).exp()
    return line, density / density.sum()
