"""Augmentation of training images: random flips, shifts and cutout (DeVries & Taylor, 2017), a batch at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flatbayes.core.input_trees import IGNORE_INDEX


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random augmentation of each image of a batch.

    Attributes:
        flip: Mirror each image left to right with probability 1/2.
        pad: Pad images with this many black pixels on each side, and crop a random window of the original size.
        cutout: Side in pixels of a black square around a random pixel; 0 for none.
        ignore_index: Label of pixels that come from outside an image, where each pixel has a class.

    Examples:
        >>> augment = Augment(flip=True, pad=4, cutout=8)
        >>> augment(torch.ones(5, 3, 32, 32), torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3, 32, 32])
    """

    flip: bool
    pad: int
    cutout: int = 0
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad is a number of pixels, 0 or more, got {self.pad}.")
        if self.cutout < 0:
            raise ValueError(f"cutout is a number of pixels, 0 or more, got {self.cutout}.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images; shape and dtype stay the same.

        Args:
            images: [n, channels, height, width] before standardization, so that 0 is black.
            generator: Source of all randomness; it may be on another device than the images.
        """
        count, _, height, width = images.shape
        augmented = self._move_pixels(images, generator)
        if not self.cutout:
            return augmented
        centers = torch.rand(2, count, generator=generator, device=generator.device).to(images.device)
        return cut_out_squares(augmented, (centers[0] * height).long(), (centers[1] * width).long(), self.cutout)

    def move_masks(self, masks: Tensor, generator: torch.Generator) -> Tensor:
        """Move the class of each pixel as images are moved with a generator in the same state.

        Pixels from outside an image get `ignore_index`; those that are cut out keep their class.

        Args:
            masks: [n, height, width], integers.
            generator: Source of all randomness, in the state that it has for the images.

        Examples:
            >>> augment, images = Augment(flip=True, pad=2), torch.rand(5, 1, 8, 8)
            >>> moved = augment(images, torch.Generator().manual_seed(0))[:, 0]
            >>> masks = augment.move_masks((images[:, 0] > 0.5).long(), torch.Generator().manual_seed(0))
            >>> torch.equal(masks == 1, moved > 0.5)
            True
        """
        return self._move_pixels(masks[:, None] - self.ignore_index, generator)[:, 0] + self.ignore_index

    def _move_pixels(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Flipped and shifted images, with 0 outside."""
        count, _, height, width = images.shape
        is_flipped = torch.zeros(count, dtype=torch.bool, device=images.device)
        shifts = torch.zeros(2, count, dtype=torch.int64, device=images.device)
        if self.flip:
            is_flipped = torch.rand(count, generator=generator, device=generator.device) < 0.5
        if self.pad:
            num_shifts = 2 * self.pad + 1
            shifts = torch.randint(num_shifts, (2, count), generator=generator, device=generator.device) - self.pad
        is_flipped, (down, right) = is_flipped.to(images.device), shifts.to(images.device)
        rows = torch.arange(height, device=images.device) + down[:, None]
        columns = torch.arange(width, device=images.device) + right[:, None]
        columns = torch.where(is_flipped[:, None], width - 1 - columns, columns)
        return gather_pixels(images, rows, columns)


def cut_out_squares(images: Tensor, rows: Tensor, columns: Tensor, side: int) -> Tensor:
    """Set a square around pixel (rows[k], columns[k]) of image k to black; an even one extends more up and left."""
    height, width = images.shape[-2:]
    across, down = (
        (torch.arange(size, device=images.device) - (center[:, None] - side // 2))
        for size, center in ((width, columns), (height, rows))
    )
    mask = ((down >= 0) & (down < side))[:, None, :, None] & ((across >= 0) & (across < side))[:, None, None, :]
    return images.masked_fill(mask, 0)


def gather_pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Copy pixel (rows[k, i], columns[k, j]) of image k to its pixel (i, j); 0 for positions outside the image."""
    count, channels, height, width = images.shape
    row, column = rows[:, :, None], columns[:, None, :]
    is_inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    index = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    index = index.view(count, 1, height * width).expand(-1, channels, -1)
    pixels = images.reshape(count, channels, height * width).gather(2, index).view(images.shape)
    return pixels.masked_fill_(~is_inside[:, None], 0)
