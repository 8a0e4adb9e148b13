"""Memory that the columns of a parquet file take once they are read, from its metadata.

A few bytes can stand for a billion equal rows, and a dictionary for one large value in every row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flatbayes.core.optional import require_package
from flatbayes.data.size_limit import check_memory, get_memory_limit

BYTES_PER_NUMBER = 8
MAX_USUAL_RATIO, MAX_USUAL_DICTIONARY_BYTES = 100, 2**21
"""Expansion of a column, and compressed size of its dictionary (writers limit it to 1 MiB), above which its values
are read in smaller batches."""


def is_text_type(column_type: Any) -> bool:
    """Whether a type is that of words or bytes of any length."""
    with require_package("data"):
        from pyarrow import types
    predicates = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(predicate(column_type) for predicate in predicates)


def count_text_bytes(column: Any) -> int:
    """Bytes of a dictionary-encoded column once each row has its own value."""
    import pyarrow.compute as pc

    total = 0
    for chunk in column.chunks:
        if is_text_type(chunk.type.value_type):
            total += pc.sum(pc.binary_length(chunk.dictionary).cast("int64").take(chunk.indices)).as_py() or 0
    return total


def estimate_bytes(metadata: Any, columns: Sequence[str]) -> int:
    """Bytes of columns in memory, from pyarrow's metadata: the values, and a copy of them as float64."""
    total, names = 0, set(columns)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in names or chunk.path_in_schema.partition(".")[0] in names:
                total += 2 * BYTES_PER_NUMBER * max(chunk.num_values, group.num_rows)
                total += chunk.total_uncompressed_size if chunk.physical_type.endswith("BYTE_ARRAY") else 0
    return total


def limit_batch_size(path: Path, metadata: Any, names: set[str], size: int) -> int:
    """Number of rows, at most `size`, that fit into memory even if each has the largest value of a dictionary."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            name = chunk.path_in_schema
            if name not in names and name.partition(".")[0] not in names:
                continue
            is_text, num_bytes = chunk.physical_type == "BYTE_ARRAY", chunk.total_uncompressed_size
            if chunk.num_values > group.num_rows:  # lists, which may have any number of values in a row
                check_memory(BYTES_PER_NUMBER * chunk.num_values, f"Column {name!r} of {path}")
            if not is_text or not chunk.has_dictionary_page:
                continue
            dictionary_bytes = chunk.data_page_offset - (chunk.dictionary_page_offset or chunk.data_page_offset)
            is_expanding = num_bytes > MAX_USUAL_RATIO * chunk.total_compressed_size
            if is_expanding or dictionary_bytes > MAX_USUAL_DICTIONARY_BYTES:
                check_memory(num_bytes, f"Column {name!r} of {path}")
                size = max(1, min(size, int(get_memory_limit() / 4 / max(1, num_bytes))))
    return size
