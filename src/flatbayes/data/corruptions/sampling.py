"""What corruptions are made of: images averaged over shifts, sampled at moved points, and clouds of noise.

Lengths are given in pixels of a 32 x 32 image. A smaller image shows larger things, so lengths shrink only with the
square root of the size: what blurs a stroke of an 8 x 8 digit is more than a quarter of what blurs a photograph.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_pixel_scale(images: Tensor) -> float:
    """A pixel of a 32 x 32 image, in pixels of these.

    Args:
        images: [n, channels, height, width].
    """
    return math.sqrt(min(images.shape[-2:]) / 32)


def average_shifts(images: Tensor, shifts: Tensor, weights: Tensor) -> Tensor:
    """Sum over k of weights[k] times the image shifted by shifts[k], by bilinear interpolation.

    Outside, an image goes on as its edge.

    Args:
        images: [n, channels, height, width].
        shifts: Down and right in pixels, [k, 2], or [n, k, 2] for shifts of each image's own.
        weights: [k], sum 1.
    """
    count, channels, height, width = images.shape
    reach = math.ceil(float(shifts.abs().max()))
    pixels = torch.arange(-reach, reach + 1, device=images.device)
    # Bilinear interpolation gives a pixel at distance d the weight max(0, 1 - d), along either axis.
    rows, columns = ((1 - (axis[..., None] - pixels).abs()).clamp_min(0) for axis in shifts.unbind(-1))
    kernels = torch.einsum("...ki,...kj,k->...ij", rows, columns, weights)
    kernels = kernels.expand(count, *kernels.shape[-2:]).repeat_interleave(channels, 0)[:, None]
    padded = F.pad(images, [reach] * 4, mode="replicate").reshape(
        1, count * channels, *_compute_padded_size(images, reach)
    )
    return F.conv2d(padded, kernels, groups=count * channels).view(count, channels, height, width)


def warp_images(images: Tensor, offsets: Tensor) -> Tensor:
    """Pixel (i, j) of a new image is the old one's value at (i, j) + offset, by bilinear interpolation.

    Outside, an image goes on as its mirror image.

    Args:
        images: [n, channels, height, width].
        offsets: Down and right in pixels, [n, height, width, 2] (or 1 in place of n).
    """
    count, _, height, width = images.shape
    rows = torch.arange(height, device=images.device)[:, None] + offsets[..., 0]
    columns = torch.arange(width, device=images.device) + offsets[..., 1]
    # grid_sample wants (x, y), with -1 and 1 at the outer edges of the first and the last pixel.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    grid = grid.expand(count, -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def sample_clouds(images: Tensor, generator: torch.Generator, roughness: float = 0.6) -> Tensor:
    """Smooth random fields, [n, 1, height, width], each from 0 to 1.

    A sum of noise on ever finer grids, each half as coarse as the one before and `roughness` times as strong.

    Args:
        images: Says how many, how large and where, [n, channels, height, width].
        generator: Decides the noise.
        roughness: From 0 to 1: how much of the fine grids there is.
    """
    size = tuple(images.shape[-2:])
    total = torch.zeros(len(images), 1, *size, device=images.device)
    cells, strength = 2, 1.0
    while True:
        coarse = tuple(min(cells + 1, side) for side in size)
        noise = sample_normal((len(images), 1, *coarse), images, generator)
        total += strength * F.interpolate(noise, size, mode="bilinear", align_corners=True)
        if coarse == size:
            break
        cells, strength = 2 * cells, roughness * strength
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def sample_normal(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the generator, where the images are."""
    return torch.randn(shape, generator=generator, device=generator.device).to(images.device)


def sample_uniform(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1) of the generator, where the images are."""
    return torch.rand(shape, generator=generator, device=generator.device).to(images.device)


def _compute_padded_size(images: Tensor, reach: int) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height + 2 * reach, width + 2 * reach
