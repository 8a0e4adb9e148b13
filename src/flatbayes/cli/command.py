"""Command runner: parse arguments, call a function, map errors and signals to messages and exit codes.

`flatbayes` itself and the commands of a checkout (`python -m studies.double_well`, `python -m reproduction`) share
it.
"""

import _thread
import argparse
import io
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from flatbayes.core.console import PlainConsole
from flatbayes.core.interrupts import TERMINATION_SIGNALS
from flatbayes.experiments.folder_lock import unlock_folders

PACKAGE_FOLDER = Path(__file__).parents[1]
EXIT_BAD_INPUT = 2
EXIT_SIGNAL = 128
"""Exit code of a command that a signal ended, less the number of the signal."""
USER_ERRORS = (
    argparse.ArgumentError,
    ValueError,
    TypeError,
    RuntimeError,
    OSError,
    ImportError,
    OverflowError,
    MemoryError,
)
"""Errors that are reported by their message alone, without a traceback."""

MISSING_OPTIONS = {
    "data": "--data (a name such as digits, a file or a folder)",
    "out": "--out (where to write, such as runs/x)",
    "folder": "the folder of a run, such as runs/x",
    "folders": "one or more folders of runs, such as runs/x runs/y",
    "input": "--input (a parquet, CSV or npz file, or a folder of images)",
    "output": "--output (the file to write)",
    "format": "--format (torch or onnx)",
}
"""Required options, with what they are."""

PARSER_NOISE = ("Subtypes:", "Given value", "Errors:", "Does not validate", "Expected a <class 'NoneType'>",
                "Expected a path but", "Type collections.abc.Callable")  # fmt: skip
"""Beginnings of the lines of a parser's message that describe its types."""


def run_command(
    parser: ArgumentParser,
    run: Callable[[Namespace], None],
    arguments: Sequence[str] | None = None,
    *,
    parse: Callable[[ArgumentParser, Sequence[str]], Namespace] | None = None,
) -> int:
    """Parse arguments, call `run` with the options, and print errors as one message on standard error.

    Args:
        parser: Parser of the command, made with `exit_on_error=False`; its `prog` begins every error message.
        run: Function that does the work.
        arguments: Command-line arguments without the program's name; by default those of this process.
        parse: Turns parser and arguments into options; by default `parse_options`.

    Returns:
        Exit code: 0, or 2 for bad input (also no arguments at all, which prints the help), or 130 after Ctrl-C, 143
        after SIGTERM, 129 after SIGHUP.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    make_streams_safe()
    interrupts: list[int] = []
    previous_handlers = record_interrupts(interrupts)
    previous_showwarning, warnings.showwarning = warnings.showwarning, partial(_show_warning, parser)
    try:
        if not arguments:
            parser.print_help()
            return EXIT_BAD_INPUT
        run((parse or parse_options)(parser, arguments))
    except KeyboardInterrupt as stop:
        return _report_interrupt(parser, stop, interrupts)
    except Exception as error:
        if isinstance(error, _get_loaded_class("flatbayes.core.process_group", "RemoteProcessError")):
            return EXIT_BAD_INPUT  # the process that failed has printed the message
        if interrupts:  # a library turned the KeyboardInterrupt into another error
            return _report_interrupt(parser, error, interrupts)
        if not isinstance(error, USER_ERRORS):
            raise  # a defect of flatbayes: show the traceback
        _print_error(parser, _format_error(error, arguments))
        return EXIT_BAD_INPUT
    finally:
        warnings.showwarning = previous_showwarning
        unlock_folders()
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)
    return 0


def parse_options(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """Parse arguments; an unexpected error of the parser becomes a ValueError that points to the configuration.

    Raises:
        ValueError: The parser failed in a way that it does not report itself, as on a damaged configuration file.
    """
    try:
        return parser.parse_args(arguments)
    except USER_ERRORS:
        raise
    except Exception as error:
        raise ValueError(
            f"The options cannot be read ({type(error).__name__}: {error}). If they come from a file, compare it "
            "with what the same command writes with --print_config."
        ) from error


def explain_parser_error(text: str, arguments: Sequence[str]) -> str:
    """The parser's message in one line, without its types and the objects that it read."""
    missing = re.fullmatch(r"the following arguments are required: (.+)", text)
    if missing:
        names = sorted(name.rpartition(".")[2] for name in missing.group(1).split(", "))
        needed = " and ".join(MISSING_OPTIONS.get(name, f"--{name}") for name in names)
        verb = missing.group(1).partition(".")[0] if "." in missing.group(1) else "This command"
        return f"{verb} needs {needed}."
    lines = [line.strip().removeprefix("- ") for line in text.splitlines()]
    kept = [line for line in lines if line and not line.startswith(PARSER_NOISE)]
    message = " ".join(dict.fromkeys(kept))
    message = re.sub(r"\.? Got value: (Namespace|NestedArg)\(.*", "", message)
    message = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", message).replace("typing.", "")
    message = re.sub(r'Parser key "([\w.]+)":', r"--\1:", message)
    from flatbayes.cli.aliases import explain_renames  # here, since it imports torch

    return " ".join([message, *explain_renames(arguments, text)])


def _format_error(error: Exception, arguments: Sequence[str]) -> str:
    text = str(error)
    if isinstance(error, OverflowError):
        return f"A number is too large to compute with: {text}."
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({text}). Use a smaller network, batch, rank or ensemble."
    if isinstance(error, argparse.ArgumentError):
        return explain_parser_error(text, arguments)
    return " ".join([text, *getattr(error, "__notes__", ())])


def _report_interrupt(parser: ArgumentParser, error: BaseException, interrupts: Sequence[int]) -> int:
    """Say that the command was stopped, with the notes of the exception, and return the exit code."""
    number = getattr(error, "signal_number", interrupts[-1] if interrupts else signal.SIGINT)
    word = "interrupted" if number == signal.SIGINT else "terminated"
    _print_error(parser, ": ".join([word, *getattr(error, "__notes__", ())]))
    return EXIT_SIGNAL + number


def _show_warning(
    parser: ArgumentParser, message: Warning | str, category: type[Warning], filename: str, lineno: int, *options: Any
) -> None:
    """Print the warnings of flatbayes without the place in the code; others as Python does."""
    names = {"flatbayes.data.checks": "DataWarning", "flatbayes.training.loop": "DivergenceWarning"}
    names["flatbayes.experiments.references"] = "ReferenceWarning"
    names["flatbayes.calibration.targets"] = "CalibrationWarning"
    is_named = issubclass(category, tuple(_get_loaded_class(module, name) for module, name in names.items()))
    if is_named or (category is UserWarning and Path(filename).is_relative_to(PACKAGE_FOLDER)):
        _print_error(parser, f"note: {message}")
    else:
        print(warnings.formatwarning(message, category, filename, lineno), end="", file=sys.stderr)  # noqa: T201


def _print_error(parser: ArgumentParser, message: Any) -> None:
    prefix = parser.prog
    if "torch" in sys.modules:
        from flatbayes.core.process_group import get_process_group_info

        group = get_process_group_info()
        prefix = parser.prog if group.size == 1 else f"{parser.prog}, process {group.rank}"
    PlainConsole(stderr=True).print_text(f"{prefix}: {message}")


def _get_loaded_class(module: str, name: str) -> type | tuple[()]:
    """A class for `isinstance`; an empty tuple while its module is not loaded, so that this does not import torch."""
    return getattr(sys.modules[module], name) if module in sys.modules else ()


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

    Every signal number is appended to `signals`.

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
