"""Tables (CSV, parquet): columns to features, a target column to class labels or regression targets."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.core.names import format_names
from flatbayes.core.optional import require_package
from flatbayes.data.arrays import CLASS_TASKS, CONVERTERS, infer_array_task
from flatbayes.data.categories import list_features
from flatbayes.data.checks import DataWarning, TaskType
from flatbayes.data.columns import (
    encode_class_labels,
    extract_features,
    extract_regression_targets,
    extract_target_rows,
    is_regression_column,
)
from flatbayes.data.csv_format import CsvFormat
from flatbayes.data.parquet import ArrowTable, require_columns
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split
from flatbayes.data.table_file import TableFile, require_unique_columns

MIN_ROWS_OF_INDEX = 10
"""Fewest rows in which a column that counts them is noticed."""

NAME_OF_ID = re.compile(r"(?:^|[_ .-])id$|^id(?:[_ .-]|$)|[a-z]I[dD]$|^ID$|_ID$")
"""Names of columns of whole numbers that identify examples."""

MAX_USUAL_CLASSES = 20
"""Most classes that are whole numbers without a note on `task`."""


@dataclass(frozen=True, kw_only=True)
class Table(DataSource):
    """A CSV or parquet file with one target column or several; all other columns are features.

    Words become a feature of 0 and 1 for each category, and missing numbers the mean of the training rows. Columns
    that pandas writes for the index of a DataFrame are left out. Each is said in a warning.

    Attributes:
        path: The file; the first line of a CSV file holds the column names. It may be compressed (.csv.gz).
        target: Column of the classes, as whole numbers or words, or of the regression targets. Several columns are
            numbers to predict, or labels of 0 and 1.
        task: classification or regression; multi_label for several columns of 0 and 1; None infers it from the
            targets: integers and words of one column are classes, fractions are regression targets.
        ignore: Columns that are neither features nor the target, such as an id.
        encoding: Encoding of a CSV file: cp1252 (Windows), latin-1, utf-16 ...; None for UTF-8, or UTF-16 if the
            file says so.
        separator: Character between values of a CSV file, or comma, semicolon, tab, pipe, space; None detects it.
        decimal: Decimal mark of a CSV file, a point or a comma; None detects it.

    Examples:
        >>> columns = {"id": range(60), "age": [*range(30)] * 2, "answer": ["yes", "no"] * 30}
        >>> with PredictionWriter("task.csv") as writer:
        ...     writer.write({name: np.array(values) for name, values in columns.items()})
        >>> splits = Table(path="task.csv", target="answer", ignore=("id",)).load(seed=0)
        >>> splits.class_names, splits.feature_names
        (('no', 'yes'), ('age',))
    """

    path: str
    target: tuple[str, ...] | str
    task: TaskType = None
    ignore: tuple[str, ...] = ()
    encoding: str | None = None
    separator: str | None = None
    decimal: str | None = None

    __repr__ = format_fields

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ignore", tuple(self.ignore))  # JSON has lists
        if not isinstance(self.target, str):
            object.__setattr__(self, "target", tuple(self.target))
        if self.task == "dense":
            raise ValueError(
                f"A table has a column for each target, here {format_names(self.targets)}, and dense is for a "
                "class at each position of an example. Pass arrays, (inputs, targets), or write a .npz file."
            )
        if not self.targets or (self.task == "classification" and len(self.targets) > 1):
            raise ValueError(
                f"Classes are those of one target column, got {format_names(self.targets) or 'none'}. Name one; "
                "several columns of 0 and 1 are task=multi_label."
            )
        self._csv_format  # noqa: B018 - validates

    @property
    def targets(self) -> tuple[str, ...]:
        """The target columns."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def _csv_format(self) -> CsvFormat:
        return CsvFormat(encoding=self.encoding, separator=self.separator, decimal=self.decimal)

    def read(self) -> RawSplits:
        """Read all rows as one unsplit set."""
        file = TableFile.open(Path(self.path), self._csv_format)
        require_columns(file.path, [*self.targets, *self.ignore], file.column_names)  # before any row is read
        others = {*self.targets, *self.ignore}
        names = [name for name in file.column_names if name not in {*others, *file.index_columns}]
        require_unique_columns(file.path, [*names, *self.targets])
        for name in file.index_columns:
            if name not in others:
                warnings.warn(
                    f"Column {name!r} of {file.path} is the index of a DataFrame, and is left out. To use it, call "
                    "reset_index() before to_parquet().",
                    category=DataWarning,
                    stacklevel=3,
                )
        table = file.read([*dict.fromkeys([*names, *self.targets])])
        if not len(table):
            raise ValueError(f"{file.path} has no rows: give one for each example.")
        names = drop_unnamed_columns(table, names, file.path)
        if not names:
            raise ValueError(
                f"{file.path} has no column besides the target {format_names(self.targets)}. Add columns of features."
            )
        warn_of_counters(table, names, file.path)
        features = list_features(table, names, file)
        raw = self._read_targets(table, extract_features(table, features, file), file)
        csv_format = file.layout.format if file.layout is not None else None
        return replace(raw, feature_names=features, csv_format=csv_format)

    def _read_targets(self, table: ArrowTable, inputs: Tensor, file: TableFile) -> RawSplits:
        if len(self.targets) > 1 or self.task == "multi_label":
            description = f"The columns {format_names(self.targets)} of {file.path}"
            values = extract_target_rows(table, self.targets, self.task, file)
            task = infer_array_task(values, self.task, description)
            if task in CLASS_TASKS:
                raise ValueError(
                    f"{description} are whole numbers other than 0 and 1. If they are numbers to predict, say "
                    "task=regression (on the command line, --data.task regression)."
                )
            targets = CONVERTERS[task](values, description)
            return RawSplits(unsplit=Split(inputs=inputs, targets=targets), target_names=self.targets)
        (name,), column = self.targets, table.column(self.targets[0])
        if is_regression_column(column, name, self.task):
            split = Split(inputs=inputs, targets=extract_regression_targets(column, name, file))
            return RawSplits(unsplit=split, target_names=(name,))
        class_names, labels = encode_class_labels({"unsplit": column}, name, file)
        is_numeric = all(re.fullmatch(r"-?\d+", name) for name in class_names)
        if self.task is None and is_numeric and len(class_names) > MAX_USUAL_CLASSES:
            warnings.warn(
                f"Column {name!r} of {file.path} has {len(class_names)} different whole numbers, which are "
                "read as classes. If they are numbers to predict, say task=regression (on the command line, "
                "--data.task regression; for counts --likelihood poisson); task=classification leaves out this note.",
                category=DataWarning,
                stacklevel=4,
            )
        return RawSplits(unsplit=Split(inputs=inputs, targets=labels["unsplit"]), class_names=class_names)


def drop_unnamed_columns(table: ArrowTable, names: Sequence[str], path: Path) -> list[str]:
    """The names without columns that are empty, or an index that pandas or R has written without a name."""
    with require_package("data"):
        from pyarrow import types
    kept = []
    for name in names:
        if name and not re.fullmatch(r"Unnamed: \d+(_level_\d+)?", name):
            kept.append(name)
            continue
        if names.count(name) > 1:
            raise ValueError(f"{path} has several columns without a name. Give each column one, or remove them.")
        column = table.column(name)
        is_empty, is_index = types.is_null(column.type), len(column.unique()) == len(column)
        if is_empty or (is_index and not types.is_floating(column.type)):
            reason = "it is empty" if is_empty else "it numbers or names the rows, as the index of a DataFrame does"
            warnings.warn(f"Column {name!r} of {path} is left out: {reason}.", category=DataWarning, stacklevel=4)
        else:
            kept.append(name)
    return kept


def warn_of_counters(table: ArrowTable, names: Sequence[str], path: Path) -> None:
    """Warn of features that count the rows of a file from 0 or 1 on, or that are an id by their name and values."""
    with require_package("data"):
        from pyarrow import types
    if len(table) < MIN_ROWS_OF_INDEX:
        return
    for name in names:
        column = table.column(name)
        if not types.is_integer(column.type) or column.null_count:
            continue
        values = column.to_numpy()
        is_counter = values[0] in (0, 1) and bool(np.all(np.diff(values) == 1))  # times may count from elsewhere
        if is_counter or (NAME_OF_ID.search(name) and len(np.unique(values)) == len(values)):
            fault = "counts the rows" if is_counter else "has another number in each row"
            warnings.warn(
                f"Column {name!r} of {path} {fault}, and is used as a feature. If it is an index or an id, leave it "
                f"out: ignore=({name!r},) (on the command line, --data.ignore [{name}]).",
                category=DataWarning,
                stacklevel=4,
            )
