"""Examples whose images are still encoded: decoded when the rows of a part are known, or later still."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.images import EncodedImage, ImageLayout, allocate_images, decode_image
from flatbayes.data.lazy_images import LazyImages
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class EncodedSplit:
    """Some examples with their labels, the images still encoded.

    Attributes:
        read_encoded: Yields the images with the given numbers, which ascend unless images are streamed.
        layout: What they are decoded to.
        targets: The class of each example, [n] (int64).
        stream: Leave images where they are until a batch asks for them.
    """

    read_encoded: Callable[[np.ndarray], Iterator[EncodedImage]]
    layout: ImageLayout
    targets: Tensor
    stream: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> Split:
        """The examples with these numbers, in this order, decoded unless they are streamed."""
        if self.stream:
            stored = LazyImages(read_encoded=self.read_encoded, layout=self.layout, rows=rows)
            return Split(inputs=stored, targets=self.targets[rows])
        ascending, places = rows.sort()
        inputs = allocate_images(len(rows), self.layout)
        for place, image in zip(places.tolist(), self.read_encoded(ascending.numpy()), strict=True):
            inputs[place] = decode_image(image, self.layout)
        return Split(inputs=torch.from_numpy(inputs), targets=self.targets[rows])
