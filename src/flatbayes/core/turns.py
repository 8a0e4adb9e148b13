"""Threads that predict take turns.

A draw of a posterior is swapped into the network in place, and the global random state is seeded for it. A prediction
of another thread at the same time would run weights that are no draw at all.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.RLock()


@contextmanager
def take_turn() -> Iterator[None]:
    """Context in which no other thread of the process is in such a context; a thread may enter it again."""
    with _turn:
        yield


def _renew() -> None:
    """In a child process that was forked while another thread had its turn, nothing would end it."""
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
