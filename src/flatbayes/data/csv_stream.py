"""CSV files a block at a time, columns being numbers from the first line to the last."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from flatbayes.data.columns import require_numeric, require_unique
from flatbayes.data.extras import needed
from flatbayes.data.parquet import named, require_columns

BLOCK = 2**20
"""Bytes read at a time; a line must fit into it."""


def csv_batches(path: Path, names: Sequence[str], keep: Sequence[str], size: int) -> Iterator[Any]:
    """Rows of some columns, in record batches of pyarrow.

    A column of features is one of numbers unless the first block shows booleans: what kind it is would otherwise show
    only at the end of the file.

    Args:
        path: The file; it begins with a line of column names.
        names: Columns of features.
        keep: Columns to pass on as the text that they are.
        size: Rows in a batch, at most.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, lacks a column, or a feature is no number.
    """
    with needed("data"):
        import pyarrow as pa
        from pyarrow import csv
    reading = csv.ReadOptions(block_size=BLOCK)
    with named(path):
        with csv.open_csv(path, read_options=reading) as first:
            found = first.schema
        require_unique(path, found.names)
        require_columns(path, [*names, *keep], found.names)
        for name in names:
            require_numeric(found.field(name).type, name, path)
        kinds = {name: pa.string() for name in keep}
        for name in names:
            kinds[name] = pa.bool_() if pa.types.is_boolean(found.field(name).type) else pa.float64()
        wanted = csv.ConvertOptions(column_types=kinds, include_columns=list(kinds), strings_can_be_null=False)
        with csv.open_csv(path, read_options=reading, convert_options=wanted) as stream:
            for batch in stream:
                for start in range(0, len(batch), size):
                    yield batch.slice(start, size)
