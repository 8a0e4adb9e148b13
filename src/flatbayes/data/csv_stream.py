"""CSV files a block at a time, columns being numbers from the first line to the last."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flatbayes.data.columns import require_numeric_type, require_unique_columns
from flatbayes.data.optional import require_package
from flatbayes.data.parquet import require_columns, wrap_read_errors

BLOCK_SIZE_BYTES = 2**20
"""Bytes read at a time; a line must fit into it."""


def iter_csv_batches(path: Path, names: Sequence[str], keep_columns: Sequence[str], size: int) -> Iterator[Any]:
    """Rows of some columns, in record batches of pyarrow.

    A column of features is one of numbers unless the first block shows booleans: what kind it is would otherwise show
    only at the end of the file.

    Args:
        path: The file; it begins with a line of column names.
        names: Columns of features.
        keep_columns: Columns to pass on as the text that they are.
        size: Rows in a batch, at most.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, lacks a column, or a feature is no number.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import csv
    reading = csv.ReadOptions(block_size=BLOCK_SIZE_BYTES)
    with wrap_read_errors(path):
        with csv.open_csv(path, read_options=reading) as first:
            found = first.schema
        require_unique_columns(path, found.names)
        require_columns(path, [*names, *keep_columns], found.names)
        for name in names:
            require_numeric_type(found.field(name).type, name, path)
        kinds = {name: pa.string() for name in keep_columns}
        for name in names:
            kinds[name] = pa.bool_() if pa.types.is_boolean(found.field(name).type) else pa.float64()
        wanted = csv.ConvertOptions(column_types=kinds, include_columns=list(kinds), strings_can_be_null=False)
        with csv.open_csv(path, read_options=reading, convert_options=wanted) as stream:
            for batch in stream:
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size)
