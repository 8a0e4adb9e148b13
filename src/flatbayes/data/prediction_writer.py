"""Writer of predictions to parquet, CSV or .npz files in chunks; the file appears only if all chunks are written."""

import csv
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Protocol, TextIO

import numpy as np

from flatbayes.core.files import atomic_write
from flatbayes.core.optional import require_package
from flatbayes.data.parquet import ArrowSchema

FORMULA_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet run a cell as a formula; the last four are full-width forms of the first four."""
CSV_LINE_END = "\r\n"
Columns = Mapping[str, Any]
"""Values by column name, one per row: arrays, lists of strings, or columns of pyarrow."""


class PredictionWriter:
    """Context manager that writes columns to a .parquet, .csv or .npz file.

    Rows are written to a temporary file in the same folder. It replaces the target when the context ends without an
    exception, and is removed otherwise.

    Args:
        path: The target; missing folders are made.
        escape_formulas: In CSV, put an apostrophe before texts and names of columns that spreadsheets would run as
            formulas: those that begin with = + - @, a tab or a line break. Numbers are never changed.

    Raises:
        ValueError: The suffix is none of the three.
        ImportError: The package that writes this format is not installed.

    Examples:
        >>> with PredictionWriter("predictions.csv") as writer:
        ...     writer.write(fitted.predict(inputs[:3]).columns())
        >>> len(Path("predictions.csv").read_text().splitlines())
        4
    """

    def __init__(self, path: str | Path, *, escape_formulas: bool = False) -> None:
        self.path = Path(path)
        formats: dict[str, Callable[[Path, Columns], _ColumnWriter]] = {
            ".parquet": _ParquetWriter,
            ".csv": partial(_CsvWriter, escape_formulas=escape_formulas),
            ".npz": _NpzWriter,
        }
        suffix = self.path.suffix.lower()
        if suffix not in formats:
            raise ValueError(f"Predictions are written to {', '.join(formats)} files, got {path}. Change the suffix.")
        if suffix == ".parquet":
            with require_package("data"):
                import pyarrow.parquet  # noqa: F401
        self._make_writer = formats[suffix]
        self._temporary = self.path
        self._stack = ExitStack()
        self._writer: _ColumnWriter | None = None
        self._names: list[str] = []

    def __enter__(self) -> "PredictionWriter":
        self._temporary = self._stack.enter_context(atomic_write(self.path))
        self._stack.push(self._close_file)  # runs before atomic_write renames the file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, columns: Columns) -> None:
        """Append rows.

        Args:
            columns: Values by column name; the names are the same in every call.

        Raises:
            ValueError: Columns differ in length, or their names differ from those of earlier calls.
        """
        shapes = {name: (len(values),) if is_arrow(values) else np.shape(values) for name, values in columns.items()}
        if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"Every column must have one value for each row, got the shapes {shapes}.")
        if self._writer is None:
            self._names = list(columns)
            self._writer = self._make_writer(self._temporary, columns)
        if list(columns) != self._names:
            raise ValueError(f"The columns of {self.path} are {self._names}, got {list(columns)}.")
        self._writer.write(columns)

    def _close_file(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        elif error is None:
            raise ValueError(f"No predictions were written to {self.path}: there were no inputs.")


class _ColumnWriter(Protocol):
    def write(self, columns: Columns) -> None: ...

    def close(self) -> None: ...


class _ParquetWriter:
    def __init__(self, path: Path, columns: Columns) -> None:
        import pyarrow as pa  # optional; PredictionWriter reports a missing package
        import pyarrow.parquet as pq

        self._make_table = pa.table
        self._schema: ArrowSchema = pa.table(dict(columns)).schema
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, columns: Columns) -> None:
        self._writer.write_table(self._make_table(dict(columns), schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _LineFeedFile:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(f"{line.removesuffix(CSV_LINE_END)}\n")


class _CsvWriter:
    def __init__(self, path: Path, columns: Columns, *, escape_formulas: bool) -> None:
        self._escapes = escape_formulas
        self._file = path.open("w", encoding="utf-8", newline="")
        # This line end makes the writer quote carriage returns, at which readers would begin a new row.
        self._writer = csv.writer(_LineFeedFile(self._file), lineterminator=CSV_LINE_END)
        self._writer.writerow(map(escape_formula, columns) if escape_formulas else columns)

    def write(self, columns: Columns) -> None:
        # NumPy writes a float32 with its own digits: 0.1, not 0.10000000149011612.
        self._writer.writerows(zip(*map(self._format, columns.values()), strict=True))

    def _format(self, values: Any) -> Sequence[str]:
        texts = to_text(values)
        return texts if not self._escapes or is_numeric(values) else [escape_formula(text) for text in texts]

    def close(self) -> None:
        self._file.close()


class _NpzWriter:
    """Writes numeric columns to temporary files, since the header of an array holds its length; strings in memory."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._numeric: dict[str, tuple[np.dtype[Any], IO[bytes]]] = {}
        self._strings: dict[str, list[np.ndarray]] = {}
        self._stack = ExitStack()
        for name, values in columns.items():
            array = to_array(values)
            if array.dtype.kind in "biuf":
                temporary = TemporaryFile(dir=path.parent)  # noqa: SIM115 - the stack closes it
                self._numeric[name] = (array.dtype, self._stack.enter_context(temporary))
            else:
                self._strings[name] = []
        self._names, self._num_rows = list(columns), 0

    def write(self, columns: Columns) -> None:
        for name, values in columns.items():
            array = to_array(values)
            if name in self._numeric:
                dtype, file = self._numeric[name]
                file.write(np.ascontiguousarray(array, dtype).tobytes())
            else:
                self._strings[name].append(array.astype(str))
        self._num_rows += len(array)

    def close(self) -> None:
        # Not numpy.savez, whose parameter `file` excludes a column of this name.
        with self._stack, zipfile.ZipFile(self._path, "w") as archive:
            for name in self._names:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    if name in self._strings:
                        np.lib.format.write_array(stream, np.concatenate(self._strings[name]), allow_pickle=False)
                        continue
                    dtype, file = self._numeric[name]
                    header = {
                        "descr": np.lib.format.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": (self._num_rows,),
                    }
                    np.lib.format.write_array_header_1_0(stream, header)
                    file.seek(0)
                    shutil.copyfileobj(file, stream)


def escape_formula(text: str) -> str:
    """A text that spreadsheets show as it is, with an apostrophe before it if they would run it as a formula.

    >>> escape_formula("=1+2"), escape_formula("x=1")
    ("'=1+2", 'x=1')
    """
    return f"'{text}" if text.startswith(FORMULA_BEGINNINGS) else text


def is_numeric(values: Any) -> bool:
    """Whether a column holds numbers or booleans, and no texts."""
    if is_arrow(values):
        from pyarrow import types

        kind = values.type
        return any(test(kind) for test in (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal))
    return np.asarray(values).dtype.kind in "biuf"


def is_arrow(values: Any) -> bool:
    """Whether a column is one of pyarrow, as columns of the input that are passed on may be."""
    return type(values).__module__.partition(".")[0] == "pyarrow"


def to_text(values: Any) -> Sequence[str]:
    """Convert a column to strings; missing values become empty strings."""
    if is_arrow(values):
        return ["" if value is None else str(value) for value in values.to_pylist()]
    array = np.asarray(values)
    if array.dtype == np.float64:  # the same digits as those of NumPy, in two thirds of the time
        return [repr(value) for value in array.tolist()]
    strings: list[str] = array.astype(str).tolist()
    return strings


def to_array(values: Any) -> np.ndarray:
    """Convert a column to a numeric array, or to an array of strings if values are missing or not numeric."""
    array = np.asarray(values.to_pylist() if is_arrow(values) else values)
    return np.asarray(to_text(values)) if array.dtype.kind not in "biufU" else array
