"""CSV files in record batches of bounded memory, with column types that are fixed before the first batch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from flatbayes.core.optional import require_package
from flatbayes.data.parquet import ArrowTable, require_columns, wrap_read_errors
from flatbayes.data.table import require_numeric_type, require_unique_columns

BLOCK_SIZE_BYTES = 2**20
"""Bytes that are read at a time; a line must fit into it."""


def iter_csv_batches(
    path: Path, names: Sequence[str], keep_columns: Sequence[str], size: int
) -> Iterator[ArrowTable]:
    """Read columns of a CSV file in record batches.

    Feature columns are read as float64, or as booleans if the first block holds booleans. The types that pyarrow
    infers from the first block alone could turn out wrong later in the file (whole numbers, then fractions).

    Args:
        path: The file; its first line holds the column names.
        names: Columns of features.
        keep_columns: Columns to pass on unchanged as text.
        size: Maximal number of rows in a batch.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, lacks a column, or a feature is not numeric.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import csv
    read_options = csv.ReadOptions(block_size=BLOCK_SIZE_BYTES)
    with wrap_read_errors(path):
        with csv.open_csv(path, read_options=read_options) as first_block:
            schema = first_block.schema
        require_unique_columns(path, schema.names)
        require_columns(path, [*names, *keep_columns], schema.names)
        for name in names:
            require_numeric_type(schema.field(name).type, name, path)
        types = {name: pa.string() for name in keep_columns}
        for name in names:
            types[name] = pa.bool_() if pa.types.is_boolean(schema.field(name).type) else pa.float64()
        options = csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=False)
        with csv.open_csv(path, read_options=read_options, convert_options=options) as stream:
            for batch in stream:
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size)
