"""Where a command runs: Ctrl-C is heard whatever is going on, and what is printed costs no result."""

import _thread
import io
import os
import signal
import sys
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


def make_streams_safe() -> None:
    """No result is lost for want of somewhere to print it, or of a letter to print it with."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # no place to print after all
                stream.reconfigure(errors="replace")


def record_interrupts(signals: list[int]) -> Any:
    """From now on note that Ctrl-C was pressed, since what it interrupts may make another error of it.

    Args:
        signals: Gets an entry each time.

    Returns:
        The handler before, to be set again; None where nothing was changed, since somebody else listens.
    """

    def handle_interrupt(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if _ignores_exceptions(frame):
            again = threading.Timer(0.01, _resend_interrupt)
            again.daemon = True
            again.start()
        else:
            signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual and threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGINT, handle_interrupt)
    return None


def _resend_interrupt() -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a signal, which also wakes the main thread where it waits
        signal.pthread_kill(int(threading.main_thread().ident or 0), signal.SIGINT)


def _ignores_exceptions(frame: FrameType | None) -> bool:
    """Whether an exception would be printed and forgotten there, as in whatever clears up after an object."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") in ("weakref", "_weakrefset"):
            return True
        frame = frame.f_back
    return False
