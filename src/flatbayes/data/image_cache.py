"""Random access to the encoded images of parquet files, through a memory-mapped copy in Arrow's file format.

Parquet compresses groups of rows, and a whole group must be decompressed to read one image. Training in random order
needs single images, so the encoded images are copied once, unchanged, to an uncompressed Arrow file.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from flatbayes.core.files import atomic_write
from flatbayes.core.optional import require_package
from flatbayes.data.images import EncodedImage
from flatbayes.data.parquet import ArrowColumn, iter_encoded_images

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
