"""CIFAR-100 (Krizhevsky, 2009), from parquet files of the Hugging Face layout or from its original archives."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from flatbayes.data.archive import Archive, find_data_root, read_archives
from flatbayes.data.cifar import from_pickle, from_records
from flatbayes.data.image_parquet import read_images
from flatbayes.data.pickled_arrays import PickledArrays
from flatbayes.data.source import DataSource, RawSplits

CIFAR100_HUB_NAME = "uoft-cs/cifar100"
BINARY = Archive(
    name="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    files=("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt"),
    md5="03b5dce01913d631647c71ecec9e9cb8",
)
PYTHON = Archive(
    name="cifar-100-python.tar.gz",
    folder="cifar-100-python",
    files=("train", "test", "meta"),
    md5="eb9058c3a382ffc7106e4002c42a8d85",
)
Labels = Literal["fine", "coarse"]


@dataclass(frozen=True, kw_only=True)
class CIFAR100(DataSource):
    """50,000 + 10,000 colour photographs of 32 x 32 pixels, in 100 classes.

    Attributes:
        root: Folder with train*.parquet and test*.parquet, or with cifar-100-binary.tar.gz or
            cifar-100-python.tar.gz, packed or not; None takes the folder cifar100 in the one that the environment
            variable FLATBAYES_DATA names, or else downloads from the Hugging Face hub.
        labels: `fine` for the 100 classes, `coarse` for the 20 groups that these form.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
    """

    root: str | None = None
    labels: Labels = "fine"
    flip: bool = True
    pad: int = 4

    def read(self) -> RawSplits:
        """Both parts; in parquet files images stay encoded."""
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels must be {' or '.join(get_args(Labels))}, got {self.labels!r}.")
        contents = "train*.parquet and test*.parquet, cifar-100-binary.tar.gz or cifar-100-python.tar.gz"
        folder = find_data_root(self.root, "cifar100", "CIFAR-100", contents, CIFAR100_HUB_NAME)
        found = read_archives(folder, (BINARY, PYTHON))
        if found is None:
            return read_images(folder, "img", f"{self.labels}_label", None)
        archive, files = found
        return self._from_binary(folder, files) if archive is BINARY else self._from_python(folder, files)

    def _from_binary(self, folder: Path, files: dict[str, bytes]) -> RawSplits:
        chosen = 1 if self.labels == "fine" else 0
        train, test = (
            from_records(files[name], folder / name, labels=2, chosen=chosen) for name in ("train.bin", "test.bin")
        )
        names = files[f"{self.labels}_label_names.txt"].decode().split()
        return RawSplits(unsplit=train, test=test, class_names=tuple(names))

    def _from_python(self, folder: Path, files: dict[str, bytes]) -> RawSplits:
        key = f"{self.labels}_labels"
        train, test = (from_pickle(files[name], folder / name, key) for name in ("train", "test"))
        names = PickledArrays(files["meta"], folder / "meta").words(f"{self.labels}_label_names")
        return RawSplits(unsplit=train, test=test, class_names=tuple(names))
