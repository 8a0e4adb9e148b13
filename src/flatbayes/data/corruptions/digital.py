"""Digital corruptions of images, after Hendrycks & Dietterich (ICLR 2019), with strengths for small images.

Each is a function of images [n, channels, height, width] from 0 (black) to 1 (white), a severity from 1 to 5 and a
generator. `corrupt_images` clamps the result to this range.
"""

import io

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.optional import require_package
from flatbayes.data.corruptions.sampling import compute_pixel_scale, sample_normal, warp_images


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
