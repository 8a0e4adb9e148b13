"""STL-10 (Coates, Lee and Ng, AISTATS 2011): few labelled images, larger than CIFAR's."""

from dataclasses import dataclass

import numpy as np
import torch

from flatbayes.data.archive import Archive, find_data_root, read_archives
from flatbayes.data.checks import check_same_length
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split

SHAPE = (3, 96, 96)
PIXELS = 3 * 96 * 96
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
ARCHIVE = Archive(
    name="stl10_binary.tar.gz",
    folder="stl10_binary",
    files=("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"),
    md5="91f7769df0f17e558f3565bffb0c7dfb",
)


@dataclass(frozen=True, kw_only=True)
class STL10(DataSource):
    """5,000 + 8,000 colour photographs of 96 x 96 pixels, in 10 classes; images without a label are not read.

    Attributes:
        root: Folder with stl10_binary.tar.gz, packed or not; None takes the folder stl10 in the one that the
            environment variable FLATBAYES_DATA names.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
    """

    root: str | None = None
    flip: bool = True
    pad: int = 12

    def read(self) -> RawSplits:
        """Both parts."""
        folder = find_data_root(self.root, "stl10", "STL-10", ARCHIVE.name)
        found = read_archives(folder, (ARCHIVE,))
        if found is None:
            raise FileNotFoundError(
                f"There is neither {ARCHIVE.name} nor {ARCHIVE.folder} in {folder}. Put it there."
            )
        _, files = found
        train, test = (
            _part(files[f"{part}_X.bin"], files[f"{part}_y.bin"], f"{folder} ({part}_X.bin)")
            for part in ("train", "test")
        )
        return RawSplits(unsplit=train, test=test, class_names=CLASSES)


def _part(images: bytes, labels: bytes, path: str) -> Split:
    """Images column by column, and labels from 1 on."""
    if not images or len(images) % PIXELS:
        raise ValueError(
            f"{path} has {len(images)} bytes, which are no whole images of {PIXELS}. It is incomplete or another "
            "file: download it again."
        )
    pixels = np.frombuffer(images, dtype=np.uint8).reshape(-1, *SHAPE).transpose(0, 1, 3, 2)
    targets = np.frombuffer(labels, dtype=np.uint8).astype(np.int64) - 1
    check_same_length(path, len(pixels), len(targets))
    return Split(inputs=torch.from_numpy(np.ascontiguousarray(pixels)), targets=torch.from_numpy(targets))
