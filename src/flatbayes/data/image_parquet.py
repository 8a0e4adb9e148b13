"""Images in parquet files, as the Hugging Face hub keeps them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flatbayes.data.columns import class_labels, column_of, number_labels
from flatbayes.data.encoded import EncodedPart
from flatbayes.data.hub import downloaded, is_hub_name
from flatbayes.data.images import layout_of
from flatbayes.data.mapped import mapped_rows
from flatbayes.data.parquet import image_rows, part_files, require_columns, schema
from flatbayes.data.source import Raw, Source


@dataclass(frozen=True, kw_only=True)
class ImageParquet(Source):
    """Images in parquet files, here or on the Hugging Face hub.

    Attributes:
        path: A file; a folder with files whose names begin with train, validation or test; or the name of a
            dataset on the hub, `owner/name`.
        image: Column of the encoded images (PNG, JPEG ...).
        label: Column of the classes, as whole numbers from 0 or as words.
        size: Scale all images to this height and width; None where they have one size.
        crop: Keep the proportions of images that are scaled, and cut out the middle.
        stream: Decode images when a batch asks for them, for data that do not fit in memory; encoded, they are
            copied once to ~/.cache/flatbayes, or to the folder that the environment variable FLATBAYES_CACHE names.
    """

    path: str
    image: str = "img"
    label: str = "label"
    size: int | None = None
    crop: bool = False
    stream: bool = False

    def read(self) -> Raw:
        """The parts the files name, images still encoded."""
        folder = downloaded(self.path) if is_hub_name(self.path) else Path(self.path)
        if not folder.exists():
            raise FileNotFoundError(
                f"There is no file or folder {self.path}. Check the path, or give `owner/name` of a dataset "
                "on the Hugging Face hub."
            )
        return read_images(folder, self.image, self.label, self.size, crop=self.crop, stream=self.stream)


def read_images(
    path: Path,
    image: str,
    label: str,
    size: int | None,
    class_names: Sequence[str] = (),
    *,
    crop: bool = False,
    stream: bool = False,
) -> Raw:
    """The parts of a dataset, images still encoded.

    Args:
        path: A file or a folder.
        image: Column of the encoded images.
        label: Column of the classes.
        size: Height and width to scale to; None for none.
        class_names: One per class; by default those in the files, else the numbers themselves.
        crop: Keep proportions where images are scaled, and cut out the middle.
        stream: Leave images where they are until a batch asks for them.

    Raises:
        ValueError: The files lack a column, or hold something else in it.
        FileNotFoundError: There are no files.
    """
    files = {part: found for part, found in part_files(path).items() if found}
    for file in chain.from_iterable(files.values()):
        require_columns(file, [image, label], schema(file).names)
    columns = {part: column_of(found, label) for part, found in files.items()}
    stored = class_names or label_names(schema(files["train"][0]), label)
    names, targets = number_labels(columns, label, stored) or class_labels(columns, label)
    layout = layout_of(chain.from_iterable(image_rows(found, image) for found in files.values()), size, crop)
    rows = mapped_rows if stream else image_rows
    parts = {
        part: EncodedPart(encoded=partial(rows, found, image), layout=layout, targets=targets[part], stream=stream)
        for part, found in files.items()
    }
    return Raw(all=parts["train"], val=parts.get("val"), test=parts.get("test"), class_names=names)


def label_names(metadata: Any, label: str) -> tuple[str, ...]:
    """Names of the classes in the metadata that Hugging Face's `datasets` writes, if there are any.

    Args:
        metadata: A schema of pyarrow.
        label: The column.
    """
    try:
        stored = json.loads((metadata.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(str(name) for name in stored["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):  # written by something else
        return ()
