"""A CSV or parquet file as a table: its columns before any row is read, its rows, and where a value is."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flatbayes.core.console import show_status
from flatbayes.core.names import shorten
from flatbayes.data.checks import DataWarning
from flatbayes.data.column_names import split_feature
from flatbayes.data.csv_files import (
    CSV_SUFFIXES,
    get_table_suffix,
    iter_csv_batches,
    locate_row,
    read_csv,
    read_csv_layout,
)
from flatbayes.data.csv_format import CsvFormat, CsvLayout
from flatbayes.data.parquet import (
    ArrowTable,
    iter_record_batches,
    read_pandas_index,
    read_schema,
    read_table,
    require_columns,
    require_file,
)

LARGE_FILE_BYTES = 5 * 10**7
"""Size of files from which on a terminal shows that they are read."""


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A CSV or parquet file whose columns are known and whose rows are not read yet.

    Attributes:
        path: The file.
        column_names: Names of all columns, in order.
        index_columns: Columns in which pandas has stored the index of a DataFrame.
        layout: Layout of a CSV file; None for parquet.
    """

    path: Path
    column_names: tuple[str, ...]
    index_columns: tuple[str, ...] = ()
    layout: CsvLayout | None = None

    @staticmethod
    def open(path: Path, given: CsvFormat = CsvFormat(), expected: CsvFormat | None = None) -> "TableFile":
        """Read the names of the columns.

        What is `given` of the format of a CSV file is not detected; `expected` holds where its text is not certain.

        Raises:
            ValueError: It has another suffix, or is damaged.
            FileNotFoundError: There is no such file.
        """
        suffix = get_table_suffix(path)
        if suffix not in (*CSV_SUFFIXES, ".parquet"):
            raise ValueError(f"A table is a file with the suffix .csv, .tsv or .parquet, got {path}. Convert it.")
        require_file(path)
        if suffix == ".parquet":
            schema = read_schema(path)
            return TableFile(path=path, column_names=tuple(schema.names), index_columns=read_pandas_index(schema))
        layout = read_csv_layout(path, given, expected)
        if len(layout.column_names) > 1 and all(is_float(name) for name in layout.column_names[:-1]):
            warnings.warn(
                f"The first line of {path} is read as the names of the columns, and they are numbers: "
                f"{', '.join(layout.column_names)[:80]}. If it is a row, write a line of names above it.",
                category=DataWarning,
                stacklevel=2,
            )
        return TableFile(path=path, column_names=layout.column_names, layout=layout)

    def read(self, names: Sequence[str]) -> ArrowTable:
        """Read all rows of these columns."""
        with show_status(f"reading {self.path}", is_shown=self.path.stat().st_size > LARGE_FILE_BYTES):
            if self.layout is not None:
                return read_csv(self.path, self.layout).select([self.column_names.index(name) for name in names])
            return read_table(self.path, names)

    def iter_batches(self, features: Sequence[str], keep_columns: Sequence[str], size: int) -> Iterator[ArrowTable]:
        """Read the columns of features, and others unchanged, in record batches of at most `size` rows."""
        column_names = frozenset(self.column_names)
        sources = [split_feature(feature, column_names) for feature in features]
        names = [*dict.fromkeys(name for name, _ in sources)]
        require_columns(self.path, [*names, *keep_columns], self.column_names)
        require_unique_columns(self.path, [name for name in self.column_names if name in {*names, *keep_columns}])
        if self.layout is not None:
            numbers = {name for name, category in sources if category is None}
            words = [name for name in names if name not in numbers]
            text_columns = [*dict.fromkeys([*words, *keep_columns])]
            return iter_csv_batches(self.path, self.layout, names, text_columns, size)
        return iter_record_batches(self.path, [*dict.fromkeys([*names, *keep_columns])], size)

    def describe_row(self, row: int, name: str) -> str:
        """Where a value is, by its row from 0: `'NA' in line 3` of a CSV file, `row 2` of a parquet file, from 1."""
        if self.layout is None:
            return f"in row {row + 1}"
        line, text = locate_row(self.path, self.layout, row, name)
        return f"{shorten(text)!r} in line {line}"


def is_float(text: str) -> bool:
    """Whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def require_unique_columns(path: Path, names: Sequence[str]) -> None:
    """Check that no two columns have the same name."""
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1 and name)
    if duplicates:
        raise ValueError(f"{path} has several columns of the same name: {duplicates}. Rename or remove them.")
