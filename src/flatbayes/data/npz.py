"""Arrays in NumPy's .npz files."""

import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from flatbayes.data.checks import make_class_names
from flatbayes.data.source import DataSource, RawSplits
from flatbayes.data.splits import Split
from flatbayes.data.targets import TaskType, holds_fractions

MAX_COMPRESSION_RATIO = 1100
"""Bytes that a compressed one can become; the format of zip files reaches 1032."""


@dataclass(frozen=True, kw_only=True)
class Npz(DataSource):
    """Arrays in a .npz file: images or features, and labels or numbers to predict.

    Attributes:
        path: The file, as numpy.savez writes it.
        inputs: Name of the array of inputs: features, [n, features], or images, [n, height, width] with or
            without an axis of 1 to 4 channels before or after these two.
        targets: Name of the array of labels, [n], whole numbers from 0; or of numbers to predict, [n] or
            [n, targets], floating-point.
        test_inputs: Name of the inputs of the test part, used if there is such an array.
        test_targets: Name of its labels.
        task: classification or regression; None tells by the array: integers are classes, fractions are numbers to
            predict.
    """

    path: str
    inputs: str = "x"
    targets: str = "y"
    test_inputs: str = "x_test"
    test_targets: str = "y_test"
    task: TaskType = None

    def read(self) -> RawSplits:
        """The arrays, and the test part where there is one."""
        path = Path(self.path)
        names = read_array_names(path)
        wanted = [self.inputs, self.targets]
        has_test = self.test_inputs in names or self.test_targets in names
        wanted += [self.test_inputs, self.test_targets] if has_test else []
        missing = [name for name in wanted if name not in names]
        if missing:
            raise ValueError(f"{path} lacks the arrays {missing}. It has {names}. Name one of these, or add them.")
        arrays = read_arrays(path, wanted)
        numeric = self._is_regression(arrays[self.targets], f"{self.targets!r} of {path}")
        as_targets = to_regression_targets if numeric else to_labels
        parts = [
            Split(
                inputs=to_inputs(arrays[x], f"{x!r} of {path}"),
                targets=as_targets(arrays[y], f"{y!r} of {path}"),
            )
            for x, y in zip(wanted[::2], wanted[1::2], strict=True)
        ]
        first = parts[0].input_tensor
        return RawSplits(
            unsplit=parts[0],
            test=parts[1] if has_test else None,
            class_names=() if numeric else make_class_names([part.targets for part in parts]),
            target_names=make_target_names(self.targets, parts[0].targets) if numeric else (),
            feature_names=tuple(str(index) for index in range(first.shape[1])) if first.ndim == 2 else (),
        )

    def _is_regression(self, targets: np.ndarray, description: str) -> bool:
        if self.task is None and targets.dtype.kind == "f" and targets.ndim in (1, 2):
            return holds_fractions(targets[np.isfinite(targets)], description)
        return self.task == "regression"


def read_array_names(path: Path) -> list[str]:
    """Names of the arrays in a file."""
    return list(_load_npz(path, None))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """These arrays of a file; others are not read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or holds Python objects.
    """
    return _load_npz(path, names)


def read_array_shape(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array, the first axis being examples; its content is not read."""
    with _wrap_read_errors(path), _open_array(path, name) as (_, shape, _, _):
        if not shape:
            raise ValueError(f"{name!r} is a single number")
        return shape


def iter_array_chunks(path: Path, name: str, size: int) -> Iterator[np.ndarray]:
    """The rows of an array, so many at a time, without more of it in memory.

    An array in the order of Fortran is in memory whole, since its rows are not in one piece.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, of another kind, or holds Python objects.
    """
    rows = read_array_shape(path, name)[0]
    with _wrap_read_errors(path), _open_array(path, name) as (stream, shape, kind, fortran):
        if fortran:
            whole = read_arrays(path, [name])[name]
            yield from (whole[start : start + size] for start in range(0, rows, size))
            return
        each = kind.itemsize * math.prod(shape[1:])
        for start in range(0, rows, size):
            count = min(size, rows - start)
            content = stream.read(count * each)
            if start + count == rows:
                stream.read(1)  # only at the end does the archive compare its checksum
            if len(content) < count * each:
                raise ValueError("it ends early")
            yield np.frombuffer(bytearray(content), kind).reshape(count, *shape[1:])


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any], bool]]:
    """The content of an array, after its header, and what that says: shape, kind, order of Fortran."""
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo(f"{name}.npy")
        if member.file_size > MAX_COMPRESSION_RATIO * (member.compress_size + 100):
            raise ValueError(f"{name!r} would have {member.file_size} bytes, more than its file can hold")
        with archive.open(member) as stream:
            version = np.lib.format.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"{name!r} is in version {version} of the format")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = read(stream)
            if kind.hasobject:
                raise ValueError(f"{name!r} holds Python objects")
            if stream.tell() + kind.itemsize * math.prod(shape) != member.file_size:
                raise ValueError(f"{name!r} is to have the shape {shape}, and its content has another size")
            yield stream, shape, kind, fortran


def _load_npz(path: Path, names: Sequence[str] | None) -> dict[str, Any]:
    with _wrap_read_errors(path):
        for name in names or ():
            with _open_array(path, name):  # before there is memory taken for what the header says
                pass
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return dict.fromkeys(file.files) if names is None else {name: file[name] for name in names}


@contextmanager
def _wrap_read_errors(path: Path) -> Iterator[None]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # damage is answered with exceptions of any kind
        raise ValueError(
            f"{path} cannot be read as .npz: {error}. Write it again with numpy.savez, without object arrays."
        ) from error


def to_inputs(array: np.ndarray, description: str) -> Tensor:
    """Features, [n, features] (float32), or images, [n, channels, height, width] (uint8, otherwise float32).

    Raises:
        ValueError: The array is neither.
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
    kind = np.uint8 if array.dtype == np.uint8 and array.ndim == 4 else np.float32
    with np.errstate(over="ignore"):  # becomes an infinity, which is refused later
        return torch.from_numpy(np.ascontiguousarray(array, dtype=kind))


def to_regression_targets(array: np.ndarray, description: str) -> Tensor:
    """Numbers to predict, [n] or [n, targets] (float32).

    Raises:
        ValueError: They are something else.
    """
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise ValueError(
            f"{description} must be numbers of the shape [n] or [n, targets], got {array.dtype} of the shape {array.shape}. "
            "Convert it with astype('float32')."
        )
    with np.errstate(over="ignore"):  # becomes an infinity, which is refused later
        return torch.from_numpy(array.astype(np.float32))


def make_target_names(name: str, targets: Tensor) -> tuple[str, ...]:
    """The array's name, with the number of the column where there are several."""
    return (name,) if targets.ndim == 1 else tuple(f"{name}_{column}" for column in range(targets.shape[1]))


def to_labels(array: np.ndarray, description: str) -> Tensor:
    """Labels, [n] (int64).

    Raises:
        ValueError: They are not whole numbers, or not one per example.
    """
    if array.dtype.kind not in "biu" or array.ndim != 1:
        raise ValueError(
            f"{description} must be whole numbers (integers) of the shape [n], one class for each example, got "
            f"{array.dtype} of the shape {array.shape}. Convert it, for example with numpy.argmax or "
            "astype('int64')."
        )
    return torch.from_numpy(array.astype(np.int64))
