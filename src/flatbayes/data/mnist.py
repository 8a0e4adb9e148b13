"""MNIST and data sets of its form, in the IDX files that they are published in, or in parquet files."""

import gzip
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flatbayes.data.archive import check_md5, find_data_root
from flatbayes.data.checks import check_same_length
from flatbayes.data.image_parquet import read_images
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BYTES = 8  # the code of unsigned bytes in the third byte of an IDX file
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KANA = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
MD5 = {
    "MNIST": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "d53e105ee54ea40749a09fcbcd1e9432",
        "9fb629c4189551a2d022fa330f9573f3",
        "ec29112dd5afa0611ce80d1b7f02629c",
    ),
    "FashionMNIST": (
        "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "25c81989df183df01b3e8a0aad5dffbe",
        "bef4ecab320f06d8554ea6380940ec79",
        "bb300cfdad3c16e7a12a480ee83cd310",
    ),
    "KMNIST": (
        "bdb82020997e1d708af4cf47b453dcf7",
        "e144d726b3acfaa3e44228e80efcd344",
        "5c965bf0a639b31b8f53240b1b52f4d7",
        "7320c461ea6c1c855c0b718fb2a4b134",
    ),
}
"""Published checksums of the compressed files, in the order of `FILES`."""


@dataclass(frozen=True, kw_only=True)
class MNIST(DataSource):
    """60,000 + 10,000 grey images of handwritten digits, 28 x 28 pixels (LeCun et al., 1998).

    Attributes:
        root: Folder with the four IDX files, compressed or not, or with train*.parquet and test*.parquet; None takes
            the folder mnist in the one that the environment variable FLATBAYES_DATA names, or else downloads from
            the Hugging Face hub.
    """

    root: str | None = None

    def read(self) -> RawSplits:
        """Both parts."""
        return read(self.root, "MNIST", DIGITS, "ylecun/mnist")


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(DataSource):
    """60,000 + 10,000 grey images of clothes, 28 x 28 pixels (Xiao et al., 2017).

    Attributes:
        root: Folder with the four IDX files, compressed or not, or with train*.parquet and test*.parquet; None takes
            the folder fashionmnist in the one that the environment variable FLATBAYES_DATA names, or else downloads
            from the Hugging Face hub.
    """

    root: str | None = None

    def read(self) -> RawSplits:
        """Both parts."""
        return read(self.root, "FashionMNIST", CLOTHES, "zalando-datasets/fashion_mnist")


@dataclass(frozen=True, kw_only=True)
class KMNIST(DataSource):
    """60,000 + 10,000 grey images of cursive Japanese characters, 28 x 28 pixels (Clanuwat et al., 2018).

    Attributes:
        root: Folder with the four IDX files, compressed or not; None takes the folder kmnist in the one that the
            environment variable FLATBAYES_DATA names.
    """

    root: str | None = None

    def read(self) -> RawSplits:
        """Both parts."""
        return read(self.root, "KMNIST", KANA, None)


def read(root: str | None, title: str, class_names: tuple[str, ...], hub: str | None) -> RawSplits:
    """Both parts, from IDX files or from parquet files.

    Raises:
        FileNotFoundError: They are not there.
        ValueError: They are damaged, or not those that were published.
    """
    folder = find_data_root(root, title.lower(), title, f"the files {FILES[0]} ..., compressed or not", hub)
    for place in (folder, folder / "raw", folder / title / "raw"):
        paths = {name: path for name in FILES if (path := idx_path(place, name)) is not None}
        if paths:
            return _from_idx(place, paths, MD5[title], class_names)
    if any(folder.rglob("*.parquet")):
        return read_images(folder, "image", "label", None, class_names)
    raise FileNotFoundError(
        f"There are neither the files {FILES[0]} ... nor parquet files in {folder}. Copy the four files of {title} "
        "there, compressed (.gz) or not."
    )


def idx_path(folder: Path, name: str) -> Path | None:
    """Where a file of this name is, compressed or not, with a hyphen or a point before its kind."""
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None


def _from_idx(
    folder: Path, paths: Mapping[str, Path], md5: tuple[str, ...], class_names: tuple[str, ...]
) -> RawSplits:
    arrays = []
    for name, published in zip(FILES, md5, strict=True):
        if name not in paths:
            raise FileNotFoundError(
                f"There is no file {folder / name}, and others of its data set are there. Copy it."
            )
        arrays.append(idx_array(paths[name], published, ndim=3 if "images" in name else 1))
    parts = []
    for (name, images), labels in zip((("train", arrays[0]), ("test", arrays[2])), arrays[1::2], strict=True):
        check_same_length(name, len(images), len(labels))
        parts.append(
            Split(inputs=torch.from_numpy(images[:, None]), targets=torch.from_numpy(labels.astype(np.int64)))
        )
    return RawSplits(unsplit=parts[0], test=parts[1], class_names=class_names)


def idx_array(path: Path, published: str, ndim: int) -> NDArray[np.uint8]:
    """The array of bytes in an IDX file.

    Args:
        path: The file; one that ends in .gz must have the published checksum.
        published: The MD5 checksum of the compressed file.
        ndim: The number of axes that it must have.

    Raises:
        ValueError: It is damaged, of another kind, or not the one that was published.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        check_md5(path, published)
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}. Download it again.") from error
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes((0, 0, BYTES, ndim)):
        raise ValueError(f"{path} is not an IDX file of bytes with {ndim} axes. Download it again.")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = start + math.prod(shape)
    if len(content) != expected:
        raise ValueError(
            f"{path} has {len(content)} bytes, and an array of the shape {shape} needs {expected}. It is incomplete: "
            "download it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
