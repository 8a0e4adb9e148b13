"""CIFAR-10 (Krizhevsky, 2009), from parquet files of the Hugging Face layout or from its original archives."""

from dataclasses import dataclass

from flatbayes.data.archive import Archive, find_data_root, read_archives
from flatbayes.data.cifar import from_pickle, from_records, joined
from flatbayes.data.image_parquet import read_images
from flatbayes.data.source import DataSource, RawSplits

CIFAR10_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_HUB_NAME = "uoft-cs/cifar10"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
BINARY = Archive(
    name="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    files=(*(f"{batch}.bin" for batch in BATCHES), "test_batch.bin"),
    md5="c32a1d4ab5d03f1284b67883e8d87530",
)
PYTHON = Archive(
    name="cifar-10-python.tar.gz",
    folder="cifar-10-batches-py",
    files=(*BATCHES, "test_batch"),
    md5="c58f30108f718f92721af3b95e74349a",
)


@dataclass(frozen=True, kw_only=True)
class CIFAR10(DataSource):
    """50,000 + 10,000 colour photographs of 32 x 32 pixels, in 10 classes.

    Attributes:
        root: Folder with train*.parquet and test*.parquet, or with cifar-10-binary.tar.gz or cifar-10-python.tar.gz,
            packed or not; None takes the folder cifar10 in the one that the environment variable FLATBAYES_DATA
            names, or else downloads from the Hugging Face hub.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
    """

    root: str | None = None
    flip: bool = True
    pad: int = 4

    def read(self) -> RawSplits:
        """Both parts; in parquet files images stay encoded."""
        contents = "train*.parquet and test*.parquet, cifar-10-binary.tar.gz or cifar-10-python.tar.gz"
        folder = find_data_root(self.root, "cifar10", "CIFAR-10", contents, CIFAR10_HUB_NAME)
        found = read_archives(folder, (BINARY, PYTHON))
        if found is None:
            return read_images(folder, "img", "label", None, CIFAR10_CLASS_NAMES)
        archive, files = found
        *train, test = (
            from_records(content, folder / name, labels=1, chosen=0)
            if archive is BINARY
            else from_pickle(content, folder / name, "labels")
            for name, content in ((name, files[name]) for name in archive.files)
        )
        return RawSplits(unsplit=joined(train), test=test, class_names=CIFAR10_CLASS_NAMES)
