"""Random flips, shifts and holes of training images, for whole batches on their device."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Changes each image of a batch at random.

    Attributes:
        flip: Mirror every second image, on average, left to right.
        pad: Surround images by this many black pixels, and cut a window of the original size out anywhere.
        cutout: Side of a square, in pixels, that is made black around a random pixel (DeVries & Taylor, 2017); 0 for
            none.
    """

    flip: bool
    pad: int
    cutout: int = 0

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad is a number of pixels, 0 or more, got {self.pad}.")
        if self.cutout < 0:
            raise ValueError(f"cutout is a number of pixels, 0 or more, got {self.cutout}.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images of the same shape and dtype.

        Args:
            images: [n, channels, height, width], before standardisation, so that 0 is black.
            generator: Decides flips, shifts and holes; it may live on another device than the images.
        """
        count, _, height, width = images.shape
        flips = torch.zeros(count, dtype=torch.bool)
        shifts = torch.zeros(2, count, dtype=torch.int64)
        if self.flip:
            flips = torch.rand(count, generator=generator, device=generator.device) < 0.5
        if self.pad:
            spread = 2 * self.pad + 1
            shifts = torch.randint(spread, (2, count), generator=generator, device=generator.device) - self.pad
        flips, (down, right) = flips.to(images.device), shifts.to(images.device)
        rows = torch.arange(height, device=images.device) + down[:, None]
        columns = torch.arange(width, device=images.device) + right[:, None]
        columns = torch.where(flips[:, None], width - 1 - columns, columns)
        changed = gather_pixels(images, rows, columns)
        if not self.cutout:
            return changed
        places = torch.rand(2, count, generator=generator, device=generator.device).to(images.device)
        return cut_out_squares(changed, (places[0] * height).long(), (places[1] * width).long(), self.cutout)


def cut_out_squares(images: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Images with a black square each, of what of it is inside; one of an even side reaches further up and left.

    Args:
        images: [n, channels, height, width].
        rows: [n], of the centres.
        columns: [n], of the centres.
        side: Of the squares, in pixels.
    """
    height, width = images.shape[-2:]
    across, down = (
        (torch.arange(size, device=images.device) - (centre[:, None] - side // 2))
        for size, centre in ((width, columns), (height, rows))
    )
    hole = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[:, None, None, :]
    return images.masked_fill(hole, 0)


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixel (i, j) of each new image is pixel (rows[i], columns[j]) of the old, and 0 outside of it.

    Args:
        images: [n, channels, height, width].
        rows: [n, height], of any integers.
        columns: [n, width], of any integers.
    """
    count, channels, height, width = images.shape
    row, column = rows[:, :, None], columns[:, None, :]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    pixel = pixel.view(count, 1, height * width).expand(-1, channels, -1)
    found = images.reshape(count, channels, height * width).gather(2, pixel).view(images.shape)
    return found.masked_fill_(~inside[:, None], 0)
