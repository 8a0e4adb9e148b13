"""Images in folders, one folder for each class."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from flatbayes.data.images import SUFFIXES, Encoded, EncodedPart, layout_of
from flatbayes.data.source import Raw, Source


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Source):
    """Images in one folder per class, which names it.

    Attributes:
        path: Folder that holds those of the classes, either itself, or in its subfolders train, val and test
            (the last two may be missing).
        size: Scale all images to this height and width; None where they have one size.
    """

    path: str
    size: int | None = None

    def read(self) -> Raw:
        """The parts the folders name, images still encoded."""
        top = Path(self.path)
        if not top.is_dir():
            raise FileNotFoundError(f"There is no folder {top}. Check the path.")
        roots = {part: top / part for part in ("train", "val", "test") if (top / part).is_dir()}
        if "train" not in roots:
            roots = {"train": top}
        names = tuple(folder.name for folder in subfolders(roots["train"]))
        files: dict[str, list[Path]] = {}
        labels: dict[str, list[int]] = {}
        for part, root in roots.items():
            unknown = [folder.name for folder in subfolders(root) if folder.name not in names]
            if unknown:
                raise ValueError(f"{root} has classes that {roots['train']} lacks: {unknown}. Rename or remove them.")
            found = [(file, names.index(folder.name)) for folder in subfolders(root) for file in image_files(folder)]
            if not found:
                raise ValueError(
                    f"There are no images in the subfolders of {root}. Put those of each class into a folder "
                    f"of its own; known suffixes: {', '.join(sorted(SUFFIXES))}."
                )
            files[part] = [file for file, _ in found]
            labels[part] = [label for _, label in found]
        layout = layout_of(chain.from_iterable(contents(found) for found in files.values()), self.size)
        parts = {
            part: EncodedPart(encoded=partial(contents, found), layout=layout, targets=torch.tensor(labels[part]))
            for part, found in files.items()
        }
        return Raw(all=parts["train"], val=parts.get("val"), test=parts.get("test"), class_names=names)


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, by name, but for hidden ones."""
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Images in a folder, at any depth, by name, but for hidden ones."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(name.startswith(".") for name in file.relative_to(folder).parts)
    )


def contents(files: Sequence[Path], rows: np.ndarray | None = None) -> Iterator[Encoded]:
    """The images of these files, or of those with the given numbers, still encoded."""
    for row in range(len(files)) if rows is None else rows.tolist():
        yield str(files[row]), files[row].read_bytes()
