"""Bound on the memory that data may take once they are read: small files can stand for very large tables and images.

Sizes are computed from metadata and headers, before memory is allocated. A few bytes of a parquet file can stand for
a billion equal rows, and a dictionary for one large value in every row.
"""

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flatbayes.core.optional import require_package

VARIABLE = "FLATBAYES_MAX_DATA_GB"
"""Environment variable with the bound in gigabytes (10^9 bytes)."""
SHARE_OF_MEMORY = 0.5
"""Bound without the variable, as a share of the memory that this process may still take."""
UNMEASURED_BYTES = 2**24
"""Size that is allowed without a measurement of the memory, which takes as long as the decoding of a small image."""
CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
BYTES_PER_NUMBER = 8
MAX_USUAL_RATIO, MAX_USUAL_DICTIONARY_BYTES = 100, 2**21
"""Expansion of a column, and compressed size of its dictionary (writers limit it to 1 MiB), above which its values
are read in smaller batches."""


def check_memory(num_bytes: float, description: str, remedy: str = "") -> None:
    """Refuse data that would take more memory than the bound.

    `remedy` is what the user can do, other than to raise the bound.
    """
    if num_bytes <= UNMEASURED_BYTES and not os.environ.get(VARIABLE):
        return
    limit = get_memory_limit()
    if num_bytes > limit:
        source = "set by" if os.environ.get(VARIABLE) else "half of the memory of this process; for another, set"
        raise ValueError(
            f"{description} would take {format_bytes(num_bytes)} of memory once read, and at most "
            f"{format_bytes(limit)} are allowed ({source} the environment variable {VARIABLE})."
            f"{' ' if remedy else ''}{remedy}"
        )


def get_memory_limit() -> float:
    """Bytes that data may take: those of FLATBAYES_MAX_DATA_GB, or else half of the memory of this process.

    Raises:
        ValueError: The variable is no positive number.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return SHARE_OF_MEMORY * _measure_memory()
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = math.nan
    if not gigabytes > 0:
        raise ValueError(
            f"The environment variable {VARIABLE} is a number of gigabytes above 0, such as 64, got {text!r}."
        )
    return gigabytes * 1e9


def format_bytes(num_bytes: float) -> str:
    """A size in the unit that suits it.

    >>> format_bytes(2_500_000_000), format_bytes(3e6)
    ('2.5 GB', '3 MB')
    """
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"


def _measure_memory() -> float:
    """Physical memory in bytes, or less if this process is limited; infinite where the platform does not say."""
    limits = [math.inf]
    with suppress(AttributeError, ValueError, OSError):  # Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in CGROUP_FILES:
        with suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(float(Path(name).read_text(encoding="ascii")))
    with suppress(ImportError, OSError):
        import resource  # Unix

        allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
        if allowed != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limits.append(max(0, allowed - pages * resource.getpagesize()))
    return min(limit for limit in limits if limit >= 0)


def is_text_type(column_type: Any) -> bool:
    """Whether a type is that of words or bytes of any length."""
    with require_package("data"):
        from pyarrow import types
    words = (types.is_string, types.is_large_string, types.is_string_view)
    predicates = (*words, types.is_binary, types.is_large_binary, types.is_binary_view)
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
