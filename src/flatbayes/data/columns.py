"""Columns of tables: files read, numbers to features, classes to labels."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.checks import make_class_names
from flatbayes.data.optional import require_package
from flatbayes.data.parquet import wrap_read_errors
from flatbayes.data.targets import TaskType, holds_fractions


def read_table(path: Path) -> Any:
    """A CSV file with a header, or a parquet file, as a table of pyarrow.

    Raises:
        ValueError: It is of neither kind, damaged, or has two columns of one name.
        FileNotFoundError: There is no such file.
    """
    with require_package("data"):
        import pyarrow.csv
        import pyarrow.parquet
    readers = {
        ".csv": pyarrow.csv.read_csv,
        ".parquet": partial(pyarrow.parquet.read_table, partitioning=None),  # or folders may become columns
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"A table is a file with the suffix .csv or .parquet, got {path}. Convert it.")
    with wrap_read_errors(path):
        table = readers[path.suffix.lower()](path)
    require_unique_columns(path, table.column_names)
    return table


def require_unique_columns(path: Path, names: Sequence[str]) -> None:
    """Refuse a table with two columns of one name.

    Raises:
        ValueError: Lists them.
    """
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise ValueError(f"{path} has several columns of the same name: {twice}. Rename or remove them.")


def read_column(files: Sequence[Path], name: str) -> Any:
    """One column of several parquet files, one after the other."""
    with require_package("data"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    chunks = []
    for path in files:
        with wrap_read_errors(path):
            chunks += pq.read_table(path, columns=[name]).column(name).chunks
    require_one_type(chunks, name)
    return pa.chunked_array(chunks)


def extract_features(table: Any, names: Sequence[str], path: Path) -> Tensor:
    """Numeric columns as float32, [rows, features]; what is missing is NaN.

    Args:
        table: A table or a record batch of pyarrow that has these columns.
        names: The columns, in the order of the features.
        path: The file, for the message.

    Raises:
        ValueError: A column holds something else than numbers or booleans.
    """
    with require_package("data"):
        import pyarrow as pa
    values = np.empty((len(table), len(names)), dtype=np.float32)
    for index, name in enumerate(names):
        column = table.column(name)
        require_numeric_type(column.type, name, path)
        with np.errstate(over="ignore"):  # becomes an infinity, which is refused later
            values[:, index] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return torch.from_numpy(values)


def require_numeric_type(column_type: Any, name: str, path: Path) -> None:
    """Refuse a feature that is neither numbers nor booleans.

    Args:
        column_type: Type of the column, as pyarrow has it.
        name: The column's name.
        path: The file, for the message.

    Raises:
        ValueError: It says what the column holds.
    """
    with require_package("data"):
        from pyarrow import types
    numeric = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if not any(test(column_type) for test in numeric):
        raise ValueError(
            f"Column {name!r} of {path} holds {column_type}, and features must be numbers or booleans. Encode it as "
            "numbers, or remove it."
        )


def is_regression_column(column: Any, name: str, task: TaskType) -> bool:
    """Whether a column holds numbers to predict: as the task says, else if it holds fractions.

    Raises:
        ValueError: It cannot be told.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import types
    if task is not None or not (types.is_floating(column.type) or types.is_decimal(column.type)):
        return task == "regression"
    return holds_fractions(column.drop_null().cast(pa.float64(), safe=False).to_numpy(), f"Column {name!r}")


def extract_regression_targets(column: Any, name: str) -> Tensor:
    """Numbers to predict, float32, [rows].

    Raises:
        ValueError: Values are missing, or no numbers.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import types
    kind = column.type
    if not any(test(kind) for test in (types.is_integer, types.is_floating, types.is_decimal)):
        raise ValueError(f"Column {name!r} holds {kind}, and a regression needs numbers. Name another column.")
    values = require_no_nulls(column, name).cast(pa.float64(), safe=False).to_numpy()
    with np.errstate(over="ignore"):  # becomes an infinity, which is refused later
        return torch.from_numpy(values.astype(np.float32))


def extract_integer_labels(
    columns: Mapping[str, Any], name: str, class_names: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """Labels that are numbers from 0 already, or None if they are words.

    Args:
        columns: The column of the labels in each part.
        name: The column's name.
        class_names: One per class; if empty, the numbers are the names.
    """
    with require_package("data"):
        from pyarrow import types
    if not all(types.is_integer(column.type) for column in columns.values()):
        return None
    targets = {
        part: torch.from_numpy(require_no_nulls(column, name).to_numpy().astype("int64"))
        for part, column in columns.items()
    }
    return tuple(class_names) or make_class_names(list(targets.values())), targets


def encode_class_labels(columns: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Classes are the distinct values, sorted; labels are their numbers.

    Args:
        columns: The column of the classes in each part.
        name: The column's name.

    Raises:
        ValueError: Values are missing, or neither whole numbers nor words nor booleans.
    """
    with require_package("data"):
        from pyarrow import types
    require_one_type(list(columns.values()), name)
    values = {}
    for part, column in columns.items():
        kind = column.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        countable = (
            types.is_integer,
            types.is_string,
            types.is_large_string,
            types.is_boolean,
            types.is_null,
        )
        if not any(test(kind) for test in countable):
            raise ValueError(
                f"Column {name!r} holds {kind}, and classes must be whole numbers or words. Name another "
                "column as the target, write its values so, or fit a regression to it."
            )
        values[part] = require_no_nulls(column, name).cast(kind).to_pylist()
    classes = sorted(set().union(*values.values()))
    numbers = {value: number for number, value in enumerate(classes)}
    targets = {
        part: torch.tensor([numbers[value] for value in found], dtype=torch.int64) for part, found in values.items()
    }
    return tuple(str(value) for value in classes), targets


def require_one_type(columns: Sequence[Any], name: str) -> None:
    """Refuse a column that is of one type here, and of another there.

    Raises:
        ValueError: Lists the types.
    """
    kinds = sorted({str(column.type) for column in columns})
    if len(kinds) > 1:
        raise ValueError(f"Column {name!r} has several types in these files: {kinds}. Convert them to one.")


def require_no_nulls(column: Any, name: str) -> Any:
    """The column, if no value of it is missing.

    Raises:
        ValueError: Some are.
    """
    if column.null_count:
        first = column.is_null().to_pylist().index(True)
        raise ValueError(
            f"Column {name!r} has {column.null_count} missing labels, the first in row {first} (counted "
            "from 0). Fill them in or leave those examples out."
        )
    return column
