"""NumPy's .npz files: a data source, and arrays that are read in chunks of bounded memory without pickle."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from flatbayes.core.names import format_names
from flatbayes.data.arrays import NamedArrays, make_raw_splits
from flatbayes.data.checks import TaskType
from flatbayes.data.parquet import require_file
from flatbayes.data.size_limit import check_memory
from flatbayes.data.source import DataSource, RawSplits

MAX_COMPRESSION_RATIO = 1100
"""Uncompressed bytes per compressed byte; the zip format reaches 1032."""
MAX_HEADER_BYTES = 10_000
"""Bytes of the type and shape of an array, as in NumPy."""


@dataclass(frozen=True, kw_only=True)
class Npz(DataSource):
    """Arrays in a .npz file: images or features, with class labels or regression targets.

    Attributes:
        path: The file, as numpy.savez writes it.
        inputs: Name of the array of inputs: features, [n, features], or images, [n, height, width] with or
            without an axis of 1 to 4 channels before or after these two.
        targets: Name of the array of labels, [n], whole numbers from 0; or of regression targets, [n] or
            [n, targets], floating-point; or of several labels, [n, labels], each 0 or 1.
        test_inputs: Name of the inputs of the test split, used if there is such an array.
        test_targets: Name of the targets of the test split.
        task: classification, regression, multi_label or dense; None infers it from the array: integers are
            classes, fractions are regression targets, rows of 0 and 1 are several labels, unless each has a single 1,
            and other integers of several axes are a class for each position.

    Examples:
        >>> np.savez(
        ...     "task.npz", x=np.random.default_rng(0).normal(size=(60, 4)), y=np.arange(60) % 3
        ... )
        >>> Npz(path="task.npz").load(seed=0).input_shape
        (4,)
    """

    path: str
    inputs: str = "x"
    targets: str = "y"
    test_inputs: str = "x_test"
    test_targets: str = "y_test"
    task: TaskType = None

    def read(self) -> RawSplits:
        """Read the arrays, and the test split if there is one."""
        path = Path(self.path)
        available = read_array_names(path)
        names = [self.inputs, self.targets]
        has_test = self.test_inputs in available or self.test_targets in available
        names += [self.test_inputs, self.test_targets] if has_test else []
        missing = [name for name in names if name not in available]
        if missing:
            raise ValueError(
                f"{path} lacks the arrays {missing}. It has {format_names(available)}. Name one of these, or add "
                "them."
            )
        arrays = read_arrays(path, names)
        pairs = zip(("unsplit", "test"), names[::2], names[1::2], strict=False)
        named = {
            split: NamedArrays(arrays[inputs], arrays[targets], f"{inputs!r} of {path}", f"{targets!r} of {path}")
            for split, inputs, targets in pairs
        }
        return make_raw_splits(named, self.task, self.targets)


def read_array_names(path: Path) -> list[str]:
    """List the arrays in a file."""
    with _wrap_read_errors(path), zipfile.ZipFile(path) as archive:
        return [*dict.fromkeys(name.removesuffix(".npy") for name in archive.namelist())]


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read these arrays of a file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another format, or holds Python objects.
    """
    total = 0
    with _wrap_read_errors(path):
        for name in names:
            with _open_array(path, name) as array:  # verifies the header before memory is allocated for the array
                total += _count_bytes(array.dtype, array.shape)
    check_memory(2 * total, f"The arrays {', '.join(names)} of {path}, with a copy of them,")
    with _wrap_read_errors(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return {name: file[name] for name in names}


def read_array_shape(path: Path, name: str) -> tuple[int, ...]:
    """Read the shape of an array from its header; the first axis is examples."""
    return _read_header(path, name)[0]


def _read_header(path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with _wrap_read_errors(path), _open_array(path, name) as array:
        if not array.shape:
            raise ValueError(f"{name!r} is a single number")
        return array.shape, array.dtype


def iter_array_chunks(path: Path, name: str, size: int) -> Iterator[np.ndarray]:
    """Read an array in chunks of `size` rows, without more of it in memory.

    An array in Fortran order is read whole, since its rows are not contiguous.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another format, or holds Python objects.
    """
    shape, dtype = _read_header(path, name)
    num_rows, bytes_per_row = shape[0], _count_bytes(dtype, shape[1:])
    check_memory(2 * min(size, num_rows) * bytes_per_row, f"{size} rows of {name!r} of {path}")
    with _wrap_read_errors(path), _open_array(path, name) as array:
        if array.is_fortran_order:
            whole = read_arrays(path, [name])[name]
            yield from (whole[start : start + size] for start in range(0, num_rows, size))
            return
        for start in range(0, num_rows, size):
            count = min(size, num_rows - start)
            content = array.stream.read(count * bytes_per_row)
            if start + count == num_rows:
                array.stream.read(1)  # zipfile verifies the checksum at the end of the stream
            if len(content) < count * bytes_per_row:
                raise ValueError("it ends early")
            yield np.frombuffer(bytearray(content), array.dtype).reshape(count, *array.shape[1:])


class _ArrayStream(NamedTuple):
    """An array in a .npz file, opened after its header."""

    stream: IO[bytes]
    shape: tuple[int, ...]
    is_fortran_order: bool
    dtype: np.dtype[Any]


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[_ArrayStream]:
    """Open an array and verify that its header fits the size of its content."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > MAX_COMPRESSION_RATIO * (member.compress_size + 100):
            raise ValueError(f"{name!r} would have {member.file_size} bytes, more than its file can hold")
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"{name!r} is in version {version} of the format")
            is_first = version == (1, 0)
            header_size = int.from_bytes(cast(zipfile.ZipExtFile, stream).peek(4)[: 2 if is_first else 4], "little")
            if header_size > MAX_HEADER_BYTES:  # NumPy compares it once it has read the header
                raise ValueError(f"{name!r} has a header of {header_size} bytes")
            read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
            array = _ArrayStream(stream, *read_header(stream))
            if array.dtype.hasobject:
                raise ValueError(f"{name!r} holds Python objects")
            if stream.tell() + _count_bytes(array.dtype, array.shape) != member.file_size:
                raise ValueError(f"{name!r} is to have the shape {array.shape}, and its content has another size")
            yield array


def _count_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(shape)


@contextmanager
def _wrap_read_errors(path: Path) -> Iterator[None]:
    require_file(path)
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile and NumPy raise exceptions of many types for damaged files
        raise ValueError(
            f"{path} cannot be read as .npz: {error}. Write it again with numpy.savez, without object arrays."
        ) from error
