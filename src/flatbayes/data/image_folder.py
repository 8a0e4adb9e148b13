"""Image classification data in folders, with one subfolder per class."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from flatbayes.core.names import format_count
from flatbayes.data.checks import DataWarning
from flatbayes.data.images import IMAGE_SUFFIXES, EncodedImage, check_image_size
from flatbayes.data.size_limit import check_memory
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import SPLIT_NAMES, EncodedSplit

SYSTEM_FILES = frozenset({".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".gitignore"})
"""Files that operating systems and tools write; they are left out without a warning."""


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images in one folder per class; the folder's name is the name of the class.

    A warning names files and folders that are left out.

    Attributes:
        path: Folder with the folders of the classes; or with the folders of the splits that hold them: train (or
            training), val (valid, validation, dev) and test (testing), in any letter case; only train is required.
        size: Resize all images to this height and width; None if all have one size.
        crop: Keep the aspect ratio of resized images, and crop the center.
        stream: Decode images when a batch needs them, for data that do not fit in memory.

    Examples:
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     Path("photos", name).mkdir(parents=True)
        ...     for k in range(10):
        ...         Image.new("RGB", (40, 32), (k, 0, 0)).save(f"photos/{name}/{k}.png")
        >>> splits = ImageFolder(path="photos", size=16, crop=True).load(seed=0)
        >>> splits.class_names, splits.train.inputs.shape
        (('cat', 'dog'), torch.Size([14, 3, 16, 16]))
    """

    path: str
    size: int | None = None
    crop: bool = False
    stream: bool = False

    def read(self) -> RawSplits:
        """List the images of each split; they stay encoded."""
        check_image_size(self.size, self.crop)
        top = Path(self.path)
        if not top.is_dir():
            raise FileNotFoundError(f"There is no folder {top}. Check the path.")
        roots = find_split_folders(top)
        class_names = list_class_names(roots["train"])
        check_nesting(roots["train"])
        labelled_files = {
            name: list_labelled_images(root, class_names, roots["train"]) for name, root in roots.items()
        }
        splits = make_encoded_splits(labelled_files, self.size, crop=self.crop, stream=self.stream)
        return RawSplits(
            unsplit=splits["train"], val=splits.get("val"), test=splits.get("test"), class_names=class_names
        )


def find_split_folders(top: Path) -> dict[str, Path]:
    """Find the folders of the splits by their names, in any letter case.

    Returns:
        Folders by "train", "val" and "test"; only {"train": top} if there is no folder of training data.

    Raises:
        ValueError: Several folders have names of one split, or there is no folder of training data beside others.
    """
    subfolders = list_subfolders(top)
    named = [
        (SPLIT_NAMES[folder.name.lower()], folder) for folder in subfolders if folder.name.lower() in SPLIT_NAMES
    ]
    roots = dict(named)
    if len(roots) < len(named):
        raise ValueError(
            f"{top} has several folders of one split: {[folder.name for _, folder in named]}. Keep one of each."
        )
    if "train" in roots:
        others = [folder.name for folder in subfolders if folder not in roots.values()]
        if others:
            warnings.warn(
                f"Folders of {top} that are no split are left out: {', '.join(others[:5])}. Splits are called "
                f"{', '.join(SPLIT_NAMES)}.",
                category=DataWarning,
                stacklevel=4,
            )
        return roots
    nested = [folder.name for folder in roots.values() if list_subfolders(folder)]
    if nested:
        raise ValueError(
            f"{top} has the folders {nested} and no folder of training data. Call it train; or give the folder of "
            "the classes as the path, to split its images."
        )
    return {"train": top}


def check_nesting(root: Path) -> None:
    """Check that the folders below a root are classes, and not one folder that holds those of the classes."""
    folders = list_subfolders(root)
    if len(folders) == 1 and len(list_subfolders(folders[0])) > 1:
        raise ValueError(
            f"{root} has one folder, {folders[0].name}, which holds several. If these are the classes, give its "
            f"path: {folders[0]}."
        )
    for folder in folders:
        inner = list_subfolders(folder)
        if len(inner) > 1 and not any(is_image_file(file) for file in folder.iterdir()):
            warnings.warn(
                f"The images in the folders {', '.join(f.name for f in inner[:5])} of {folder} are all read as the "
                f"class {folder.name!r}.",
                category=DataWarning,
                stacklevel=4,
            )


def make_encoded_splits(
    labelled_files: Mapping[str, Sequence[tuple[Path, int]]], size: int | None, *, crop: bool, stream: bool
) -> dict[str, EncodedSplit]:
    """Make splits of encoded images that share one layout."""
    return {
        name: EncodedSplit(
            read_encoded=partial(iter_file_contents, [file for file, _ in pairs]),
            size=size,
            crop=crop,
            targets=torch.tensor([label for _, label in pairs]),
            stream=stream,
        )
        for name, pairs in labelled_files.items()
    }


def list_class_names(root: Path) -> tuple[str, ...]:
    """List the names of the class folders in alphabetical order."""
    return tuple(folder.name for folder in list_subfolders(root))


def list_labelled_images(
    root: Path, class_names: Sequence[str], train_root: Path, *, warns: bool = True
) -> list[tuple[Path, int]]:
    """List the images in class folders with their labels.

    Raises:
        ValueError: There are unknown classes, or no images.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    folders = list_subfolders(root)
    unknown = [folder.name for folder in folders if folder.name not in labels]
    if unknown:
        same = [name for name in class_names if name.casefold() == unknown[0].casefold()]
        reason = f" ({same[0]!r} and {unknown[0]!r} differ in letter case)" if same else ""
        raise ValueError(f"{root} has classes that {train_root} lacks: {unknown}{reason}. Rename or remove them.")
    labelled_images = []
    others = [file for file in sorted(root.iterdir()) if file.is_file()]
    for folder in folders:
        images, inner = scan_folder(folder)
        labelled_images += [(file, labels[folder.name]) for file in images]
        others += inner
    if not labelled_images:
        raise ValueError(
            f"There are no images in the subfolders of {root}. Put those of each class into a folder "
            f"of its own; known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    if warns:
        warn_of_other_files(root, others, "in no folder of a class, hidden, or no suffix of an image")
    empty = sorted(labels.keys() - {class_names[label] for _, label in labelled_images})
    if warns and empty and root != train_root:
        warnings.warn(
            f"{root} has no images of the classes {', '.join(empty[:5])}.", category=DataWarning, stacklevel=4
        )
    return labelled_images


def list_subfolders(folder: Path) -> list[Path]:
    """List the subfolders of a folder by name, without hidden ones."""
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def is_image_file(file: Path) -> bool:
    """Whether a file has the suffix of an image and is not hidden."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") and file.is_file()


def list_image_files(folder: Path) -> list[Path]:
    """List the images in a folder at any depth by path, without hidden ones."""
    return scan_folder(folder)[0]


def scan_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the images in a folder at any depth by path, and the other files: hidden ones and those of other kinds."""
    images: list[Path] = []
    others: list[Path] = []
    visited = {os.path.realpath(folder)}
    for parent, inner, names in os.walk(folder, followlinks=True):
        real_paths = {name: os.path.realpath(os.path.join(parent, name)) for name in inner}
        inner[:] = [name for name in inner if real_paths[name] not in visited]
        visited.update(real_paths.values())  # links may form a circle
        is_hidden = any(name.startswith(".") for name in Path(parent).relative_to(folder).parts)
        for file in (Path(parent, name) for name in names):
            (images if not is_hidden and is_image_file(file) else others).append(file)
    return sorted(images), sorted(others)


def warn_of_other_files(root: Path, files: Sequence[Path], reason: str) -> None:
    """Warn of files that are left out, other than those of operating systems."""
    named = [file.relative_to(root).as_posix() for file in files if file.name.lower() not in SYSTEM_FILES]
    if named:
        warnings.warn(
            f"{format_count(len(named), f'file in {root} is', f'files in {root} are')} left out "
            f"({reason}): {', '.join(named[:3])}{' and others' if len(named) > 3 else ''}. Suffixes of images: "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}.",
            category=DataWarning,
            stacklevel=5,
        )


def iter_file_contents(files: Sequence[Path], rows: np.ndarray | None = None) -> Iterator[EncodedImage]:
    """Read all image files, or those at the positions `rows`, without decoding them."""
    for row in range(len(files)) if rows is None else rows.tolist():
        check_memory(files[row].stat().st_size, str(files[row]))
        yield str(files[row]), files[row].read_bytes()
