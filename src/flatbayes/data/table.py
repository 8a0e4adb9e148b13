"""Tables of numbers, with a column of classes or of numbers to predict."""

from dataclasses import dataclass
from pathlib import Path

from flatbayes.data.columns import (
    encode_class_labels,
    extract_features,
    extract_regression_targets,
    is_regression_column,
    read_table,
)
from flatbayes.data.parquet import require_columns
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split
from flatbayes.data.targets import TaskType


@dataclass(frozen=True, kw_only=True)
class Table(DataSource):
    """A CSV or parquet file with a column of classes, or of numbers to predict; all other columns are features.

    Attributes:
        path: The file; a CSV file begins with a line of column names.
        target: Column of the classes, as whole numbers or words, or of the numbers.
        task: classification or regression; None tells by the column: integers and words are classes, fractions are
            numbers to predict.
    """

    path: str
    target: str
    task: TaskType = None

    def read(self) -> RawSplits:
        """All rows; there is no test part, so one is split off."""
        path = Path(self.path)
        table = read_table(path)
        require_columns(path, [self.target], table.column_names)
        names = tuple(name for name in table.column_names if name != self.target)
        if not names:
            raise ValueError(f"{path} has no column besides the target {self.target!r}. Add columns of features.")
        column, inputs = table.column(self.target), extract_features(table, names, path)
        if is_regression_column(column, self.target, self.task):
            part = Split(inputs=inputs, targets=extract_regression_targets(column, self.target))
            return RawSplits(unsplit=part, target_names=(self.target,), feature_names=names)
        class_names, targets = encode_class_labels({"all": column}, self.target)
        return RawSplits(
            unsplit=Split(inputs=inputs, targets=targets["all"]), class_names=class_names, feature_names=names
        )
