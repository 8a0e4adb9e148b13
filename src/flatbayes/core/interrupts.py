"""Ctrl-C, SIGTERM and SIGHUP at the end of a training step instead of in the middle of one."""

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TERMINATION_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Signals that ask a process to end: of a scheduler, and of a terminal or connection that closes."""

_pending: list[int] = []
"""The signal that was deferred, if there is one."""


@contextmanager
def defer_interrupts(*, enabled: bool = True) -> Iterator[None]:
    """Record the first Ctrl-C, SIGTERM or SIGHUP, for `raise_pending_interrupt`; a second one interrupts at once.

    Nothing changes outside the main thread, or where a signal is ignored, as SIGHUP is by `nohup`. In a child process
    only Ctrl-C is recorded: by the others its parent, or the end of a session, ends it.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    is_child = multiprocessing.parent_process() is not None
    previous: dict[int, Any] = {}
    _pending.clear()

    def handle(number: int, frame: FrameType | None) -> None:
        if _pending or number not in previous:
            restore()
            signal.raise_signal(number)
            return
        _pending.append(number)
        if sys.stderr is not None and sys.stderr.isatty() and not is_child:
            sys.stderr.write("\nstopping after this step (Ctrl-C again: at once)\n")

    def restore() -> None:
        while previous:
            number, handler = previous.popitem()
            signal.signal(number, handler)

    for number in (signal.SIGINT,) if is_child else (signal.SIGINT, *TERMINATION_SIGNALS):
        handler = signal.getsignal(number)
        if handler not in (signal.SIG_IGN, None):
            previous[number] = handler
            signal.signal(number, handle)
    try:
        yield
    finally:
        restore()
    raise_pending_interrupt()


def get_pending_interrupt() -> int | None:
    """The deferred signal, or None."""
    return _pending[0] if _pending else None


def raise_pending_interrupt() -> None:
    """Raise KeyboardInterrupt if a signal was deferred.

    Raises:
        KeyboardInterrupt: Its argument is the signal's number.
    """
    if _pending:
        raise KeyboardInterrupt(_pending.pop())
