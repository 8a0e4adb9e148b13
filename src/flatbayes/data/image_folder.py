"""Images in folders, one folder for each class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.encoded_images import EncodedSplit
from flatbayes.data.images import IMAGE_SUFFIXES, EncodedImage, infer_layout
from flatbayes.data.source import DataSource, RawSplits


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSource):
    """Images in one folder per class, which names it.

    Attributes:
        path: Folder that holds those of the classes, either itself, or in its subfolders train, val and test
            (the last two may be missing).
        size: Scale all images to this height and width; None where they have one size.
        crop: Keep the proportions of images that are scaled, and cut out the middle.
        stream: Decode images when a batch asks for them, for data that do not fit in memory.
    """

    path: str
    size: int | None = None
    crop: bool = False
    stream: bool = False

    def read(self) -> RawSplits:
        """The parts the folders name, images still encoded."""
        top = Path(self.path)
        if not top.is_dir():
            raise FileNotFoundError(f"There is no folder {top}. Check the path.")
        roots = {part: top / part for part in ("train", "val", "test") if (top / part).is_dir()}
        if "train" not in roots:
            roots = {"train": top}
        names = list_class_names(roots["train"])
        found = {part: list_labelled_images(root, names, roots["train"]) for part, root in roots.items()}
        parts = make_encoded_splits(found, self.size, crop=self.crop, stream=self.stream)
        return RawSplits(unsplit=parts["train"], val=parts.get("val"), test=parts.get("test"), class_names=names)


def make_encoded_splits(
    labelled_files: Mapping[str, Sequence[tuple[Path, int]]], size: int | None, *, crop: bool, stream: bool
) -> dict[str, EncodedSplit]:
    """Parts of one layout.

    Args:
        labelled_files: The files of each part, with the label of each.
        size: Height and width to scale to; None leaves images as they are.
        crop: Keep proportions, and cut out the middle.
        stream: Leave images where they are until a batch asks for them.
    """
    files = {part: [file for file, _ in pairs] for part, pairs in labelled_files.items()}
    layout = infer_layout(chain.from_iterable(iter_file_contents(some) for some in files.values()), size, crop)
    return {
        part: EncodedSplit(
            read_encoded=partial(iter_file_contents, files[part]),
            layout=layout,
            targets=torch.tensor([label for _, label in pairs]),
            stream=stream,
        )
        for part, pairs in labelled_files.items()
    }


def list_class_names(root: Path) -> tuple[str, ...]:
    """The classes of a folder: the names of its subfolders, by the alphabet."""
    return tuple(folder.name for folder in list_subfolders(root))


def list_labelled_images(root: Path, class_names: Sequence[str], train_root: Path) -> list[tuple[Path, int]]:
    """The images in the folders of classes, with their labels.

    Args:
        root: Folder that holds those of the classes.
        class_names: The classes, in the order of their labels.
        train_root: Where these come from, for messages.

    Raises:
        ValueError: There are other classes, or no images.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    unknown = [folder.name for folder in list_subfolders(root) if folder.name not in labels]
    if unknown:
        raise ValueError(f"{root} has classes that {train_root} lacks: {unknown}. Rename or remove them.")
    found = [(file, labels[folder.name]) for folder in list_subfolders(root) for file in list_image_files(folder)]
    if not found:
        raise ValueError(
            f"There are no images in the subfolders of {root}. Put those of each class into a folder "
            f"of its own; known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return found


def list_subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, by name, but for hidden ones."""
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def list_image_files(folder: Path) -> list[Path]:
    """Images in a folder, at any depth, by name, but for hidden ones."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES
        and file.is_file()
        and not any(name.startswith(".") for name in file.relative_to(folder).parts)
    )


def iter_file_contents(files: Sequence[Path], rows: np.ndarray | None = None) -> Iterator[EncodedImage]:
    """The images of these files, or of those with the given numbers, still encoded."""
    for row in range(len(files)) if rows is None else rows.tolist():
        yield str(files[row]), files[row].read_bytes()
