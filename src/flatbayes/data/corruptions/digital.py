"""Digital: what happens to an image after it was taken.

After the digital corruptions of Hendrycks and Dietterich (ICLR 2019), in strengths for small images. Each is a
function of images [n, channels, height, width] from 0 (black) to 1 (white), a severity from 1 to 5 and a generator;
values that leave this range are clamped later.
"""

import io

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.optional import require_package
from flatbayes.data.corruptions.sampling import compute_pixel_scale, sample_normal, warp_images


def contrast(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Every channel drawn towards its mean."""
    kept = (0.75, 0.58, 0.43, 0.30, 0.18)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return mean + kept * (images - mean)


def saturate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Stronger colours: the saturation of each pixel grows by some factor, up to 1; greys stay grey.

    Raises:
        ValueError: The images have no colour.
    """
    factor = (1.4, 1.8, 2.4, 3.2, 4.5)[severity - 1]
    if images.shape[1] != 3:
        raise ValueError(
            f"saturate is for images of 3 channels (red, green, blue), got {images.shape[1]}. Leave it out; "
            "list_corruptions(channels) lists what there is."
        )
    value, low = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
    # Saturation (value - low) / value becomes 1 where low becomes 0, and no factor goes beyond.
    most = value / (value - low).clamp_min(1e-6)
    return value - (value - images) * most.clamp(1, factor)


def elastic_transform(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """A rubber sheet: every point moves a little, neighbours alike."""
    std = (0.6, 0.9, 1.3, 1.8, 2.4)[severity - 1] * compute_pixel_scale(images)
    pulls = sample_normal((len(images), 2, 5, 5), images, generator)
    field = F.interpolate(pulls, tuple(images.shape[-2:]), mode="bicubic", align_corners=True)
    return warp_images(images, std * field.permute(0, 2, 3, 1))


def pixelate(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Fewer and larger pixels: averages of areas, enlarged again."""
    kept = (0.875, 0.75, 0.625, 0.5, 0.375)[severity - 1]
    rows, columns = (
        _compute_area_average(size, max(round(kept * size), 1)).to(images.device) for size in images.shape[-2:]
    )
    return rows @ images @ columns.T


def jpeg_compression(images: Tensor, severity: int, generator: torch.Generator) -> Tensor:
    """Compressed with loss; images of neither 1 nor 3 channels channel by channel.

    Raises:
        ImportError: Pillow is not installed.
    """
    with require_package("data"):
        from PIL import Image
    quality = (80, 60, 42, 28, 16)[severity - 1]
    planes = images if images.shape[1] in (1, 3) else images.flatten(0, 1)[:, None]
    pixels = (planes.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    found = np.empty_like(pixels)
    for place, picture in enumerate(pixels):
        stream = io.BytesIO()
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(
            stream, "JPEG", quality=quality
        )
        found[place] = np.asarray(Image.open(stream)).reshape(picture.shape)
    return (torch.from_numpy(found).permute(0, 3, 1, 2).to(images.device) / 255).reshape(images.shape)


def _compute_area_average(size: int, cells: int) -> Tensor:
    """Averages over equal cells of a line, and back: pixels that an edge of a cell divides share it, [size, size]."""
    pixels, edges = torch.arange(size + 1) / size, torch.arange(cells + 1) / cells
    begin = torch.maximum(pixels[:-1, None], edges[:-1])
    end = torch.minimum(pixels[1:, None], edges[1:])
    share = size * (end - begin).clamp_min(0)  # of each pixel in each cell
    return share @ (share / share.sum(0)).T
