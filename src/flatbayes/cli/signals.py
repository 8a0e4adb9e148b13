"""Handling of Ctrl-C, SIGTERM, SIGHUP, and of closed or limited output streams."""

import _thread
import io
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from flatbayes.core.interrupts import TERMINATION_SIGNALS


def make_streams_safe() -> None:
    """Let printing never fail: closed streams discard text, and characters outside the encoding are replaced."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # the stream cannot be reconfigured
                stream.reconfigure(errors="replace")


def record_interrupts(signals: list[int]) -> dict[int, Any]:
    """Record every Ctrl-C, SIGTERM and SIGHUP from now on, and let them raise KeyboardInterrupt.

    They are recorded since the interrupted code may turn KeyboardInterrupt into another error.

    Args:
        signals: List to which every signal number is appended.

    Returns:
        The previous handlers by signal, to be restored; none where another handler was installed already.
    """

    def handle_interrupt(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if _ignores_exceptions(frame):
            timer = threading.Timer(0.01, _resend_signal, (number,))
            timer.daemon = True
            timer.start()
        else:
            signal.default_int_handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        return {}
    defaults = {signal.SIGINT: signal.default_int_handler, **dict.fromkeys(TERMINATION_SIGNALS, signal.SIG_DFL)}
    return {
        number: signal.signal(number, handle_interrupt)
        for number, default in defaults.items()
        if signal.getsignal(number) is default
    }


def _resend_signal(number: int) -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a signal also interrupts blocking calls of the main thread
        signal.pthread_kill(int(threading.main_thread().ident or 0), number)


def _ignores_exceptions(frame: FrameType | None) -> bool:
    """Whether Python would print and ignore an exception there: in `__del__` or a callback of a weak reference."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") in ("weakref", "_weakrefset"):
            return True
        frame = frame.f_back
    return False
