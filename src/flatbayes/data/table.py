"""Tables (CSV, parquet): numeric columns to features, a target column to class labels or regression targets."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.optional import require_package
from flatbayes.data.checks import TaskType, holds_fractions, make_class_names
from flatbayes.data.parquet import ArrowColumn, ArrowTable, ArrowType, require_columns, wrap_read_errors
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split


@dataclass(frozen=True, kw_only=True)
class Table(DataSource):
    """A CSV or parquet file with a target column; all other columns are features.

    Attributes:
        path: The file; the first line of a CSV file holds the column names.
        target: Column of the classes, as whole numbers or words, or of the regression targets.
        task: classification or regression; None infers it from the target column: integers and words are classes,
            fractions are regression targets.
    """

    path: str
    target: str
    task: TaskType = None

    def read(self) -> RawSplits:
        """Read all rows as one unsplit set."""
        path = Path(self.path)
        table = read_table(path)
        require_columns(path, [self.target], table.column_names)
        names = tuple(name for name in table.column_names if name != self.target)
        if not names:
            raise ValueError(f"{path} has no column besides the target {self.target!r}. Add columns of features.")
        column, inputs = table.column(self.target), extract_features(table, names, path)
        if is_regression_column(column, self.target, self.task):
            split = Split(inputs=inputs, targets=extract_regression_targets(column, self.target))
            return RawSplits(unsplit=split, target_names=(self.target,), feature_names=names)
        class_names, targets = encode_class_labels({"unsplit": column}, self.target)
        split = Split(inputs=inputs, targets=targets["unsplit"])
        return RawSplits(unsplit=split, class_names=class_names, feature_names=names)


def read_table(path: Path) -> ArrowTable:
    """Read a CSV file with a header line, or a parquet file.

    Raises:
        ValueError: It has another suffix, is damaged, or has two columns of the same name.
        FileNotFoundError: There is no such file.
    """
    with require_package("data"):
        import pyarrow.csv
        import pyarrow.parquet
    readers = {
        ".csv": pyarrow.csv.read_csv,
        # partitioning=None: a folder named `key=value` must not become a column
        ".parquet": partial(pyarrow.parquet.read_table, partitioning=None),
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"A table is a file with the suffix .csv or .parquet, got {path}. Convert it.")
    with wrap_read_errors(path):
        table = readers[path.suffix.lower()](path)
    require_unique_columns(path, table.column_names)
    return table


def require_unique_columns(path: Path, names: Sequence[str]) -> None:
    """Check that no two columns have the same name.

    Raises:
        ValueError: Some do; the message lists them.
    """
    duplicates = sorted(name for name, count in Counter(names).items() if count > 1)
    if duplicates:
        raise ValueError(f"{path} has several columns of the same name: {duplicates}. Rename or remove them.")


def read_column(files: Sequence[Path], name: str) -> ArrowColumn:
    """Read one column of several parquet files and concatenate it."""
    with require_package("data"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    chunks = []
    for path in files:
        with wrap_read_errors(path):
            chunks += pq.read_table(path, columns=[name]).column(name).chunks
    require_one_type(chunks, name)
    return pa.chunked_array(chunks)


def extract_features(table: ArrowTable, names: Sequence[str], path: Path) -> Tensor:
    """Convert numeric columns to float64 features, [rows, features]; missing values become NaN.

    Args:
        table: A table with these columns.
        names: The columns, in the order of the features.
        path: The file, for messages.

    Raises:
        ValueError: A column is neither numeric nor boolean.
    """
    with require_package("data"):
        import pyarrow as pa
    values = np.empty((len(table), len(names)), dtype=np.float64)
    for index, name in enumerate(names):
        column = table.column(name)
        require_numeric_type(column.type, name, path)
        values[:, index] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return torch.from_numpy(values)


def require_numeric_type(column_type: ArrowType, name: str, path: Path) -> None:
    """Check that a feature column is numeric or boolean.

    Args:
        column_type: Type of the column.
        name: Name of the column.
        path: The file, for messages.

    Raises:
        ValueError: It is not; the message says what the column holds.
    """
    with require_package("data"):
        from pyarrow import types
    predicates = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if not any(predicate(column_type) for predicate in predicates):
        raise ValueError(
            f"Column {name!r} of {path} holds {column_type}, and features must be numbers or booleans. Encode it as "
            "numbers, or remove it."
        )


def is_regression_column(column: ArrowColumn, name: str, task: TaskType) -> bool:
    """Whether a target column holds regression targets: as `task` says, else if it holds fractions.

    Raises:
        ValueError: The column is ambiguous.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import types
    if task is not None or not (types.is_floating(column.type) or types.is_decimal(column.type)):
        return task == "regression"
    return holds_fractions(column.drop_null().cast(pa.float64(), safe=False).to_numpy(), f"Column {name!r}")


def extract_regression_targets(column: ArrowColumn, name: str) -> Tensor:
    """Convert a numeric column to regression targets, [rows] (float64).

    Raises:
        ValueError: Values are missing or not numeric.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import types
    predicates = (types.is_integer, types.is_floating, types.is_decimal)
    if not any(predicate(column.type) for predicate in predicates):
        raise ValueError(f"Column {name!r} holds {column.type}, and a regression needs numbers. Name another column.")
    values = require_no_nulls(column, name).cast(pa.float64(), safe=False).to_numpy()
    return torch.from_numpy(np.array(values))


def extract_integer_labels(
    columns: Mapping[str, ArrowColumn], name: str, class_names: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """Convert integer columns to labels.

    Args:
        columns: The label column of each split.
        name: Name of the column.
        class_names: One name per class; if empty, the numbers are the names.

    Returns:
        Class names and the labels of each split, or None if a column is not of integers.
    """
    with require_package("data"):
        from pyarrow import types
    if not all(types.is_integer(column.type) for column in columns.values()):
        return None
    targets = {
        split_name: torch.from_numpy(require_no_nulls(column, name).to_numpy().astype("int64"))
        for split_name, column in columns.items()
    }
    return tuple(class_names) or make_class_names(list(targets.values())), targets


def encode_class_labels(columns: Mapping[str, ArrowColumn], name: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Number the distinct values of a column in sorted order.

    Args:
        columns: The class column of each split.
        name: Name of the column.

    Returns:
        Class names and the labels of each split.

    Raises:
        ValueError: Values are missing, or are neither whole numbers nor words nor booleans.
    """
    with require_package("data"):
        from pyarrow import types
    require_one_type(list(columns.values()), name)
    values = {}
    for split_name, column in columns.items():
        value_type = column.type
        if types.is_dictionary(value_type):
            value_type = value_type.value_type
        predicates = (types.is_integer, types.is_string, types.is_large_string, types.is_boolean, types.is_null)
        if not any(predicate(value_type) for predicate in predicates):
            raise ValueError(
                f"Column {name!r} holds {value_type}, and classes must be whole numbers or words. Name another "
                "column as the target, write its values so, or fit a regression to it."
            )
        values[split_name] = require_no_nulls(column, name).cast(value_type).to_pylist()
    classes = sorted(set().union(*values.values()))
    labels = {value: label for label, value in enumerate(classes)}
    targets = {
        split_name: torch.tensor([labels[value] for value in split_values], dtype=torch.int64)
        for split_name, split_values in values.items()
    }
    return tuple(str(value) for value in classes), targets


def require_one_type(columns: Sequence[ArrowColumn], name: str) -> None:
    """Check that a column has the same type in all files.

    Raises:
        ValueError: It has several types; the message lists them.
    """
    types = sorted({str(column.type) for column in columns})
    if len(types) > 1:
        raise ValueError(f"Column {name!r} has several types in these files: {types}. Convert them to one.")


def require_no_nulls(column: ArrowColumn, name: str) -> ArrowColumn:
    """Return the column if it has no missing values.

    Raises:
        ValueError: It has; the message locates the first.
    """
    if column.null_count:
        first = column.is_null().to_pylist().index(True)
        raise ValueError(
            f"Column {name!r} has {column.null_count} missing labels, the first in row {first} (counted "
            "from 0). Fill them in or leave those examples out."
        )
    return column
