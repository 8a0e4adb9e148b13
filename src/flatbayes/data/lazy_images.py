"""Images that are decoded when they are needed, a batch at a time, for datasets that do not fit in memory.

`LazyImages` replaces the tensor of all images. Threads decode the next batches while the caller works on one.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.data.images import EncodedImage, ImageLayout, allocate_images, decode_image
from flatbayes.data.standardize import Standardize

PREFETCH_BATCHES = 2  # batches that are decoded ahead
NUM_STATISTICS_IMAGES = 2048
"""Size of the random sample for the mean and standard deviation of the images."""


@dataclass(frozen=True, eq=False)
class LazyImages:
    """An ordered selection of encoded images.

    Attributes:
        read_encoded: Yields the images with the given row numbers, in any order; called by one thread at a time.
        layout: Shape of the decoded images.
        rows: Row numbers of the images, [n].

    Examples:
        >>> from PIL import Image
        >>> for name in ("photos/cat", "photos/dog"):
        ...     Path(name).mkdir(parents=True)
        ...     for k in range(10):
        ...         Image.new("RGB", (16, 16), (k, 0, 0)).save(f"{name}/{k}.png")
        >>> images = ImageFolder(path="photos", stream=True).load(seed=0).train.inputs
        >>> type(images).__name__, len(images), images[:2].shape  # the last one decodes two images
        ('LazyImages', 14, torch.Size([2, 3, 16, 16]))
    """

    read_encoded: Callable[[np.ndarray], Iterator[EncodedImage]]
    layout: ImageLayout
    rows: Tensor

    __repr__ = format_fields

    dtype = torch.uint8

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor of all images, [n, channels, height, width]."""
        layout = self.layout
        return torch.Size((len(self), layout.channels, layout.height, layout.width))

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Decode the images at these positions, [m, channels, height, width]."""
        with _make_thread_pool() as pool:
            return self._decode_rows(self.rows[index], pool)

    def subset(self, index: Tensor) -> "LazyImages":
        """Select the images at these positions without decoding them."""
        return LazyImages(self.read_encoded, self.layout, self.rows[index])

    def split(self, size: int) -> Iterator[Tensor]:
        """Decode all images in order, in batches of `size`."""
        return self.iter_batches(torch.arange(len(self)).split(size))

    def iter_batches(self, positions: Sequence[Tensor]) -> Iterator[Tensor]:
        """Decode one batch for each tensor of positions, `PREFETCH_BATCHES` ahead of the caller."""
        pending: deque[Future[Tensor]] = deque()
        with _make_thread_pool() as pool, ThreadPoolExecutor(1) as prefetcher:
            try:
                for index in positions:
                    pending.append(prefetcher.submit(self._decode_rows, self.rows[index], pool))
                    if len(pending) > PREFETCH_BATCHES:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:  # the caller may stop early
                for future in pending:
                    future.cancel()

    @cached_property
    def standardization(self) -> Standardize:
        """Mean and standard deviation of each channel, from at most `NUM_STATISTICS_IMAGES` random images."""
        order = torch.randperm(len(self), generator=make_generator(Stream.IMAGE_STATISTICS))[:NUM_STATISTICS_IMAGES]
        return Standardize.fit(self[order.sort().values])

    def _decode_rows(self, rows: Tensor, pool: ThreadPoolExecutor) -> Tensor:
        inputs = allocate_images(len(rows), self.layout)
        images = pool.map(partial(decode_image, layout=self.layout), self.read_encoded(rows.numpy()))
        for position, image in enumerate(images):
            inputs[position] = image
        return torch.from_numpy(inputs)


def _make_thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")
