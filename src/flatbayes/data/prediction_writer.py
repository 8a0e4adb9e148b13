"""Predictions to a file, chunk by chunk: all of them, or nothing."""

import csv
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Any, Protocol

import numpy as np

from flatbayes.core.files import atomic_write
from flatbayes.core.optional import require_package

Columns = Mapping[str, Any]
"""One value for each row: arrays, lists of texts, or columns of pyarrow."""


class PredictionWriter:
    """Writes columns to a .parquet, .csv or .npz file.

    A context manager: the rows go to a temporary file beside the target, which takes the target's name when
    the context ends without an exception, and is removed otherwise.

    Args:
        path: The target; a file there is replaced, and missing folders are made.

    Raises:
        ValueError: The suffix is of another kind.
        ImportError: The package that writes this kind is not installed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        kinds: dict[str, type[_ParquetWriter] | type[_CsvWriter] | type[_NpzWriter]] = {
            ".parquet": _ParquetWriter,
            ".csv": _CsvWriter,
            ".npz": _NpzWriter,
        }
        suffix = self.path.suffix.lower()
        if suffix not in kinds:
            raise ValueError(f"Predictions are written to {', '.join(kinds)} files, got {path}. Change the suffix.")
        if suffix == ".parquet":
            with require_package("data"):
                import pyarrow.parquet  # noqa: F401
        self._kind = kinds[suffix]
        self._temporary = self.path
        self._stack = ExitStack()
        self._file: _ColumnWriter | None = None
        self._names: list[str] = []

    def __enter__(self) -> "PredictionWriter":
        self._temporary = self._stack.enter_context(atomic_write(self.path))
        self._stack.push(self._close_file)  # before the file is renamed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(self, columns: Columns) -> None:
        """Append some rows.

        Args:
            columns: Values by the column's name, one per row; the names are the same in every call.

        Raises:
            ValueError: The columns differ in length, or in their names from the calls before.
        """
        shapes = {name: (len(values),) if is_arrow(values) else np.shape(values) for name, values in columns.items()}
        if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"Every column must have one value for each row, got the shapes {shapes}.")
        if self._file is None:
            self._names = list(columns)
            self._file = self._kind(self._temporary, columns)
        if list(columns) != self._names:
            raise ValueError(f"The columns of {self.path} are {self._names}, got {list(columns)}.")
        self._file.write(columns)

    def _close_file(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        elif error is None:
            raise ValueError(f"No predictions were written to {self.path}: there were no inputs.")


class _ColumnWriter(Protocol):
    def write(self, columns: Columns) -> None: ...

    def close(self) -> None: ...


class _ParquetWriter:
    def __init__(self, path: Path, columns: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._table = pa.table
        self._schema: Any = pa.table(dict(columns)).schema
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, columns: Columns) -> None:
        self._writer.write_table(self._table(dict(columns), schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _CsvWriter:
    def __init__(self, path: Path, columns: Columns) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, columns: Columns) -> None:
        # As text by NumPy, which writes a float32 with the digits it has: 0.1, not 0.10000000149011612.
        self._writer.writerows(zip(*(to_text(values) for values in columns.values()), strict=True))

    def close(self) -> None:
        self._file.close()


class _NpzWriter:
    """Numbers wait in a file, since the header of an array says how many there are; texts in memory."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._waiting: dict[str, tuple[np.dtype[Any], IO[bytes]]] = {}
        self._texts: dict[str, list[np.ndarray]] = {}
        self._stack = ExitStack()
        for name, values in columns.items():
            array = to_array(values)
            if array.dtype.kind in "biuf":
                waiting = TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed with the others
                self._waiting[name] = (array.dtype, self._stack.enter_context(waiting))
            else:
                self._texts[name] = []
        self._names, self._rows = list(columns), 0

    def write(self, columns: Columns) -> None:
        for name, values in columns.items():
            array = to_array(values)
            if name in self._waiting:
                kind, file = self._waiting[name]
                file.write(np.ascontiguousarray(array, kind).tobytes())
            else:
                self._texts[name].append(array.astype(str))
        self._rows += len(array)

    def close(self) -> None:
        with (
            self._stack,
            zipfile.ZipFile(self._path, "w") as archive,
        ):  # numpy.savez has no room for a column called "file"
            for name in self._names:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    if name in self._texts:
                        np.lib.format.write_array(stream, np.concatenate(self._texts[name]), allow_pickle=False)
                        continue
                    kind, file = self._waiting[name]
                    header = {
                        "descr": np.lib.format.dtype_to_descr(kind),
                        "fortran_order": False,
                        "shape": (self._rows,),
                    }
                    np.lib.format.write_array_header_1_0(stream, header)
                    file.seek(0)
                    shutil.copyfileobj(file, stream)


def is_arrow(values: Any) -> bool:
    """Whether these are of pyarrow, as columns that are passed on may be."""
    return type(values).__module__.partition(".")[0] == "pyarrow"


def to_text(values: Any) -> Sequence[str]:
    """Values as they are written; what is missing is an empty text."""
    if is_arrow(values):
        return ["" if value is None else str(value) for value in values.to_pylist()]
    found: list[str] = np.asarray(values).astype(str).tolist()
    return found


def to_array(values: Any) -> np.ndarray:
    """Values as an array of numbers, or of texts where some are missing or are no numbers."""
    array = np.asarray(values.to_pylist() if is_arrow(values) else values)
    return np.asarray(to_text(values)) if array.dtype.kind not in "biufU" else array
