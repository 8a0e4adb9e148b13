"""What the readers of CIFAR-10 and CIFAR-100 share: images of 32 x 32 pixels in binary records or in pickles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.pickled_arrays import PickledArrays
from flatbayes.data.splits import Split

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


def from_records(content: bytes, path: Path | str, labels: int, chosen: int) -> Split:
    """Images in binary records: labels of a byte each, then the pixels, channel by channel.

    Args:
        content: Of the file.
        path: For messages.
        labels: Bytes of labels before each image.
        chosen: The label that counts, from 0.

    Raises:
        ValueError: It does not hold whole records.
    """
    size = labels + PIXELS
    if not content or len(content) % size:
        raise ValueError(
            f"{path} has {len(content)} bytes, which are no whole records of {size} bytes. It is incomplete or "
            "another file: download it again."
        )
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, size)
    return Split(
        inputs=torch.from_numpy(records[:, labels:].reshape(-1, *SHAPE).copy()),
        targets=torch.from_numpy(records[:, chosen].astype(np.int64)),
    )


def from_pickle(content: bytes, path: Path | str, labels: str) -> Split:
    """Images in a pickled dictionary, which is not unpickled.

    Args:
        content: Of the file.
        path: For messages.
        labels: The key of the labels.

    Raises:
        ValueError: It is damaged, or images and labels differ in number.
    """
    found = PickledArrays(content, path)
    pixels, targets = found.longest(), found.numbers(labels)
    if not targets or len(pixels) != len(targets) * PIXELS:
        raise ValueError(
            f"{path} has {len(targets)} labels and {len(pixels)} bytes of pixels, where each image has {PIXELS}. "
            "It is incomplete or another file: download it again."
        )
    images = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, *SHAPE).copy()
    return Split(inputs=torch.from_numpy(images), targets=torch.tensor(targets))


def joined(parts: Sequence[Split]) -> Split:
    """Examples one after the other."""
    return Split(
        inputs=torch.cat([part.input_tensor for part in parts]), targets=torch.cat([part.targets for part in parts])
    )
