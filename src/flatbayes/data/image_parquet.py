"""Image classification data in parquet files, local or on the Hugging Face hub.

Parquet compresses groups of rows, and a whole group must be decompressed to read one image. Training in random order
needs single images, so the encoded images are copied once, unchanged, to an uncompressed Arrow file.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path

import numpy as np

from flatbayes.core.files import atomic_write, parse_json
from flatbayes.core.optional import require_package
from flatbayes.data.columns import encode_class_labels, extract_integer_labels, read_column
from flatbayes.data.hub import download_dataset, is_hub_name
from flatbayes.data.images import EncodedImage, check_image_size
from flatbayes.data.parquet import (
    ArrowColumn,
    ArrowSchema,
    find_split_files,
    infer_image_column,
    iter_encoded_images,
    read_schema,
    require_columns,
)
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import EncodedSplit

IMAGES_PER_BATCH = 256  # bounds the memory of the copy


def iter_mapped_images(files: Sequence[Path], column: str, rows: np.ndarray) -> Iterator[EncodedImage]:
    """Read encoded images of parquet files by row number, counted through all files, in any order."""
    images = _open_image_cache(build_image_cache(tuple(files), column))
    for row in rows.tolist():
        yield f"Row {row} of {files[0].parent} ({column!r})", images[row].as_py()


@lru_cache(maxsize=16)
def build_image_cache(files: tuple[Path, ...], column: str) -> Path:
    """Copy the images of parquet files to an Arrow file, unless the copy exists, and return its path.

    The copy is in the folder that the environment variable FLATBAYES_CACHE names, or in ~/.cache/flatbayes. A change
    of size or modification time of a parquet file makes a new copy.
    """
    with require_package("data"):
        import pyarrow as pa
    signature = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((signature, column)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("FLATBAYES_CACHE") or Path.home() / ".cache" / "flatbayes")
    path = folder / f"{key}.arrow"
    if path.is_file():
        return path
    schema = pa.schema([("image", pa.large_binary())])
    with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        batch: list[bytes] = []
        for _, content in iter_encoded_images(files, column):
            batch.append(content)
            if len(batch) == IMAGES_PER_BATCH:
                writer.write_batch(pa.record_batch([pa.array(batch, pa.large_binary())], schema=schema))
                batch = []
        if batch:
            writer.write_batch(pa.record_batch([pa.array(batch, pa.large_binary())], schema=schema))
    return path


@lru_cache(maxsize=16)
def _open_image_cache(path: Path) -> ArrowColumn:
    with require_package("data"):
        import pyarrow as pa
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)


@dataclass(frozen=True, kw_only=True)
class ImageParquet(DataSource):
    """Images in parquet files, local or on the Hugging Face hub.

    Attributes:
        path: A file; a folder with files whose names begin with train, validation or test; or the name of a
            dataset on the hub, `owner/name`.
        image: Column of the encoded images (PNG, JPEG ...); None for `img`, or else the only column of images.
        label: Column of the classes, as whole numbers from 0 or as words.
        subfolder: Subfolder of the path or of the dataset on the hub, where there are several datasets.
        size: Resize all images to this height and width; None if all have one size.
        crop: Keep the aspect ratio of resized images, and crop the center.
        stream: Decode images when a batch needs them, for data that do not fit in memory. The encoded images are
            copied once to ~/.cache/flatbayes, or to the folder that the environment variable FLATBAYES_CACHE names.

    Examples:
        >>> import io
        >>> import pyarrow as pa
        >>> import pyarrow.parquet as pq
        >>> from PIL import Image
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (24, 24)).save(buffer, "png")
        >>> table = pa.table(
        ...     {"image": [{"bytes": buffer.getvalue()}] * 40, "label": ["cat", "dog"] * 20}
        ... )
        >>> pq.write_table(table, "pets.parquet")
        >>> splits = ImageParquet(path="pets.parquet", size=16).load(seed=0)
        >>> splits.class_names, splits.input_shape
        (('cat', 'dog'), (3, 16, 16))
    """

    path: str
    image: str | None = None
    label: str = "label"
    subfolder: str = ""
    size: int | None = None
    crop: bool = False
    stream: bool = False

    def read(self) -> RawSplits:
        """Find the files of each split; images stay encoded."""
        if is_hub_name(self.path):
            folder = download_dataset(self.path, self.subfolder)
        else:
            folder = Path(self.path) / self.subfolder
        if not folder.exists():
            raise FileNotFoundError(
                f"There is no file or folder {folder}. Check the path, or give `owner/name` of a dataset "
                "on the Hugging Face hub."
            )
        return read_images(folder, self.image, self.label, self.size, crop=self.crop, stream=self.stream)


def read_images(
    path: Path,
    image: str | None,
    label: str,
    size: int | None,
    class_names: Sequence[str] = (),
    *,
    crop: bool = False,
    stream: bool = False,
) -> RawSplits:
    """Find the splits of a dataset in parquet files and read their labels; images stay encoded.

    Args:
        path: A file or a folder.
        image: Column of the encoded images; None to infer it.
        label: Column of the classes.
        size: Height and width to resize to; None keeps the size of the images.
        class_names: One name per class; by default the names stored in the files, else the numbers of the classes.
        crop: Keep the aspect ratio of resized images, and crop the center.
        stream: Leave images encoded until a batch needs them.

    Raises:
        ValueError: The files lack a column, or a column holds values of another type.
        FileNotFoundError: There are no files.
    """
    check_image_size(size, crop)
    split_files = {name: files for name, files in find_split_files(path).items() if files}
    if image is None:
        image = infer_image_column(split_files["train"][0])
    for file in chain.from_iterable(split_files.values()):
        require_columns(file, [image, label], read_schema(file).names)
    label_columns = {name: read_column(files, label) for name, files in split_files.items()}
    stored_names = class_names or read_label_names(read_schema(split_files["train"][0]), label)
    names, targets = extract_integer_labels(label_columns, label, stored_names) or encode_class_labels(
        label_columns, label
    )
    iter_images = iter_mapped_images if stream else iter_encoded_images
    splits = {
        name: EncodedSplit(
            read_encoded=partial(iter_images, files, image),
            targets=targets[name],
            size=size,
            crop=crop,
            stream=stream,
        )
        for name, files in split_files.items()
    }
    return RawSplits(unsplit=splits["train"], val=splits.get("val"), test=splits.get("test"), class_names=names)


def read_label_names(schema: ArrowSchema, label: str) -> tuple[str, ...]:
    """Read class names from the metadata that Hugging Face's `datasets` writes; empty if there are none."""
    try:
        metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        return tuple(str(name) for name in metadata["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):  # other metadata
        return ()
