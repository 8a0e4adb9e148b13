"""Durable atomic file writes, by a synchronized temporary file that is renamed, and JSON."""

import errno
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
"""Parsed JSON."""

TEMPORARY_FILE_PATTERN = re.compile(r"\..+?(\.(?P<host>[0-9a-f]{8})\.(?P<process>\d+))?\.\d+\.tmp")
"""Name, host, process and thread; without the host and thread in flatbayes 0.1."""
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]

_UNSUPPORTED_SYNC_ERRORS = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM}
"""Errors of file systems and platforms that cannot synchronize a folder."""


MAX_JSON_BYTES = 2**30
MAX_JSON_DEPTH = 200
"""Largest number of lists and objects inside each other, which functions that call themselves can process."""
_FULL_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY_ERRORS = {errno.EROFS, errno.EACCES, errno.EPERM}
_WRITER_FAILURES = ("PytorchStreamWriter failed", "file write failed", "disk is full", "disk I/O error")
"""Words of torch and SQLite for an error of the operating system, whose number they do not give."""


class WriteError(OSError):
    """A file cannot be written; the message names it, the reason, and what to do.

    Attributes:
        is_read_only: Whether writing there is not allowed; otherwise the disk is full or fails.
    """

    is_read_only: bool = False


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Context that turns errors of the operating system, also those in words of a library, into a `WriteError`.

    Raises:
        WriteError: The disk is full, or writing there is not allowed or fails.
    """
    try:
        yield
    except WriteError:
        raise
    except Exception as error:
        number = _find_error_number(error, path)
        if number is None:
            raise
        remedy = "Free some space" if number in _FULL_DISK_ERRORS else "Check the folder and the disk"
        remedy = "Choose another folder, or permit to write there" if number in _READ_ONLY_ERRORS else remedy
        failure = WriteError(f"{path} cannot be written: {os.strerror(number)}. {remedy}.")
        failure.errno, failure.is_read_only = number, number in _READ_ONLY_ERRORS
        raise failure from error


def _find_error_number(error: BaseException, path: Path) -> int | None:
    """Number of the error of the operating system behind an exception; None if it is of another kind."""
    if isinstance(error, OSError) and not isinstance(error, TimeoutError):
        name = error.filename
        is_elsewhere = isinstance(name, str | bytes) and Path(os.fsdecode(name)).parent not in (path.parent, path)
        return error.errno if not is_elsewhere or Path(os.fsdecode(name)) in path.parents else None
    cause = error.__cause__ or error.__context__
    texts = {os.strerror(number): number for number in (*_FULL_DISK_ERRORS, *_READ_ONLY_ERRORS, errno.EIO)}
    if isinstance(error, ValueError | TypeError) and not isinstance(cause, OSError):
        return None
    for text, number in texts.items():
        if text in str(error):
            return number
    if isinstance(cause, OSError) and cause.errno in {*texts.values()} and cause.filename is None:
        return cause.errno
    return errno.EIO if any(words in str(error) for words in _WRITER_FAILURES) else None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to, which becomes `path` at the end, or is removed after an exception.

    The content is on the disk before the file has its name, and the name is on the disk when this returns: after a
    power cut the file is the earlier one or the new one. Its permissions follow the umask.

    Raises:
        WriteError: The disk is full, or writing there is not allowed or fails.
    """
    with explain_write_errors(path), _write_and_rename(path) as temporary:
        yield temporary


@contextmanager
def _write_and_rename(path: Path) -> Iterator[Path]:
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{threading.get_native_id()}.tmp")
    for other in list_temporary_files(path.parent):
        if other.name.startswith(f".{path.name}.") and not _is_writer_alive(other):
            remove_quietly(other)
    try:
        temporary.unlink(missing_ok=True)  # left by a killed process with the same number, or a link
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some writers make a new, private file
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        remove_quietly(temporary)


def make_folder(folder: Path) -> Path:
    """Create a folder and its parents where they are missing, durably, and return it."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        sync_folder(created.parent)
    return folder


def remove_files(paths: list[Path]) -> None:
    """Remove files, durably; those that do not exist are skipped."""
    for path in paths:
        path.unlink(missing_ok=True)
    for folder in {path.parent for path in paths}:
        if folder.is_dir():
            sync_folder(folder)


def remove_quietly(path: Path) -> None:
    """Remove a file of no further use; where that fails it stays, and no other error is hidden."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names of the files in a folder are on the disk, where the platform supports it."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED_SYNC_ERRORS:
            raise
    finally:
        os.close(descriptor)


def list_temporary_files(folder: Path) -> list[Path]:
    """Temporary files of `atomic_write` in a folder; where no process writes there, killed processes left them."""
    return [path for path in folder.glob(".*.tmp") if TEMPORARY_FILE_PATTERN.fullmatch(path.name)]


def _is_writer_alive(path: Path) -> bool:
    match = TEMPORARY_FILE_PATTERN.fullmatch(path.name)
    if match is None or match["host"] != _HOST:
        return True  # on another machine, as far as can be seen from here
    try:
        os.kill(int(match["process"]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text with Unix line ends, and return the path."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON. Numbers that are not finite become null, since JSON has no name for them."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(replace_nonfinite(data), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, is no file, is larger than 1 GiB, is nested deeper than `MAX_JSON_DEPTH`, or has
            numbers that JSON has no name for.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device, and a file is expected.")
    if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, and results and settings have at most 1 GiB.")
    try:
        return parse_json(path.read_text(encoding="utf-8"), parse_constant=_reject_constant)
    except ValueError as error:  # also of numbers with too many digits
        raise ValueError(f"{path} is damaged: it is not JSON ({error}).") from error


def parse_json(text: str | bytes, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parse JSON that is nested no deeper than `MAX_JSON_DEPTH`.

    Args:
        text: The text.
        parse_constant: Gives the values of NaN, Infinity and -Infinity; by default those floating-point numbers.

    Raises:
        json.JSONDecodeError: It is not JSON, or is nested deeper.
        ValueError: A number has too many digits, or `parse_constant` raises it.
    """
    with suppress(RecursionError):
        data = json.loads(text, parse_constant=parse_constant)
        level = [data]
        for _ in range(MAX_JSON_DEPTH + 1):
            containers = [entry for entry in level if isinstance(entry, dict | list)]
            if not containers:
                return data
            level = [e for c in containers for e in (c.values() if isinstance(c, dict) else c)]
    raise json.JSONDecodeError(f"It is nested deeper than {MAX_JSON_DEPTH} lists and objects", str(text[:80]), 0)


def replace_nonfinite(data: Any) -> Any:
    """Plain data with None for numbers that are not finite, lists for tuples, and strings as keys."""
    if isinstance(data, dict):
        return {str(key): replace_nonfinite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [replace_nonfinite(value) for value in data]
    if isinstance(data, float) and (data != data or abs(data) == float("inf")):
        return None
    return data


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
