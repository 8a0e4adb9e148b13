"""Street View House Numbers (Netzer et al., 2011), cropped to single digits."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.archive import check_md5, find_data_root
from flatbayes.data.cifar import joined
from flatbayes.data.image_parquet import read_images
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split

MD5 = {
    "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
    "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    "extra_32x32.mat": "a93ce644f1a588dc4d68dda5feec44a7",
}
HUB = ("ufldl-stanford/svhn", "cropped_digits")
CLASSES = tuple("0123456789")


@dataclass(frozen=True, kw_only=True)
class SVHN(DataSource):
    """73,257 + 26,032 colour photographs of digits, 32 x 32 pixels.

    Attributes:
        root: Folder with train_32x32.mat and test_32x32.mat, or with train*.parquet and test*.parquet; None takes the
            folder svhn in the one that the environment variable FLATBAYES_DATA names, or else downloads from the
            Hugging Face hub.
        extra: Train on the 531,131 easier images of extra_32x32.mat too.
    """

    root: str | None = None
    extra: bool = False

    def read(self) -> RawSplits:
        """Both parts."""
        folder = find_data_root(self.root, "svhn", "SVHN", "train_32x32.mat and test_32x32.mat", *HUB)
        names = ["train_32x32.mat", "test_32x32.mat", *(["extra_32x32.mat"] if self.extra else [])]
        if not any((folder / name).is_file() for name in names) and any(folder.rglob("*.parquet")):
            if self.extra:
                raise ValueError(f"extra is read from extra_32x32.mat, and {folder} has parquet files. Leave it out.")
            return read_images(folder, "image", "label", None, CLASSES)
        train, test, *extra = (read_mat(folder / name, MD5[name]) for name in names)
        return RawSplits(unsplit=joined([train, *extra]), test=test, class_names=CLASSES)


def read_mat(path: Path, published: str) -> Split:
    """Images X, [height, width, 3, n], and labels y, of which 10 is the digit 0.

    Args:
        path: A file of MATLAB 5.
        published: Its MD5 checksum.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or not the one that was published.
    """
    from scipy.io import loadmat  # here, since it is slow to import

    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Download the cropped digits of SVHN (Format 2) there.")
    check_md5(path, published)
    try:
        found = loadmat(path, variable_names=["X", "y"])
        images, labels = np.asarray(found["X"]), np.asarray(found["y"]).reshape(-1)
    except Exception as error:  # damage is answered with exceptions of any kind
        raise ValueError(f"{path} cannot be read as a file of MATLAB 5: {error}. Download it again.") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != 3 or images.shape[3] != len(labels):
        raise ValueError(
            f"{path} must hold X, uint8 of the shape [height, width, 3, n], and n labels y; got {images.dtype} of "
            f"the shape {images.shape} and {len(labels)} labels. Download it again."
        )
    pixels = np.ascontiguousarray(images.transpose(3, 2, 0, 1))
    return Split(inputs=torch.from_numpy(pixels), targets=torch.from_numpy(labels.astype(np.int64) % 10))
