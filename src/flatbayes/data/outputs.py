"""Predictions to a file, chunk by chunk: all of them, or nothing."""

import csv
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from flatbayes.core.files import replacing
from flatbayes.data.extras import needed

Columns = Mapping[str, np.ndarray | Sequence[str]]


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
        kinds: dict[str, type[_Parquet] | type[_Csv] | type[_Npz]] = {
            ".parquet": _Parquet,
            ".csv": _Csv,
            ".npz": _Npz,
        }
        suffix = self.path.suffix.lower()
        if suffix not in kinds:
            raise ValueError(f"Predictions are written to {', '.join(kinds)} files, got {path}. Change the suffix.")
        if suffix == ".parquet":
            with needed("data"):
                import pyarrow.parquet  # noqa: F401
        self._kind = kinds[suffix]
        self._temporary = self.path
        self._stack = ExitStack()
        self._file: _File | None = None
        self._names: list[str] = []

    def __enter__(self) -> "PredictionWriter":
        self._temporary = self._stack.enter_context(replacing(self.path))
        self._stack.push(self._close)  # before the file is renamed
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
        shapes = {name: np.shape(values) for name, values in columns.items()}
        if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"Every column must have one value for each row, got the shapes {shapes}.")
        if self._file is None:
            self._names = list(columns)
            self._file = self._kind(self._temporary, columns)
        if list(columns) != self._names:
            raise ValueError(f"The columns of {self.path} are {self._names}, got {list(columns)}.")
        self._file.write(columns)

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        elif error is None:
            raise ValueError(f"No predictions were written to {self.path}: there were no inputs.")


class _File(Protocol):
    def write(self, columns: Columns) -> None: ...

    def close(self) -> None: ...


class _Parquet:
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


class _Csv:
    def __init__(self, path: Path, columns: Columns) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(columns)

    def write(self, columns: Columns) -> None:
        # As text by NumPy, which writes a float32 with the digits it has: 0.1, not 0.10000000149011612.
        self._writer.writerows(zip(*(np.asarray(values).astype(str) for values in columns.values()), strict=True))

    def close(self) -> None:
        self._file.close()


class _Npz:
    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._chunks: dict[str, list[np.ndarray]] = {name: [] for name in columns}

    def write(self, columns: Columns) -> None:
        for name, values in columns.items():
            self._chunks[name].append(np.asarray(values))

    def close(self) -> None:
        with zipfile.ZipFile(self._path, "w") as archive:  # numpy.savez has no room for a column called "file"
            for name, chunks in self._chunks.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.concatenate(chunks), allow_pickle=False)
