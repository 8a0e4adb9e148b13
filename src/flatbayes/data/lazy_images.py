"""Images that stay where they are stored: those that are asked for are decoded, a batch at a time.

They stand in for the tensor of all images where that would not fit in memory. Batches are decoded in threads, the
next ones while the caller is still busy with one.
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

from flatbayes.data.images import EncodedImage, ImageLayout, allocate_images, decode_image
from flatbayes.data.standardize import Standardize

PREFETCH_BATCHES = 2  # batches decoded before they are asked for
NUM_STATISTICS_IMAGES = 2048
"""Images that stand for all where their mean and standard deviation are estimated."""


@dataclass(frozen=True, eq=False)
class LazyImages:
    """Some images, in an order.

    Attributes:
        read_encoded: Yields the images with the given numbers, in any order; asked by one thread at a time.
        layout: What they are decoded to.
        rows: Their numbers, [n].
    """

    read_encoded: Callable[[np.ndarray], Iterator[EncodedImage]]
    layout: ImageLayout
    rows: Tensor

    dtype = torch.uint8

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """What that of the tensor would be, [n, channels, height, width]."""
        layout = self.layout
        return torch.Size((len(self), layout.channels, layout.height, layout.width))

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """The images with these places in the order, [m, channels, height, width]."""
        with _make_thread_pool() as pool:
            return self._decode_rows(self.rows[index], pool)

    def subset(self, index: Tensor) -> "LazyImages":
        """Those with these places in the order, still stored."""
        return LazyImages(self.read_encoded, self.layout, self.rows[index])

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in order, so many at a time."""
        return self.iter_batches(torch.arange(len(self)).split(size))

    def iter_batches(self, positions: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images with each of these places, decoded a little ahead."""
        waiting: deque[Future[Tensor]] = deque()
        with _make_thread_pool() as pool, ThreadPoolExecutor(1) as ahead:
            try:
                for place in positions:
                    waiting.append(ahead.submit(self._decode_rows, self.rows[place], pool))
                    if len(waiting) > PREFETCH_BATCHES:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # the caller may have had enough
                for future in waiting:
                    future.cancel()

    @cached_property
    def standardization(self) -> Standardize:
        """Mean and standard deviation of each channel.

        They are estimated from `NUM_STATISTICS_IMAGES` random images, or from all where there are fewer.
        """
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:NUM_STATISTICS_IMAGES]
        return Standardize.fit(self[order.sort().values])

    def _decode_rows(self, rows: Tensor, pool: ThreadPoolExecutor) -> Tensor:
        inputs = allocate_images(len(rows), self.layout)
        images = pool.map(partial(decode_image, layout=self.layout), self.read_encoded(rows.numpy()))
        for place, image in enumerate(images):
            inputs[place] = image
        return torch.from_numpy(inputs)


def _make_thread_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(16, os.cpu_count() or 1), thread_name_prefix="decode")
