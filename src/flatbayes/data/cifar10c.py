"""CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019): the test images of CIFAR-10, corrupted, as published.

A folder of NumPy arrays: `labels.npy`, and for each corruption `<name>.npy` with 5 x 10,000 images, of which those of
severity s are the s-th 10,000. Only the rows asked for are read, and nothing is unpickled.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.splits import Split

NUM_SEVERITIES = 5
LABELS_FILE_STEM = "labels"


@dataclass(frozen=True, kw_only=True)
class CIFAR10C:
    """The original corrupted images, or others in files of the same form.

    Attributes:
        path: Folder with `labels.npy` and one file for each corruption.
        max_examples: At most so many images of each severity, the first ones; None takes all.

    Raises:
        ValueError: No images are asked for.
    """

    path: str
    max_examples: int | None = None

    def __post_init__(self) -> None:
        if self.max_examples is not None and self.max_examples < 1:
            raise ValueError(f"max_examples is a number of images, 1 or more, or None; got {self.max_examples}.")

    def corruption_names(self) -> tuple[str, ...]:
        """The corruptions there are, by the alphabet.

        Raises:
            FileNotFoundError: There is no such folder, or none in it.
        """
        folder = Path(self.path)
        found = tuple(sorted(file.stem for file in folder.glob("*.npy") if file.stem != LABELS_FILE_STEM))
        if not found:
            raise FileNotFoundError(
                f"There are no corrupted images in {folder}. Unpack CIFAR-10-C there: labels.npy, fog.npy ..."
            )
        return found

    def read_split(self, name: str, severity: int) -> Split:
        """The images of one corruption and severity, [n, channels, height, width], with their labels.

        Args:
            name: One of `corruption_names()`.
            severity: From 1 to 5.

        Raises:
            ValueError: There is no such corruption or severity, or a file is not what it should be.
            FileNotFoundError: There are no such files.
        """
        if name not in self.corruption_names():
            raise ValueError(f"There is no {name}.npy in {self.path}. Known: {', '.join(self.corruption_names())}.")
        if severity not in range(1, NUM_SEVERITIES + 1):
            raise ValueError(f"A severity is a whole number from 1 to {NUM_SEVERITIES}, got {severity}.")
        images, labels = self._open_array(name), self._open_array(LABELS_FILE_STEM)
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) % NUM_SEVERITIES or not len(images):
            raise ValueError(
                f"{name}.npy in {self.path} must hold images of {NUM_SEVERITIES} severities, uint8 [n, height, width, "
                f"channels]; got {images.dtype} of the shape {images.shape}. Download it again."
            )
        count = len(images) // NUM_SEVERITIES
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (count, len(images)):
            raise ValueError(
                f"labels.npy in {self.path} must hold {count} or {len(images)} whole numbers, one for each image "
                f"of {name}.npy; got {labels.dtype} of the shape {labels.shape}. Download it again."
            )
        first, kept = (severity - 1) * count, min(self.max_examples or count, count)
        pixels = images[first : first + kept].transpose(0, 3, 1, 2).copy()  # the file is open for reading only
        known = labels[first : first + kept] if len(labels) == len(images) else labels[:kept]
        return Split(inputs=torch.from_numpy(pixels), targets=torch.from_numpy(known.astype(np.int64)))

    def _open_array(self, name: str) -> np.ndarray:
        path = Path(self.path) / f"{name}.npy"
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}. Unpack CIFAR-10-C there, labels.npy too.")
        try:
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path} cannot be read as an array: {error}. Download it again.") from error
        return found
