"""Columns of CSV and parquet files: features, class labels and regression targets, and where their values are."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.arrays import MARKS_OF_MISSING_LABELS, MISSING_WORDS
from flatbayes.core.names import format_count, shorten
from flatbayes.core.optional import require_package
from flatbayes.data.checks import DataWarning, TaskType, check_fractions, make_class_names, to_int64
from flatbayes.data.column_names import find_optional_features, split_feature
from flatbayes.data.csv_files import explain_words
from flatbayes.data.csv_text import parse_numbers
from flatbayes.data.parquet import ArrowColumn, ArrowTable, ArrowType, read_table, to_integers
from flatbayes.data.table_file import TableFile
from flatbayes.data.unseen_categories import warn_of_unseen_categories


def read_column(files: Sequence[Path], name: str) -> ArrowColumn:
    """Read one column of several parquet files and concatenate it."""
    with require_package("data"):
        import pyarrow as pa
    chunks = []
    for path in files:
        chunks += read_table(path, [name]).column(name).chunks
    require_one_type(chunks, name)
    return pa.chunked_array(chunks)


def extract_features(
    table: ArrowTable,
    names: Sequence[str],
    file: TableFile,
    first_row: int = 0,
    noted_columns: set[str] | None = None,
) -> Tensor:
    """Convert columns to float64 features, [rows, features]: numbers, and the indicators of `data.categories`.

    Missing numbers are NaN where `names` has an indicator of them.

    `first_row` is the number of the first row, for a file that is read in batches. Columns of which a warning is
    given are added to `noted_columns`.

    Raises:
        ValueError: A column of numbers is neither numeric nor boolean, or values are missing, infinite or too large
            for float32.
    """
    column_names = frozenset(file.column_names)
    sources = [split_feature(name, column_names) for name in names]
    numbers = {name for name, category in sources if category is None}
    values = np.empty((len(table), len(names)), dtype=np.float64)
    words: dict[str, tuple[np.ndarray, list[str]]] = {}
    for index, (name, category) in enumerate(sources):
        column = table.column(name)
        if category is None:
            values[:, index] = to_numbers(column, name, file)
        elif name in numbers:
            values[:, index] = np.isnan(to_numbers(column, name, file))
        else:
            if name not in words:
                words[name] = to_words(column).to_numpy(zero_copy_only=False), []
            texts, categories = words[name]
            categories.append(category)
            values[:, index] = texts == category
    noted_columns = set() if noted_columns is None else noted_columns
    for name, (texts, categories) in words.items():
        if name not in noted_columns and warn_of_unseen_categories(texts, name, categories, str(file.path)):
            noted_columns.add(name)
    with np.errstate(invalid="ignore"):
        is_invalid = ~(np.abs(values) <= np.finfo(np.float32).max)
    optional = find_optional_features(names)
    is_invalid[:, optional] &= ~np.isnan(values[:, optional])
    if is_invalid.any():
        row, index = np.argwhere(is_invalid)[0].tolist()
        value = float(values[row, index])
        num_invalid = int(is_invalid.any(1).sum())
        reason = "a missing value" if np.isnan(value) else f"{value}, which is not finite as float32,"
        raise ValueError(
            f"Column {names[index]!r} of {file.path} has {reason} "
            f"({file.describe_row(first_row + row, names[index])}). Fill it in, or leave the row out; "
            f"{num_invalid} of {format_count(len(table), 'row')} {'has' if num_invalid == 1 else 'have'} such values."
        )
    return torch.from_numpy(values)


def to_numbers(column: ArrowColumn, name: str, file: TableFile) -> np.ndarray:
    """A column of numbers, booleans, or the text of these in a CSV file as float64, [rows]; missing values are NaN.

    Raises:
        ValueError: It holds something else.
    """
    with require_package("data"):
        import pyarrow as pa
    if file.layout is not None and is_text_type(column.type):
        numbers = parse_numbers(column, file.layout.decimal)
        column = column if numbers is None else numbers
    require_numeric_type(column, name, file)
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def is_text_type(column_type: ArrowType) -> bool:
    """Whether a column holds words."""
    with require_package("data"):
        from pyarrow import types
    if types.is_dictionary(column_type):
        column_type = column_type.value_type
    return bool(types.is_string(column_type) or types.is_large_string(column_type))


def to_words(column: ArrowColumn) -> ArrowColumn:
    """A column as words; missing values are empty."""
    with require_package("data"):
        import pyarrow as pa
    return column.cast(pa.string()).fill_null("")


def require_numeric_type(column: ArrowColumn, name: str, file: TableFile) -> None:
    """Check that a feature column is numeric or boolean."""
    with require_package("data"):
        from pyarrow import types
    kind = column.type
    predicates = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null)
    if any(predicate(kind) for predicate in predicates):
        return
    leave_out = f"Or leave it out: ignore=({name!r},) (on the command line, --data.ignore [{name}])."
    if any(predicate(kind) for predicate in (types.is_date, types.is_time, types.is_timestamp, types.is_duration)):
        raise ValueError(
            f"Column {name!r} of {file.path} holds {describe_type(kind)}, and features must be numbers. Convert "
            f"them, for example to seconds, or to columns for year, month and weekday. {leave_out}"
        )
    explanation = explain_words(file.path, file.layout, name) if file.layout is not None else None
    explanation = explanation or (
        f"Column {name!r} of {file.path} holds {describe_type(kind)}, and features must be numbers or booleans; the "
        f"first is {str(column[0].as_py())[:40]!r}. Encode it as numbers."
    )
    raise ValueError(f"{explanation} {leave_out}")


def describe_type(column_type: ArrowType) -> str:
    """The type of a column in words."""
    with require_package("data"):
        from pyarrow import types
    if types.is_string(column_type) or types.is_large_string(column_type) or types.is_dictionary(column_type):
        return "words"
    for predicate, words in {
        types.is_timestamp: "dates and times",
        types.is_date: "dates",
        types.is_time: "times",
        types.is_duration: "durations",
        types.is_floating: "fractions",
    }.items():
        if predicate(column_type):
            return words
    return str(column_type)


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
    check_fractions(column.drop_null().cast(pa.float64(), safe=False).to_numpy(), f"Column {name!r}")
    return True


def extract_regression_targets(column: ArrowColumn, name: str, file: TableFile) -> Tensor:
    """Convert a numeric column to regression targets, [rows] (float64).

    Raises:
        ValueError: Values are missing or not numeric.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import types
    predicates = (types.is_integer, types.is_floating, types.is_decimal)
    if not any(predicate(column.type) for predicate in predicates):
        explanation = explain_words(file.path, file.layout, name) if file.layout is not None else None
        raise ValueError(
            explanation
            or f"Column {name!r} holds {describe_type(column.type)}, and a regression needs numbers. Name another "
            "column."
        )
    values = np.array(require_no_nulls(column, name, file).cast(pa.float64(), safe=False).to_numpy())
    is_invalid = ~(np.abs(values) <= np.finfo(np.float32).max)
    if is_invalid.any():
        row = int(is_invalid.argmax())
        raise ValueError(
            f"Column {name!r} has {format_count(int(is_invalid.sum()), 'value that is', 'values that are')} not "
            f"finite as float32, the first ({values[row]:g}) {describe_label(row, name, file, str(values[row]))}. "
            "Leave those examples out."
        )
    return torch.from_numpy(values)


def extract_target_rows(table: ArrowTable, names: Sequence[str], task: TaskType, file: TableFile) -> np.ndarray:
    """Several target columns, [rows, columns]: labels of 0 and 1 with NaN for missing ones, or regression targets.

    Raises:
        ValueError: Values of regression targets are missing, or not numeric.
    """
    with require_package("data"):
        import pyarrow as pa
        from pyarrow import types
    columns = [table.column(name) for name in names]
    are_whole = all(types.is_integer(column.type) or types.is_boolean(column.type) for column in columns)
    are_numbers = are_whole or all(types.is_integer(c.type) or types.is_floating(c.type) for c in columns)
    if task == "regression" or not (are_whole or (task == "multi_label" and are_numbers)):
        pairs = zip(columns, names, strict=True)
        return torch.stack([extract_regression_targets(column, name, file) for column, name in pairs], 1).numpy()
    kind = pa.float64() if any(types.is_floating(c.type) or c.null_count for c in columns) else pa.int64()
    return np.stack([column.cast(kind).to_numpy() for column in columns], 1)


def extract_integer_labels(
    columns: Mapping[str, ArrowColumn], name: str, class_names: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, Tensor]] | None:
    """Class names and the labels of each split from integer columns; None if a column is not of integers."""
    with require_package("data"):
        from pyarrow import types
    if not all(types.is_integer(column.type) for column in columns.values()):
        return None
    targets = {
        split_name: torch.from_numpy(to_int64(require_no_nulls(column, name).to_numpy(), f"Column {name!r}"))
        for split_name, column in columns.items()
    }
    return tuple(class_names) or make_class_names(list(targets.values())), targets


def encode_class_labels(
    columns: Mapping[str, ArrowColumn], name: str, file: TableFile | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Number the distinct values of a column in sorted order: class names, and the labels of each split."""
    with require_package("data"):
        from pyarrow import types
    columns = {split_name: to_integers(column) for split_name, column in columns.items()}
    require_one_type(list(columns.values()), name)
    values = {}
    for split_name, column in columns.items():
        value_type = column.type
        if types.is_dictionary(value_type):
            value_type = value_type.value_type
        predicates = (types.is_integer, types.is_string, types.is_large_string, types.is_boolean, types.is_null)
        if not any(predicate(value_type) for predicate in predicates):
            raise ValueError(
                f"Column {name!r} holds {describe_type(value_type)}, and classes must be whole numbers or words. "
                "Name another column as the target, write its values so, or fit a regression to it."
            )
        values[split_name] = require_no_nulls(column, name, file).cast(value_type).to_pylist()
        require_no_missing_words(values[split_name], name, file)
    classes = sorted(set().union(*values.values()))
    labels = {value: label for label, value in enumerate(classes)}
    targets = {
        split_name: torch.tensor([labels[value] for value in split_values], dtype=torch.int64)
        for split_name, split_values in values.items()
    }
    return tuple(str(value) for value in classes), targets


def require_no_missing_words(labels: Sequence[object], name: str, file: TableFile | None) -> None:
    """Check that no class is an empty word, or a word that stands for a missing value, such as NA."""
    classes = set(labels)
    missing = {label for label in classes if isinstance(label, str) and label.strip().lower() in MISSING_WORDS}
    if missing:
        rows = [row for row, label in enumerate(labels) if label in missing]
        word = str(labels[rows[0]])
        advice = f" If {word!r} is a class, give it a longer name." if word.strip() else ""
        raise ValueError(
            f"Column {name!r} has {format_count(len(rows), 'missing label')}, the first "
            f"{describe_label(rows[0], name, file, word)}. Fill them in or leave those examples out.{advice}"
        )
    marks = [mark for mark in MARKS_OF_MISSING_LABELS if mark in classes]
    if marks:
        row = labels.index(marks[0])
        warnings.warn(
            f"{marks[0]!r} is a class of column {name!r} (the first {describe_label(row, name, file, marks[0])}). If "
            "it stands for a missing label, leave those examples out.",
            category=DataWarning,
            stacklevel=4,
        )


def describe_label(row: int, name: str, file: TableFile | None, text: str = "") -> str:
    """Where a label is, counted from 1 as an editor shows it."""
    return f"{shorten(text)!r} in row {row + 1}" if file is None else file.describe_row(row, name)


def require_one_type(columns: Sequence[ArrowColumn], name: str) -> None:
    """Check that a column has the same type in all files."""
    types = sorted({str(column.type) for column in columns})
    if len(types) > 1:
        raise ValueError(f"Column {name!r} has several types in these files: {types}. Convert them to one.")


def require_no_nulls(column: ArrowColumn, name: str, file: TableFile | None = None) -> ArrowColumn:
    """Return the column if it has no missing values.

    Raises:
        ValueError: It has; the message locates the first.
    """
    if column.null_count:
        first = column.is_null().to_pylist().index(True)
        raise ValueError(
            f"Column {name!r} has {format_count(column.null_count, 'missing label')}, the first "
            f"{describe_label(first, name, file)}. Fill them in or leave those examples out."
        )
    return column
