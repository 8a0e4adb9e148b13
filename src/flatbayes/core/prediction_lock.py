"""A lock that predictions hold, so that one thread of a process predicts at a time.

A draw of a posterior is swapped into the network in place, and the global random state is seeded for it. A prediction
of another thread at the same time would run weights that are no draw at all.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def lock_predictions() -> Iterator[None]:
    """Context that holds the lock of all predictions; a thread that holds it may enter another one."""
    with _lock:
        yield


def _replace_lock() -> None:
    """Make a new lock in a forked child process, where a thread that held the old one does not exist."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_lock)
