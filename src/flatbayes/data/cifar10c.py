"""CIFAR-10-C (Hendrycks & Dietterich, ICLR 2019): the published corrupted test images of CIFAR-10.

A folder of NumPy arrays: `labels.npy`, and for each corruption `<name>.npy` with 5 x 10,000 images, where the s-th
10,000 have severity s. Files are memory-mapped, so only the requested rows are read, and nothing is unpickled.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.checks import to_int64
from flatbayes.data.corruptions.corrupt import NUM_SEVERITIES
from flatbayes.data.size_limit import check_memory
from flatbayes.data.splits import Split

LABELS_FILE_STEM = "labels"


@dataclass(frozen=True, kw_only=True)
class CIFAR10C:
    """CIFAR-10-C, or other corrupted images in files of the same format.

    Attributes:
        path: Folder with `labels.npy` and one file for each corruption.
        max_examples: Number of images to read of each severity, from the first on; None for all.

    Raises:
        ValueError: `max_examples` is below 1.

    Examples:
        >>> np.save("labels.npy", np.arange(4))  # of the real data: 10,000 labels
        >>> np.save("fog.npy", np.zeros((5 * 4, 32, 32, 3), dtype=np.uint8))  # five severities
        >>> images = CIFAR10C(path=".")
        >>> images.corruption_names(), images.read_split("fog", severity=3).inputs.shape
        (('fog',), torch.Size([4, 3, 32, 32]))
    """

    path: str
    max_examples: int | None = None

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError(f"max_examples is a number of images, 1 or more, or None; got {self.max_examples}.")

    def corruption_names(self) -> tuple[str, ...]:
        """List the corruptions in the folder in alphabetical order.

        Raises:
            FileNotFoundError: The folder does not exist, or holds no arrays.
        """
        folder = Path(self.path)
        names = tuple(sorted(file.stem for file in folder.glob("*.npy") if file.stem != LABELS_FILE_STEM))
        if not names:
            raise FileNotFoundError(
                f"There are no corrupted images in {folder}. Unpack CIFAR-10-C there: labels.npy, fog.npy ..."
            )
        return names

    def read_split(self, name: str, severity: int) -> Split:
        """Read the images, [n, channels, height, width], and labels of one corruption and severity.

        Args:
            name: One of `corruption_names()`.
            severity: From 1 to 5.

        Raises:
            ValueError: There is no such corruption or severity, or a file has another format.
            FileNotFoundError: A file is missing.
        """
        if name not in self.corruption_names():
            raise ValueError(f"There is no {name}.npy in {self.path}. Known: {', '.join(self.corruption_names())}.")
        if severity not in range(1, NUM_SEVERITIES + 1):
            raise ValueError(f"A severity is a whole number from 1 to {NUM_SEVERITIES}, got {severity}.")
        images, labels = self._open_array(name), self._open_array(LABELS_FILE_STEM)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) % NUM_SEVERITIES or not len(images):
            raise ValueError(
                f"{name}.npy in {self.path} must hold images of {NUM_SEVERITIES} severities, uint8 [n, height, "
                f"width, channels]; got {images.dtype} of the shape {images.shape}. Download it again."
            )
        count = len(images) // NUM_SEVERITIES
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (count, len(images)):
            raise ValueError(
                f"labels.npy in {self.path} must hold {count} or {len(images)} whole numbers, one for each image "
                f"of {name}.npy; got {labels.dtype} of the shape {labels.shape}. Download it again."
            )
        start, num_read = (severity - 1) * count, min(self.max_examples or count, count)
        check_memory(2 * num_read * images[0].nbytes, f"The images of {name}.npy in {self.path}")
        # A copy: the memory map is read-only.
        all_targets = to_int64(labels, f"labels.npy in {self.path}")
        pixels = images[start : start + num_read].transpose(0, 3, 1, 2).copy()
        targets = all_targets[start : start + num_read] if len(labels) == len(images) else all_targets[:num_read]
        return Split(inputs=torch.from_numpy(pixels), targets=torch.from_numpy(targets))

    def _open_array(self, name: str) -> np.ndarray:
        path = Path(self.path) / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. Unpack CIFAR-10-C there, labels.npy too.")
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as an array: {error}. Download it again.") from error
        return array
