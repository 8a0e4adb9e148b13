"""Parquet files: schema, row batches, encoded images, and the files of each split."""

import difflib
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flatbayes.core.files import parse_json
from flatbayes.core.names import format_names
from flatbayes.core.optional import require_package
from flatbayes.data.checks import DataWarning
from flatbayes.data.images import EncodedImage
from flatbayes.data.size_limit import (
    BYTES_PER_NUMBER,
    check_memory,
    count_text_bytes,
    estimate_bytes,
    is_text_type,
    limit_batch_size,
)
from flatbayes.data.splits import SPLIT_NAMES

ROWS_PER_BATCH = 256  # bounds the memory of a pass over a file

# pyarrow has no type stubs.
ArrowColumn = Any
"""`pyarrow.Array` or `pyarrow.ChunkedArray`."""
ArrowTable = Any
"""`pyarrow.Table` or `pyarrow.RecordBatch`."""
ArrowSchema = Any
"""`pyarrow.Schema`."""
ArrowType = Any
"""`pyarrow.DataType`."""


@contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Context that turns errors of pyarrow into a ValueError with the path of the file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of another format.
    """
    with require_package("data"):
        import pyarrow as pa
    require_file(path)
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} cannot be read: {error}. Check that it is complete and that its suffix fits its format."
        ) from error


def require_file(path: Path) -> None:
    """Check that a file exists.

    Raises:
        FileNotFoundError: There is nothing at the path.
        ValueError: It is a folder, a pipe or a device.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, and a file is expected. Name a file in it.")
    if not path.is_file() and path.exists():
        raise ValueError(f"{path} is a pipe or a device, and is not read. Write its content to a file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")


def read_schema(path: Path) -> ArrowSchema:
    """Read the columns and the metadata of a file."""
    with require_package("data"):
        import pyarrow.parquet as pq
    with wrap_read_errors(path):
        schema = pq.read_schema(path)
        schema.names  # noqa: B018 - decodes the names, which fails in a damaged file
        return schema


def read_pandas_index(schema: ArrowSchema) -> tuple[str, ...]:
    """Columns in which pandas has stored the index of a DataFrame, from the metadata of a file."""
    try:
        metadata = parse_json((schema.metadata or {}).get(b"pandas", b"{}"))
        columns = metadata.get("index_columns", [])
    except (AttributeError, ValueError):  # other metadata
        columns = []
    stored = [name for name in columns if isinstance(name, str)]  # a counting index is an object, and no column
    return tuple(n for n in schema.names if n in stored or re.fullmatch(r"__index_level_\d+__", n))


def read_table(path: Path, columns: Sequence[str]) -> ArrowTable:
    """Read columns of a file; views of words, as other libraries write them, become words.

    Raises:
        ValueError: They would take more memory than the bound of `size_limit`.
    """
    with require_package("data"):
        import pyarrow as pa
        import pyarrow.parquet as pq
        from pyarrow import types
    with wrap_read_errors(path):
        metadata = pq.read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        num_bytes = estimate_bytes(metadata, columns)
        words = [name for name in columns if is_text_type(schema.field(name).type)]
    check_memory(num_bytes, f"The table in {path}")
    with wrap_read_errors(path):
        # As a dictionary, words that repeat take memory once; a folder `key=value` is no column.
        table = pq.read_table(path, columns=list(columns), partitioning=None, read_dictionary=words)
    for index, name in enumerate(table.column_names):
        column = table.column(index)
        if types.is_dictionary(column.type):
            check_memory(count_text_bytes(column), f"Column {name!r} of {path}")
            if name in words:
                kind = schema.field(name).type
                kind = pa.large_string() if types.is_string_view(kind) else kind
                table = table.set_column(index, name, column.cast(kind))
    return table


def list_row_groups(path: Path) -> list[int]:
    """Read the number of rows of each group from the metadata of a file."""
    with require_package("data"):
        import pyarrow.parquet as pq
    with wrap_read_errors(path):
        metadata = pq.read_metadata(path)
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def iter_record_batches(
    path: Path, columns: Sequence[str], size: int = ROWS_PER_BATCH, row_groups: Sequence[int] | None = None
) -> Iterator[ArrowTable]:
    """Read columns of all or some groups of rows of a file in record batches of at most `size` rows."""
    with require_package("data"):
        import pyarrow.parquet as pq
    # pre_buffer would read all row groups ahead.
    with wrap_read_errors(path), pq.ParquetFile(path, pre_buffer=False) as file:
        groups = None if row_groups is None else list(row_groups)
        size = limit_batch_size(path, file.metadata, set(columns), size)
        yield from file.iter_batches(batch_size=size, columns=list(columns), row_groups=groups)


def rebatch_rows(batches: Iterable[ArrowTable], size: int, max_bytes: float = math.inf) -> Iterator[ArrowTable]:
    """Join and slice record batches to tables of `size` rows; of fewer at the end, or where they have `max_bytes`."""
    import pyarrow as pa  # optional; the batches come from pyarrow

    pending, num_rows, num_bytes = list[ArrowTable](), 0, 0
    for batch in batches:
        pending.append(pa.Table.from_batches([batch]))
        num_rows, num_bytes = num_rows + len(batch), num_bytes + batch.nbytes
        is_large = num_bytes >= max_bytes
        if num_rows >= size or is_large:
            table, num_left = pa.concat_tables(pending), 0 if is_large else num_rows % size
            yield from (table.slice(start, size) for start in range(0, num_rows - num_left, size))
            pending, num_rows, num_bytes = [table.slice(num_rows - num_left)], num_left, 0
    if num_rows:
        yield pa.concat_tables(pending)


def require_columns(path: Path, required: Sequence[str], available: Sequence[str]) -> None:
    """Check that a file has columns."""
    missing = [name for name in required if name not in available]
    if missing:
        similar = difflib.get_close_matches(missing[0].strip(), available, n=1)
        suggestion = f" Did you mean {similar[0]!r}?" if similar else ""
        parts = [part.strip() for part in missing[0].split(",")]
        if len(parts) > 1 and {*parts} <= {*available}:
            suggestion = f" Several columns are a list: [{', '.join(parts)}]."
        raise ValueError(
            f"{path} lacks the columns {format_names(missing)}. It has {format_names(available)}. Name one of these, "
            f"or add them.{suggestion}"
        )


def find_image_columns(path: Path) -> list[str]:
    """List the columns whose type may hold encoded images."""
    return [field.name for field in read_schema(path) if is_image_type(field.type)]


def infer_image_column(path: Path) -> str:
    """Find the column of images of a file: `img`, or else the only column that may hold images.

    Raises:
        ValueError: There is no such column, or there are several.
    """
    columns = find_image_columns(path)
    if "img" in columns:
        return "img"
    if len(columns) != 1:
        raise ValueError(
            f"The column of images of {path} is ambiguous: {format_names(columns)} may hold encoded images, of the "
            f"columns {format_names(read_schema(path).names)}. Name it: image=... (on the command line, --data.image "
            "or --image_column)."
        )
    return columns[0]


def is_image_type(column_type: ArrowType) -> bool:
    """Whether a type is binary, or the struct with a field `bytes` that Hugging Face's `datasets` writes."""
    with require_package("data"):
        from pyarrow import types
    if types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0:
        column_type = column_type.field("bytes").type
    return any(kind(column_type) for kind in (types.is_binary, types.is_large_binary, types.is_binary_view))


def iter_encoded_images(files: Sequence[Path], column: str, rows: np.ndarray | None = None) -> Iterator[EncodedImage]:
    """Read the encoded images of a column in order.

    Rows are counted through all files. The column is binary, or a struct with the field `bytes`.

    Raises:
        ValueError: A file lacks the column, or a row has no image.
    """
    with require_package("data"):
        import pyarrow as pa
    start = 0
    for path in files:
        schema = read_schema(path)
        require_columns(path, [column], schema.names)
        image_columns = [field.name for field in schema if is_image_type(field.type)]
        if column not in image_columns:
            raise ValueError(
                f"Column {column!r} of {path} holds no encoded images: expected binary or a struct with a "
                f"field 'bytes', got {schema.field(column).type}. Columns that may hold them: "
                f"{format_names(image_columns)}."
            )
        sizes = np.array(list_row_groups(path), dtype=np.int64)
        check_memory(2 * BYTES_PER_NUMBER * int(sizes.sum()), f"The list of the images in {path}")
        ends = start + sizes.cumsum()
        groups = list(range(len(sizes)))
        if rows is not None:  # groups of rows without any that is wanted are not read
            groups = [k for k in groups if np.diff(np.searchsorted(rows, [ends[k] - sizes[k], ends[k]]))[0]]
        row_numbers = np.concatenate([np.arange(ends[k] - sizes[k], ends[k]) for k in groups] or [np.arange(0)])
        position = 0
        for batch in iter_record_batches(path, [column], row_groups=groups):
            numbers = row_numbers[position : position + len(batch)]
            position += len(batch)
            if not len(batch):
                continue
            wanted = np.arange(len(batch))
            if rows is not None:  # a row may be wanted several times
                wanted = np.repeat(wanted, np.diff(np.searchsorted(rows, [*numbers, numbers[-1] + 1])))
            images = batch.column(0)
            images = images.field("bytes") if isinstance(images, pa.StructArray) else images
            for row in wanted.tolist():
                content, name = images[row].as_py(), f"Row {int(numbers[row]) - start} of {path} ({column!r})"
                if content is None:
                    raise ValueError(f"{name} has no image. Leave such rows out.")
                yield name, content
        start += int(sizes.sum())


def find_split_files(path: Path) -> dict[str, list[Path]]:
    """Find the parquet files of each split of a dataset.

    Args:
        path: One file, or a folder in which, at any depth, the names of files begin with train, validation or
            test; a folder without such names is all training data.

    Returns:
        Files by "train", "val" and "test".

    Raises:
        FileNotFoundError: There are no parquet files.
        ValueError: There are several datasets in the folder, or one without training data.
    """
    split_files: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    if path.is_file():
        return split_files | {"train": [path]}
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"There are no parquet files in {path}.")
    for file in files:
        word = re.match(r"[a-z]*", file.name.lower())
        if word and word[0] in SPLIT_NAMES:
            split_files[SPLIT_NAMES[word[0]]].append(file)
    if not any(split_files.values()):
        split_files["train"] = files
    others = [file.name for file in files if not any(file in group for group in split_files.values())]
    if others:
        warnings.warn(
            f"Parquet files of {path} whose names begin with no split are left out: {', '.join(others[:3])}. Splits "
            f"are called {', '.join(SPLIT_NAMES)}.",
            category=DataWarning,
            stacklevel=4,
        )
    folders = sorted({str(file.parent) for group in split_files.values() for file in group})
    if len(folders) > 1:
        raise ValueError(f"There are parquet files of several datasets: {folders}. Give the path of one of these.")
    if not split_files["train"]:
        raise ValueError(
            f"There is no training data in {path}: no parquet file's name begins with train, only "
            f"{[file.name for file in files]}."
        )
    return split_files


def to_integers(column: ArrowColumn) -> ArrowColumn:
    """A floating-point column of whole numbers, such as 0.0 and 1.0, as integers; any other as it is."""
    with require_package("data"):
        import pyarrow as pa
    try:
        return column.cast(pa.int64()) if pa.types.is_floating(column.type) else column
    except pa.ArrowInvalid:  # fractions
        return column
