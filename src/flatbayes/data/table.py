"""Tables of numbers, with a column of classes."""

from dataclasses import dataclass
from pathlib import Path

from flatbayes.data.columns import class_labels, features, read_table
from flatbayes.data.dataset import Part
from flatbayes.data.parquet import require_columns
from flatbayes.data.source import Raw, Source


@dataclass(frozen=True, kw_only=True)
class Table(Source):
    """A CSV or parquet file with a column of classes; all other columns are features.

    Attributes:
        path: The file; a CSV file begins with a line of column names.
        target: Column of the classes, as whole numbers or words.
    """

    path: str
    target: str

    def read(self) -> Raw:
        """All rows; there is no test part, so one is split off."""
        path = Path(self.path)
        table = read_table(path)
        require_columns(path, [self.target], table.column_names)
        names = tuple(name for name in table.column_names if name != self.target)
        if not names:
            raise ValueError(f"{path} has no column besides the target {self.target!r}. Add columns of features.")
        class_names, targets = class_labels({"all": table.column(self.target)}, self.target)
        part = Part(inputs=features(table, names, path), targets=targets["all"])
        return Raw(all=part, class_names=class_names, feature_names=names)
