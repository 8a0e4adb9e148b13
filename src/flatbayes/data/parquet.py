"""Parquet files: opened with errors that name them, streamed, and their images found."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flatbayes.data.extras import needed
from flatbayes.data.images import Encoded

BATCH = 256  # rows in memory at a time
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, a failure to read is a ValueError that names the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of another kind.
    """
    with needed("data"):
        import pyarrow as pa
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Check that it is complete and that its suffix tells its kind."
        ) from error


def schema(path: Path) -> Any:
    """Columns and metadata of a file, as pyarrow has them."""
    with needed("data"):
        import pyarrow.parquet as pq
    with named(path):
        found = pq.read_schema(path)
        found.names  # noqa: B018 - decodes them, which fails in a damaged file
        return found


def num_rows(path: Path) -> int:
    """How many rows a file says that it has."""
    with needed("data"):
        import pyarrow.parquet as pq
    with named(path):
        return int(pq.read_metadata(path).num_rows)


def batches(path: Path, columns: Sequence[str], size: int = BATCH) -> Iterator[Any]:
    """The rows of a file, some at a time, as pyarrow's record batches."""
    with needed("data"):
        import pyarrow.parquet as pq
    with named(path), pq.ParquetFile(path, pre_buffer=False) as file:  # which would read all groups ahead
        yield from file.iter_batches(batch_size=size, columns=list(columns))


def require_columns(path: Path, wanted: Sequence[str], found: Sequence[str]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        ValueError: Lists what is missing and what there is.
    """
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}. It has {list(found)}. Name one of these, or add them.")


def image_columns(path: Path) -> list[str]:
    """Names of the columns that may hold encoded images."""
    return [field.name for field in schema(path) if holds_images(field.type)]


def holds_images(kind: Any) -> bool:
    """Whether a column of this type is binary, or Hugging Face's struct with a field `bytes`."""
    with needed("data"):
        from pyarrow import types
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def image_rows(files: Sequence[Path], column: str, rows: np.ndarray | None = None) -> Iterator[Encoded]:
    """The encoded images of a column, streamed.

    Args:
        files: Read one after the other; rows are counted through all of them.
        column: Binary, or Hugging Face's struct with the field `bytes`.
        rows: Numbers of the images to yield, ascending; None for all.

    Raises:
        ValueError: A file lacks the column, or a row has no image.
    """
    with needed("data"):
        import pyarrow as pa
    start = 0
    for path in files:
        require_columns(path, [column], schema(path).names)
        if column not in image_columns(path):
            raise ValueError(
                f"Column {column!r} of {path} holds no encoded images: expected binary or a struct with a "
                f"field 'bytes', got {schema(path).field(column).type}. Columns that may hold them: "
                f"{image_columns(path)}."
            )
        offset = start
        for batch in batches(path, [column]):
            if rows is None:
                inside = np.arange(len(batch))
            else:
                low, high = np.searchsorted(rows, [start, start + len(batch)])
                inside = rows[low:high] - start
            content = batch.column(0)
            content = content.field("bytes") if isinstance(content, pa.StructArray) else content
            for row in inside.tolist():
                image, name = content[row].as_py(), f"Row {start + row - offset} of {path} ({column!r})"
                if image is None:
                    raise ValueError(f"{name} has no image. Leave such rows out.")
                yield name, image
            start += len(batch)


def part_files(path: Path) -> dict[str, list[Path]]:
    """The files of each part of a dataset, by "train", "val" and "test".

    Args:
        path: One file, or a folder in which, at any depth, the names of files begin with train, validation or
            test; a folder without such names is all training data.

    Raises:
        FileNotFoundError: There are no parquet files.
        ValueError: There are several datasets in the folder, or one without training data.
    """
    parts: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    if path.is_file():
        return parts | {"train": [path]}
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"There are no parquet files in {path}.")
    for file in files:
        word = re.match(r"[a-z]*", file.name.lower())
        if word and word[0] in PARTS:
            parts[PARTS[word[0]]].append(file)
    if not any(parts.values()):
        parts["train"] = files
    folders = sorted({str(file.parent) for found in parts.values() for file in found})
    if len(folders) > 1:
        raise ValueError(f"There are parquet files of several datasets: {folders}. Give the path of one of these.")
    if not parts["train"]:
        raise ValueError(
            f"There is no training data in {path}: no parquet file's name begins with train, only "
            f"{[file.name for file in files]}."
        )
    return parts
