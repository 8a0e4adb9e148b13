"""Images in parquet files, as the Hugging Face hub keeps them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flatbayes.data.columns import encode_class_labels, extract_integer_labels, read_column
from flatbayes.data.encoded_images import EncodedSplit
from flatbayes.data.hub import download_dataset, is_hub_name
from flatbayes.data.image_cache import iter_mapped_images
from flatbayes.data.images import infer_layout
from flatbayes.data.parquet import find_split_files, iter_encoded_images, read_schema, require_columns
from flatbayes.data.source import DataSource, RawSplits


@dataclass(frozen=True, kw_only=True)
class ImageParquet(DataSource):
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

    def read(self) -> RawSplits:
        """The parts the files name, images still encoded."""
        folder = download_dataset(self.path) if is_hub_name(self.path) else Path(self.path)
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
) -> RawSplits:
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
    files = {part: found for part, found in find_split_files(path).items() if found}
    for file in chain.from_iterable(files.values()):
        require_columns(file, [image, label], read_schema(file).names)
    columns = {part: read_column(found, label) for part, found in files.items()}
    stored = class_names or read_label_names(read_schema(files["train"][0]), label)
    names, targets = extract_integer_labels(columns, label, stored) or encode_class_labels(columns, label)
    layout = infer_layout(
        chain.from_iterable(iter_encoded_images(found, image) for found in files.values()), size, crop
    )
    rows = iter_mapped_images if stream else iter_encoded_images
    parts = {
        part: EncodedSplit(
            read_encoded=partial(rows, found, image), layout=layout, targets=targets[part], stream=stream
        )
        for part, found in files.items()
    }
    return RawSplits(unsplit=parts["train"], val=parts.get("val"), test=parts.get("test"), class_names=names)


def read_label_names(metadata: Any, label: str) -> tuple[str, ...]:
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
