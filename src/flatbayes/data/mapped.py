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

from flatbayes.core.files import replacing
from flatbayes.data.extras import needed
from flatbayes.data.images import Encoded
from flatbayes.data.parquet import image_rows

BATCH = 256  # images in memory at a time


def mapped_rows(files: Sequence[Path], column: str, rows: np.ndarray) -> Iterator[Encoded]:
    """The encoded images with the given numbers, as `image_rows` yields them, in whatever order.

    Args:
        files: Rows are counted through all of them.
        column: That holds images.
        rows: Numbers of the images.
    """
    images = _opened(mapped(tuple(files), column))
    for row in rows.tolist():
        yield f"Row {row} of {files[0].parent} ({column!r})", images[row].as_py()


@lru_cache(maxsize=16)
def mapped(files: tuple[Path, ...], column: str) -> Path:
    """The copy of these files' images, made if it is not there yet.

    It lies in the folder that the environment variable FLATBAYES_CACHE names, or else in ~/.cache/flatbayes, and is
    made again when a file changes.
    """
    with needed("data"):
        import pyarrow as pa
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((facts, column)).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("FLATBAYES_CACHE") or Path.home() / ".cache" / "flatbayes")
    path = folder / f"{key}.arrow"
    if path.is_file():
        return path
    schema = pa.schema([("image", pa.large_binary())])
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        waiting: list[bytes] = []
        for _, content in image_rows(files, column):
            waiting.append(content)
            if len(waiting) == BATCH:
                writer.write_batch(pa.record_batch([pa.array(waiting, pa.large_binary())], schema=schema))
                waiting = []
        if waiting:
            writer.write_batch(pa.record_batch([pa.array(waiting, pa.large_binary())], schema=schema))
    return path


@lru_cache(maxsize=16)
def _opened(path: Path) -> Any:
    with needed("data"):
        import pyarrow as pa
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column(0)
