"""CIFAR-10 (Krizhevsky, 2009), in parquet files of the Hugging Face layout."""

import os
from dataclasses import dataclass
from pathlib import Path

from flatbayes.data.hub import downloaded
from flatbayes.data.image_parquet import read_images
from flatbayes.data.source import Raw, Source

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HUB_NAME = "uoft-cs/cifar10"


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Source):
    """50,000 + 10,000 colour photographs of 32 x 32 pixels, in 10 classes.

    Attributes:
        root: Folder with train*.parquet and test*.parquet; None takes the folder cifar10 in the one that the
            environment variable FLATBAYES_DATA names, or else downloads from the Hugging Face hub.
        flip: Mirror training images left to right at random.
        pad: Shift training images at random by up to this many pixels, what enters being black.
    """

    root: str | None = None
    flip: bool = True
    pad: int = 4

    def read(self) -> Raw:
        """Both parts, images still encoded."""
        shared = os.environ.get("FLATBAYES_DATA")
        if self.root is not None:
            folder = Path(self.root)
        elif shared:
            folder = Path(shared) / "cifar10"
        else:
            folder = downloaded(HUB_NAME)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"There is no folder {folder} for CIFAR-10. Set root (or the environment variable "
                "FLATBAYES_DATA) to one with train*.parquet and test*.parquet, or neither to download it."
            )
        return read_images(folder, "img", "label", None, CLASSES)
