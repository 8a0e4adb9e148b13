"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009) from parquet files in the layout of the Hugging Face hub."""

from dataclasses import dataclass
from typing import Literal

from flatbayes.core.names import check_choice
from flatbayes.data.hub import find_data_root
from flatbayes.data.image_parquet import read_images
from flatbayes.data.source import DataSource, RawSplits

CIFAR10_CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_HUB_NAME, CIFAR100_HUB_NAME = "uoft-cs/cifar10", "uoft-cs/cifar100"
PARQUET_FILES = "train*.parquet and test*.parquet"
Labels = Literal["fine", "coarse"]


@dataclass(frozen=True, kw_only=True)
class CIFAR10(DataSource):
    """50,000 training and 10,000 test color images of 32 x 32 pixels in 10 classes.

    Attributes:
        root: Folder with train*.parquet and test*.parquet. None reads the folder cifar10 in the folder that the
            environment variable FLATBAYES_DATA names; without this variable the images are downloaded from the
            Hugging Face hub.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels; the border is filled with black.

    Examples:
        >>> import io
        >>> import pyarrow as pa
        >>> import pyarrow.parquet as pq
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (32, 32)).save(buffer, "png")
        >>> table = pa.table(
        ...     {"img": [{"bytes": buffer.getvalue()}] * 40, "label": [*range(10)] * 4}
        ... )
        >>> pq.write_table(table, "train.parquet")  # of the real data: 50,000 images
        >>> pq.write_table(table, "test.parquet")
        >>> CIFAR10(root=".").load(seed=0).train.inputs.shape
        torch.Size([36, 3, 32, 32])
    """

    root: str | None = None
    flip: bool = True
    pad: int = 4

    def read(self) -> RawSplits:
        """Read both splits; images stay encoded."""
        folder = find_data_root(self.root, "cifar10", "CIFAR-10", PARQUET_FILES, CIFAR10_HUB_NAME)
        return read_images(folder, "img", "label", None, CIFAR10_CLASS_NAMES)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(DataSource):
    """50,000 training and 10,000 test color images of 32 x 32 pixels in 100 classes.

    Attributes:
        root: Folder with train*.parquet and test*.parquet. None reads the folder cifar100 in the folder that the
            environment variable FLATBAYES_DATA names; without this variable the images are downloaded from the
            Hugging Face hub.
        labels: `fine` for the 100 classes, `coarse` for their 20 superclasses.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels; the border is filled with black.

    Examples:
        >>> import io
        >>> import pyarrow as pa
        >>> import pyarrow.parquet as pq
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (32, 32)).save(buffer, "png")
        >>> columns = {"img": [{"bytes": buffer.getvalue()}] * 40, "coarse_label": [0, 1] * 20}
        >>> pq.write_table(pa.table(columns), "train.parquet")  # of the real data: 50,000 images
        >>> pq.write_table(pa.table(columns), "test.parquet")
        >>> CIFAR100(root=".", labels="coarse").load(seed=0).train.inputs.shape
        torch.Size([36, 3, 32, 32])
    """

    root: str | None = None
    labels: Labels = "fine"
    flip: bool = True
    pad: int = 4

    def read(self) -> RawSplits:
        """Read both splits; images stay encoded."""
        check_choice("labels", self.labels, Labels)
        folder = find_data_root(self.root, "cifar100", "CIFAR-100", PARQUET_FILES, CIFAR100_HUB_NAME)
        return read_images(folder, "img", f"{self.labels}_label", None)
