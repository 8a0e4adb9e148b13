"""Image classification data in folders, with one subfolder per class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.images import IMAGE_SUFFIXES, EncodedImage, infer_layout
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import EncodedSplit


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images in one folder per class; the folder's name is the name of the class.

    Attributes:
        path: Folder with the folders of the classes, or with the subfolders train, val and test that hold them (val
            and test are optional).
        size: Resize all images to this height and width; None if all have one size.
        crop: Keep the aspect ratio of resized images, and crop the center.
        stream: Decode images when a batch needs them, for data that do not fit in memory.
    """

    path: str
    size: int | None = None
    crop: bool = False
    stream: bool = False

    def read(self) -> RawSplits:
        """List the images of each split; they stay encoded."""
        top = Path(self.path)
        if not top.is_dir():
            raise FileNotFoundError(f"There is no folder {top}. Check the path.")
        roots = {name: top / name for name in ("train", "val", "test") if (top / name).is_dir()}
        if "train" not in roots:
            roots = {"train": top}
        class_names = list_class_names(roots["train"])
        labelled_files = {
            name: list_labelled_images(root, class_names, roots["train"]) for name, root in roots.items()
        }
        splits = make_encoded_splits(labelled_files, self.size, crop=self.crop, stream=self.stream)
        return RawSplits(
            unsplit=splits["train"], val=splits.get("val"), test=splits.get("test"), class_names=class_names
        )


def make_encoded_splits(
    labelled_files: Mapping[str, Sequence[tuple[Path, int]]], size: int | None, *, crop: bool, stream: bool
) -> dict[str, EncodedSplit]:
    """Make splits of encoded images that share one layout.

    Args:
        labelled_files: The files of each split with their labels.
        size: Height and width to resize to; None keeps the size of the images.
        crop: Keep the aspect ratio, and crop the center.
        stream: Leave images encoded until a batch needs them.
    """
    files = {name: [file for file, _ in pairs] for name, pairs in labelled_files.items()}
    layout = infer_layout(chain.from_iterable(map(iter_file_contents, files.values())), size, crop)
    return {
        name: EncodedSplit(
            read_encoded=partial(iter_file_contents, files[name]),
            layout=layout,
            targets=torch.tensor([label for _, label in pairs]),
            stream=stream,
        )
        for name, pairs in labelled_files.items()
    }


def list_class_names(root: Path) -> tuple[str, ...]:
    """List the names of the class folders in alphabetical order."""
    return tuple(folder.name for folder in list_subfolders(root))


def list_labelled_images(root: Path, class_names: Sequence[str], train_root: Path) -> list[tuple[Path, int]]:
    """List the images in class folders with their labels.

    Args:
        root: Folder with the class folders.
        class_names: The classes, in the order of their labels.
        train_root: Folder that the classes were read from, for messages.

    Raises:
        ValueError: There are unknown classes, or no images.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    unknown = [folder.name for folder in list_subfolders(root) if folder.name not in labels]
    if unknown:
        raise ValueError(f"{root} has classes that {train_root} lacks: {unknown}. Rename or remove them.")
    labelled_images = [
        (file, labels[folder.name]) for folder in list_subfolders(root) for file in list_image_files(folder)
    ]
    if not labelled_images:
        raise ValueError(
            f"There are no images in the subfolders of {root}. Put those of each class into a folder "
            f"of its own; known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return labelled_images


def list_subfolders(folder: Path) -> list[Path]:
    """List the subfolders of a folder by name, without hidden ones."""
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def list_image_files(folder: Path) -> list[Path]:
    """List the images in a folder at any depth by path, without hidden ones."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not any(name.startswith(".") for name in file.relative_to(folder).parts)
    )


def iter_file_contents(files: Sequence[Path], rows: np.ndarray | None = None) -> Iterator[EncodedImage]:
    """Read image files without decoding them.

    Args:
        files: All files.
        rows: Indices of the files to read; None for all.
    """
    for row in range(len(files)) if rows is None else rows.tolist():
        yield str(files[row]), files[row].read_bytes()
