"""Exclusive use of a folder by one process, through a file lock of the operating system.

The lock ends with the process, however that ends. Where the file system has no locks, nothing is locked.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flatbayes.core.files import explain_write_errors, make_folder, remove_quietly, write_text

LOCK_FILE, HOLDER_FILE, UPDATE_LOCK_FILE = ".lock", ".lock-holder", ".update-lock"
MAX_UPDATE_WAIT_SECONDS = 60
_UNSUPPORTED_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_LOCKS: dict[tuple[int, Path], FileLock] = {}
"""Held locks by process (a forked child holds none) and folder."""


def check_folder(folder: Path) -> None:
    """Refuse a path at which no folder can be made or written to; nothing is created."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another folder (--out).")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(
            f"The folder {folder} cannot be made: {existing.name} is a file. Choose another folder (--out)."
        )
    if not os.access(existing, os.W_OK):
        raise ValueError(f"There is no permission to write to {existing}. Choose another folder (--out).")


def lock_folder(folder: Path) -> None:
    """Reserve a folder for this process until `unlock_folders`; the folder is created if necessary.

    A folder that this process has locked may be locked again.

    Raises:
        ValueError: Another process holds the folder, or it cannot be made.
    """
    check_folder(folder)
    try:
        make_folder(folder)
    except OSError as error:
        raise ValueError(
            f"The folder {folder} cannot be made: {error.strerror}. Choose another folder (--out)."
        ) from error
    key, holder = (os.getpid(), folder.resolve()), folder / HOLDER_FILE
    if key in _LOCKS:
        return
    lock = FileLock(key[1] / LOCK_FILE, timeout=0, thread_local=False)
    try:
        with explain_write_errors(folder):
            lock.acquire()
    except Timeout:
        name = holder.read_text("utf-8", "replace").strip() if holder.is_file() else "another process"
        raise ValueError(
            f"{folder} is being written to by {name}: wait until that ends, or choose another folder (--out)."
        ) from None
    except OSError as error:
        if error.errno in _UNSUPPORTED_ERRORS:
            return
        raise
    _LOCKS[key] = lock
    write_text(holder, f"process {os.getpid()} on {socket.gethostname()}\n")


def check_unlocked(folder: Path) -> None:
    """Refuse a folder that another process is writing to."""
    if (folder / LOCK_FILE).exists() and (os.getpid(), folder.resolve()) not in _LOCKS:
        lock_folder(folder)
        unlock_folders(folder)


@contextmanager
def update_lock(folder: Path) -> Iterator[None]:
    """Context in which no other process updates a file of the folder by reading and writing it.

    It is held for a moment only, also while another process has locked the whole folder.

    Raises:
        ValueError: Another process has held it for a minute.
    """
    path = folder.resolve() / UPDATE_LOCK_FILE
    lock = FileLock(path, timeout=MAX_UPDATE_WAIT_SECONDS)
    try:
        with explain_write_errors(path):
            lock.acquire()
    except Timeout:
        raise ValueError(f"{folder} is being written to by another process: try again when that has ended.") from None
    except OSError as error:
        if error.errno not in _UNSUPPORTED_ERRORS:
            raise
    try:
        yield
    finally:
        remove_quietly(path)  # still locked: filelock rejects a lock on a deleted file
        lock.release()


def unlock_folders(folder: Path | None = None) -> None:
    """Release the folder, or all folders that this process holds; does nothing where none is held."""
    for process, path in list(_LOCKS):
        if process == os.getpid() and (folder is None or path == folder.resolve()):
            for name in (HOLDER_FILE, LOCK_FILE):
                remove_quietly(path / name)  # still locked: filelock rejects a lock on a deleted file
            _LOCKS.pop((process, path)).release()
