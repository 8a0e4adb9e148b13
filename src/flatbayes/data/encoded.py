"""Examples whose images are still encoded: decoded when the rows of a part are known, or later still."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.dataset import Part
from flatbayes.data.images import Encoded, Layout, decoded, empty
from flatbayes.data.stored import StoredImages


@dataclass(frozen=True, kw_only=True)
class EncodedPart:
    """Some examples with their labels, the images still encoded.

    Attributes:
        encoded: Yields the images with the given numbers, which ascend unless images are streamed.
        layout: What they are decoded to.
        targets: The class of each example, [n] (int64).
        stream: Leave images where they are until a batch asks for them.
    """

    encoded: Callable[[np.ndarray], Iterator[Encoded]]
    layout: Layout
    targets: Tensor
    stream: bool = False

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> Part:
        """The examples with these numbers, in this order, decoded unless they are streamed."""
        if self.stream:
            stored = StoredImages(encoded=self.encoded, layout=self.layout, rows=rows)
            return Part(inputs=stored, targets=self.targets[rows])
        ascending, places = rows.sort()
        inputs = empty(len(rows), self.layout)
        for place, image in zip(places.tolist(), self.encoded(ascending.numpy()), strict=True):
            inputs[place] = decoded(image, self.layout)
        return Part(inputs=torch.from_numpy(inputs), targets=self.targets[rows])
