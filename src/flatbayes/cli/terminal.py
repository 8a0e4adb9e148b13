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


def make_printable() -> None:
    """No result is lost for want of somewhere to print it, or of a letter to print it with."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  # until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError):  # no place to print after all
                stream.reconfigure(errors="replace")


def listen(pressed: list[int]) -> Any:
    """From now on note that Ctrl-C was pressed, since what it interrupts may make another error of it.

    Args:
        pressed: Gets an entry each time.

    Returns:
        The handler before, to be set again; None where nothing was changed, since somebody else listens.
    """

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if _is_deaf(frame):
            again = threading.Timer(0.01, _press_again)
            again.daemon = True
            again.start()
        else:
            signal.default_int_handler(number, frame)

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual and threading.current_thread() is threading.main_thread():
        return signal.signal(signal.SIGINT, press)
    return None


def _press_again() -> None:
    if sys.platform == "win32":
        _thread.interrupt_main()
    else:  # a signal, which also wakes the main thread where it waits
        signal.pthread_kill(int(threading.main_thread().ident or 0), signal.SIGINT)


def _is_deaf(frame: FrameType | None) -> bool:
    """Whether an exception would be printed and forgotten there, as in whatever clears up after an object."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_globals.get("__name__") in ("weakref", "_weakrefset"):
            return True
        frame = frame.f_back
    return False
