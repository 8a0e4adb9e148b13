"""Exclusive use of a folder by one process, through a file lock of the operating system.

The lock ends with the process, however that ends. Where the file system has no locks, nothing is locked.
"""

import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

LOCK_FILE, HOLDER_FILE = ".lock", ".lock-holder"
_UNSUPPORTED_ERRORS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
_LOCKS: dict[tuple[int, Path], FileLock] = {}
"""Held locks by process (a forked child holds none) and folder."""


def lock_folder(folder: Path) -> None:
    """Reserve a folder for this process until `unlock_folders`; the folder is created if necessary.

    A folder that this process has locked may be locked again.

    Raises:
        ValueError: Another process holds the folder, or the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    key, holder = (os.getpid(), folder.resolve()), folder / HOLDER_FILE
    if key in _LOCKS:
        return
    lock = FileLock(key[1] / LOCK_FILE, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        name = holder.read_text("utf-8", "replace").strip() if holder.is_file() else "another process"
        raise ValueError(
            f"{folder} is being written to by {name}: wait until that ends, or choose another --out."
        ) from None
    except OSError as error:
        if error.errno in _UNSUPPORTED_ERRORS:
            return
        raise
    _LOCKS[key] = lock
    holder.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")


def unlock_folders(folder: Path | None = None) -> None:
    """Release the folder, or all folders that this process holds; does nothing where none is held."""
    for process, path in list(_LOCKS):
        if process == os.getpid() and (folder is None or path == folder.resolve()):
            for name in (HOLDER_FILE, LOCK_FILE):
                (path / name).unlink(missing_ok=True)  # still locked: filelock rejects a lock on a deleted file
            _LOCKS.pop((process, path)).release()
