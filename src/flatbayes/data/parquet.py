"""Parquet files: opened with errors that name them, streamed, and their images found."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flatbayes.data.images import EncodedImage
from flatbayes.data.optional import require_package

ROWS_PER_BATCH = 256  # rows in memory at a time
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Inside, a failure to read is a ValueError that names the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of another kind.
    """
    with require_package("data"):
        import pyarrow as pa
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Check that it is complete and that its suffix tells its kind."
        ) from error


def read_schema(path: Path) -> Any:
    """Columns and metadata of a file, as pyarrow has them."""
    with require_package("data"):
        import pyarrow.parquet as pq
    with wrap_read_errors(path):
        found = pq.read_schema(path)
        found.names  # noqa: B018 - decodes them, which fails in a damaged file
        return found


def count_rows(path: Path) -> int:
    """How many rows a file says that it has."""
    with require_package("data"):
        import pyarrow.parquet as pq
    with wrap_read_errors(path):
        return int(pq.read_metadata(path).num_rows)


def iter_record_batches(path: Path, columns: Sequence[str], size: int = ROWS_PER_BATCH) -> Iterator[Any]:
    """The rows of a file, some at a time, as pyarrow's record batches."""
    with require_package("data"):
        import pyarrow.parquet as pq
    with wrap_read_errors(path), pq.ParquetFile(path, pre_buffer=False) as file:  # which would read all groups ahead
        yield from file.iter_batches(batch_size=size, columns=list(columns))


def require_columns(path: Path, required: Sequence[str], available: Sequence[str]) -> None:
    """Refuse a file that lacks a column.

    Raises:
        ValueError: Lists what is missing and what there is.
    """
    missing = [name for name in required if name not in available]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {missing}. It has {list(available)}. Name one of these, or add them."
        )


def find_image_columns(path: Path) -> list[str]:
    """Names of the columns that may hold encoded images."""
    return [field.name for field in read_schema(path) if is_image_type(field.type)]


def is_image_type(column_type: Any) -> bool:
    """Whether a column of this type is binary, or Hugging Face's struct with a field `bytes`."""
    with require_package("data"):
        from pyarrow import types
    if types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0:
        column_type = column_type.field("bytes").type
    return bool(types.is_binary(column_type) or types.is_large_binary(column_type))


def iter_encoded_images(files: Sequence[Path], column: str, rows: np.ndarray | None = None) -> Iterator[EncodedImage]:
    """The encoded images of a column, streamed.

    Args:
        files: Read one after the other; rows are counted through all of them.
        column: Binary, or Hugging Face's struct with the field `bytes`.
        rows: Numbers of the images to yield, ascending; None for all.

    Raises:
        ValueError: A file lacks the column, or a row has no image.
    """
    with require_package("data"):
        import pyarrow as pa
    start = 0
    for path in files:
        require_columns(path, [column], read_schema(path).names)
        if column not in find_image_columns(path):
            raise ValueError(
                f"Column {column!r} of {path} holds no encoded images: expected binary or a struct with a "
                f"field 'bytes', got {read_schema(path).field(column).type}. Columns that may hold them: "
                f"{find_image_columns(path)}."
            )
        offset = start
        for batch in iter_record_batches(path, [column]):
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


def find_split_files(path: Path) -> dict[str, list[Path]]:
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
        if word and word[0] in SPLIT_NAMES:
            parts[SPLIT_NAMES[word[0]]].append(file)
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
