"""NumPy's .npz files: a data source, and arrays that are read in chunks of bounded memory without pickle."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from flatbayes.core.names import format_names
from flatbayes.data.checks import TaskType, holds_fractions, make_class_names, to_int64
from flatbayes.data.parquet import require_file
from flatbayes.data.size_limit import check_memory
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split

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
            [n, targets], floating-point.
        test_inputs: Name of the inputs of the test split, used if there is such an array.
        test_targets: Name of the targets of the test split.
        task: classification or regression; None infers it from the array: integers are classes, fractions are
            regression targets.
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
        is_regression = is_regression_array(arrays[self.targets], self.task, f"{self.targets!r} of {path}")
        convert_targets = to_regression_targets if is_regression else to_labels
        splits = [
            Split(
                inputs=to_inputs(arrays[inputs], f"{inputs!r} of {path}"),
                targets=convert_targets(arrays[targets], f"{targets!r} of {path}"),
            )
            for inputs, targets in zip(names[::2], names[1::2], strict=True)
        ]
        unsplit = splits[0]
        return RawSplits(
            unsplit=unsplit,
            test=splits[1] if has_test else None,
            class_names=() if is_regression else make_class_names([split.targets for split in splits]),
            target_names=make_target_names(self.targets, unsplit.targets) if is_regression else (),
            feature_names=make_feature_names(unsplit.input_tensor),
        )


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
    """An array in a .npz file, opened after its header.

    Attributes:
        stream: Content of the array.
        shape: Shape according to the header.
        is_fortran_order: Whether the first axis varies fastest.
        dtype: Data type according to the header.
    """

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


def to_inputs(array: np.ndarray, description: str) -> Tensor:
    """Convert an array to features, [n, features], or images, [n, channels, height, width].

    Images of uint8 keep their type. Features that float32 may round, and images that it rounds by more than a
    thousandth of their standard deviation, are float64 until they are standardized. Other arrays become float32.

    Args:
        array: [n, features], [n, height, width], [n, channels, height, width] or [n, height, width, channels].
        description: What the array is, for messages.

    Raises:
        ValueError: The array has another type or shape.
    """
    if array.dtype.kind not in "biuf" or array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
        raise ValueError(
            f"{description} must be numbers of the shape [n, features], [n, height, width], [n, channels, height, "
            f"width] or [n, height, width, channels], got {array.dtype} of the shape {array.shape}."
        )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[1] > 4:
        if array.shape[3] > 4:
            raise ValueError(
                f"{description} has the shape {array.shape}, in which neither the second nor the last axis is one "
                "of 1 to 4 channels. Reshape it to [n, channels, height, width]."
            )
        array = array.transpose(0, 3, 1, 2)
    dtype: type[np.generic] = np.float32
    if array.ndim == 2 or loses_precision(array):
        dtype = choose_float_type(array.dtype)
    if array.ndim == 4 and array.dtype == np.uint8:
        dtype = np.uint8
    with np.errstate(over="ignore"):  # check_finite refuses the infinity that an overflow gives
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))


def choose_float_type(dtype: np.dtype[Any]) -> type[np.floating[Any]]:
    """The smaller one of float32 and float64 that holds all numbers of this type (up to 2^53) without rounding."""
    return np.float32 if np.can_cast(dtype, np.float32) else np.float64


def loses_precision(array: np.ndarray) -> bool:
    """Whether float32 rounds the largest number by more than a thousandth of the standard deviation of all."""
    if choose_float_type(array.dtype) is np.float32 or not array.size:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        spread = array.std(dtype=np.float64)
        return bool(spread > 0 and np.spacing(np.abs(array).max().astype(np.float32)) > 1e-3 * spread)


def is_regression_array(targets: np.ndarray, task: TaskType, description: str) -> bool:
    """Whether an array holds regression targets: as `task` says, else if it holds fractions.

    Raises:
        ValueError: The array is ambiguous.
    """
    if task is None and targets.dtype.kind == "f" and targets.ndim in (1, 2):
        return holds_fractions(targets[np.isfinite(targets)], description)
    return task == "regression"


def to_regression_targets(array: np.ndarray, description: str) -> Tensor:
    """Convert an array to regression targets, [n] or [n, targets] (float32 or float64).

    Raises:
        ValueError: The array has another type or shape.
    """
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise ValueError(
            f"{description} must be numbers of the shape [n] or [n, targets], got {array.dtype} of the shape "
            f"{array.shape}. Convert it with astype('float32')."
        )
    return torch.from_numpy(array.astype(choose_float_type(array.dtype)))


def make_target_names(name: str, targets: Tensor) -> tuple[str, ...]:
    """Name regression targets: `name`, or `name_0`, `name_1` ... for several."""
    return (name,) if targets.ndim == 1 else tuple(f"{name}_{column}" for column in range(targets.shape[1]))


def make_feature_names(inputs: Tensor) -> tuple[str, ...]:
    """Name features by their numbers; empty for images."""
    return tuple(str(index) for index in range(inputs.shape[1])) if inputs.ndim == 2 else ()


def to_labels(array: np.ndarray, description: str) -> Tensor:
    """Convert an array to labels, [n] (int64).

    Raises:
        ValueError: The array is not of whole numbers, or not one-dimensional.
    """
    if array.dtype.kind not in "biu" or array.ndim != 1:
        raise ValueError(
            f"{description} must be whole numbers (integers) of the shape [n], one class for each example, got "
            f"{array.dtype} of the shape {array.shape}. Convert it, for example with numpy.argmax or "
            "astype('int64')."
        )
    return torch.from_numpy(to_int64(array, description))
