"""One process at a time in a folder: a lock that goes with the process that holds it, however that ends.

The lock is the operating system's, on a file `.lock` that names its holder; so after a SIGKILL the file may be there,
and the folder is free. Where the system or the file system has no such locks, nothing is locked.
"""

import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
_HELD: dict[tuple[int, Path], int] = {}
"""Open files, by the process that opened them (a forked child holds nothing) and the folder."""


def hold(folder: Path) -> None:
    """Keep a folder for this process, until `let_go` or its end; it is made if need be.

    Raises:
        ValueError: Another process holds it, or the path is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, not a folder: choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    key, path = _key(folder), folder / NAME
    while fcntl is not None and key not in _HELD:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode("utf-8", "replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(
                f"{folder} is being written to by {holder}: wait until that ends, or choose another --out."
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
        if not _is_there(descriptor, path):  # its last holder has removed it in between
            os.close(descriptor)
            continue
        _HELD[key] = descriptor
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def let_go(folder: Path | None = None) -> None:
    """Let others have a folder that this process holds, or all of them; harmless where nothing is held."""
    held = [key for key in _HELD if key[0] == os.getpid() and (folder is None or key == _key(folder))]
    for key in held:
        (key[1] / NAME).unlink(missing_ok=True)
        os.close(_HELD.pop(key))


def _key(folder: Path) -> tuple[int, Path]:
    return os.getpid(), folder.resolve()


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
