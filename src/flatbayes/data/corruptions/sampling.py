"""Operations that image corruptions share: weighted sums of shifted images, warps, and random fields.

Lengths are given in pixels of a 32 x 32 image and scale with the square root of the image size, since smaller images
show larger objects: a stroke of an 8 x 8 digit is wider, relative to the image, than details of a photograph.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def compute_pixel_scale(images: Tensor) -> float:
    """Length, in pixels of these images, that stands for one pixel of a 32 x 32 image."""
    return math.sqrt(min(images.shape[-2:]) / 32)


def average_shifts(images: Tensor, shifts: Tensor, weights: Tensor) -> Tensor:
    """Sum over k of weights[k] times the image shifted by shifts[k], by bilinear interpolation.

    Images are padded with the values at their border.

    Args:
        images: [n, channels, height, width].
        shifts: Down and right in pixels, [k, 2], or [n, k, 2] for different shifts of each image.
        weights: [k], sum 1.
    """
    count, channels, height, width = images.shape
    reach = math.ceil(float(shifts.abs().max()))
    pixels = torch.arange(-reach, reach + 1, device=images.device)
    # Bilinear interpolation gives a pixel at distance d the weight max(0, 1 - d), along either axis.
    rows, columns = ((1 - (axis[..., None] - pixels).abs()).clamp_min(0) for axis in shifts.unbind(-1))
    kernels = torch.einsum("...ki,...kj,k->...ij", rows, columns, weights)
    kernels = kernels.expand(count, *kernels.shape[-2:]).repeat_interleave(channels, 0)[:, None]
    padded = F.pad(images, [reach] * 4, mode="replicate")
    padded = padded.view(1, count * channels, *padded.shape[-2:])
    return F.conv2d(padded, kernels, groups=count * channels).view(count, channels, height, width)


def warp_images(images: Tensor, offsets: Tensor) -> Tensor:
    """Take pixel (i, j) from position (i, j) + offset of the image, by bilinear interpolation.

    Images are padded by reflection.

    Args:
        images: [n, channels, height, width].
        offsets: Down and right in pixels, [n, height, width, 2] (or 1 in place of n).
    """
    count, _, height, width = images.shape
    rows = torch.arange(height, device=images.device)[:, None] + offsets[..., 0]
    columns = torch.arange(width, device=images.device) + offsets[..., 1]
    # grid_sample takes (x, y), with -1 and 1 at the outer edges of the first and the last pixel.
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    grid = grid.expand(count, -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def sample_clouds(images: Tensor, generator: torch.Generator, roughness: float = 0.6) -> Tensor:
    """Sample smooth random fields, [n, 1, height, width], each scaled to values from 0 to 1.

    The field is a sum of noise on grids of doubling resolution, where the amplitude decreases by `roughness`.

    Args:
        images: Images of the number, size and device of the fields, [n, channels, height, width].
        generator: Source of the noise.
        roughness: Ratio of the amplitudes of successive grids, from 0 to 1.
    """
    size = tuple(images.shape[-2:])
    total = torch.zeros(len(images), 1, *size, device=images.device)
    num_cells, amplitude = 2, 1.0
    while True:
        coarse = tuple(min(num_cells + 1, side) for side in size)
        noise = sample_normal((len(images), 1, *coarse), images, generator)
        total += amplitude * F.interpolate(noise, size, mode="bilinear", align_corners=True)
        if coarse == size:
            break
        num_cells, amplitude = 2 * num_cells, roughness * amplitude
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp_min(1e-6)


def sample_normal(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Sample standard normal numbers on the device of the images."""
    return torch.randn(shape, generator=generator, device=generator.device).to(images.device)


def sample_uniform(shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Sample uniform numbers in [0, 1) on the device of the images."""
    return torch.rand(shape, generator=generator, device=generator.device).to(images.device)
