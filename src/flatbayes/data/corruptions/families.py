"""Noise, blur, weather and digital corruptions of images, after Hendrycks & Dietterich (ICLR 2019), for small images.

Each is a function of images [n, channels, height, width] from 0 (black) to 1 (white), a severity from 1 to 5 and a
generator. `corrupt_images` clamps the result to this range. Integrals over shifts are weighted sums over a few
points, with bilinear interpolation. Frost is synthesized from noise, where the original overlays photographs.
"""

import io
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.optional import require_package
from flatbayes.data.corruptions.sampling import (
    average_shifts,
    compute_pixel_scale,
    sample_clouds,
    sample_normal,
    sample_uniform,
    warp_images,
)

NUM_QUADRATURE_POINTS = 25
NUM_ZOOMS = 11
ICE_RGB = (0.85, 0.93, 1.0)
WATER_RGB = (0.72, 0.82, 0.86)


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


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Reduced contrast: the deviation of each channel from its mean is scaled down."""
    factor = (0.75, 0.58, 0.43, 0.30, 0.18)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return mean + factor * (images - mean)


def saturate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Increased saturation (of HSV): multiplied by a factor and limited to 1; gray pixels stay gray.

    Raises:
        ValueError: The images do not have 3 channels.
    """
    factor = (1.4, 1.8, 2.4, 3.2, 4.5)[severity - 1]
    if images.shape[1] != 3:
        raise ValueError(
            f"saturate is for images of 3 channels (red, green, blue), got {images.shape[1]}. Leave it out; "
            "list_corruptions(channels) lists what there is."
        )
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    # The saturation is (value - low) / value, so this factor raises it to 1.
    max_factor = value / (value - low).clamp_min(1e-6)
    return value - (value - images) * max_factor.clamp(1, factor)


def elastic_transform(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Elastic deformation: each pixel takes the value at a smooth random offset."""
    std = (0.6, 0.9, 1.3, 1.8, 2.4)[severity - 1] * compute_pixel_scale(images)
    coarse_field = sample_normal((len(images), 2, 5, 5), images, generator)
    field = F.interpolate(coarse_field, tuple(images.shape[-2:]), mode="bicubic", align_corners=True)
    return warp_images(images, std * field.permute(0, 2, 3, 1))


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Reduced resolution: averages over areas, enlarged to the original size."""
    factor = (0.875, 0.75, 0.625, 0.5, 0.375)[severity - 1]
    rows, columns = (
        _compute_area_average(size, max(round(factor * size), 1)).to(images.device) for size in images.shape[-2:]
    )
    return rows @ images @ columns.T


def jpeg_compression(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """JPEG compression and decompression; images of neither 1 nor 3 channels are compressed channel by channel.

    Raises:
        ImportError: Pillow is not installed.
    """
    with require_package("data"):
        from PIL import Image
    quality = (80, 60, 42, 28, 16)[severity - 1]
    planes = images if images.shape[1] in (1, 3) else images.flatten(0, 1)[:, None]
    pixels = (planes.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty_like(pixels)
    for position, array in enumerate(pixels):
        stream = io.BytesIO()
        Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(stream, "JPEG", quality=quality)
        decoded[position] = np.asarray(Image.open(stream)).reshape(array.shape)
    return (torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images.device) / 255).reshape(images.shape)


def _compute_area_average(size: int, cells: int) -> Tensor:
    """Matrix [size, size] that averages a line of pixels over equal cells and assigns the averages to the pixels.

    A pixel that overlaps two cells contributes to both in proportion to the overlap.
    """
    pixels, edges = torch.arange(size + 1) / size, torch.arange(cells + 1) / cells
    begin = torch.maximum(pixels[:-1, None], edges[:-1])
    end = torch.minimum(pixels[1:, None], edges[1:])
    overlap = size * (end - begin).clamp_min(0)  # fraction of each pixel in each cell
    return overlap @ (overlap / overlap.sum(0)).T
