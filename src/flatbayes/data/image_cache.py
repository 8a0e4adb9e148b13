"""Images of parquet files at any place: copied once to a file that is mapped into memory, not read.

A parquet file is compressed in groups of rows, of which one has to be unpacked whole for a single image. Training in
random order needs any image at once, so the encoded images are copied, as they are, to a file of Arrow's format.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flatbayes.core.files import atomic_write
from flatbayes.data.images import EncodedImage
from flatbayes.data.optional import require_package
from flatbayes.data.parquet import iter_encoded_images

IMAGES_PER_BATCH = 256  # images in memory at a time


def iter_mapped_images(files: Sequence[Path], column: str, rows: np.ndarray) -> Iterator[EncodedImage]:
    """The encoded images with the given numbers, as `iter_encoded_images` yields them, in whatever order.

    Args:
        files: Rows are counted through all of them.
        column: That holds images.
        rows: Numbers of the images.
    """
    images = _open_image_cache(build_image_cache(tuple(files), column))
    for row in rows.tolist():
        yield f"Row {row} of {files[0].parent} ({column!r})", images[row].as_py()


@lru_cache(maxsize=16)
def build_image_cache(files: tuple[Path, ...], column: str) -> Path:
    """The copy of these files' images, made if it is not there yet.

    It lies in the folder that the environment variable FLATBAYES_CACHE names, or else in ~/.cache/flatbayes, and is
    made again when a file changes.
    """
    with require_package("data"):
        import pyarrow as pa
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((facts, column)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("FLATBAYES_CACHE") or Path.home() / ".cache" / "flatbayes")
    path = folder / f"{key}.arrow"
    if path.is_file():
        return path
    schema = pa.schema([("image", pa.large_binary())])
    with atomic_write(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        waiting: list[bytes] = []
        for _, content in iter_encoded_images(files, column):
            waiting.append(content)
            if len(waiting) == IMAGES_PER_BATCH:
                writer.write_batch(pa.record_batch([pa.array(waiting, pa.large_binary())], schema=schema))
                waiting = []
        if waiting:
            writer.write_batch(pa.record_batch([pa.array(waiting, pa.large_binary())], schema=schema))
    return path


@lru_cache(maxsize=16)
def _open_image_cache(path: Path) -> Any:
    with require_package("data"):
        import pyarrow as pa
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
