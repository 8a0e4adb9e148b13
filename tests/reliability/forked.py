"""Calls of the command line in forked children of one process, so that torch is imported once."""

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning_fabric  # noqa: F401  # once, before any fork
import torch

import flatbayes.cli.arguments  # noqa: F401
from flatbayes.cli import main
from flatbayes.cli.main import VERBS, load_verb

for _verb in VERBS:  # once, before any fork
    load_verb(_verb)

OUT_OF_TIME = -1
SPACE = 3 << 30
"""Bytes of address space that a child may take beside what it has."""


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code or minus the signal, what it wrote, how long it took."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        """The message to the user, if there is one."""
        return next((line for line in self.err.splitlines() if line.startswith("flatbayes:")), "")


def call(words: list[str], folder: Path, **how: Any) -> Ended:
    """Run a command of `flatbayes` in a folder."""
    return run(lambda: main(words), folder, **how)


def run(
    action: Callable[[], int],
    folder: Path,
    *,
    seconds: float = 60.0,
    interrupt: float | None = None,
    before: Callable[[], Any] = lambda: None,
) -> Ended:
    """Run an action in a child.

    Args:
        action: Its result is the exit code.
        folder: Where the child works.
        seconds: Of the processor that it may take, and a tenth of what it may take of the clock; then it is killed.
        interrupt: After so many seconds, send SIGINT.
        before: Called in the child first.
    """
    pipes = [os.pipe() for _ in range(2)]
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(action, folder, [end for _, end in pipes], before, seconds)
    for reading, writing in pipes:
        os.close(writing)
        os.set_blocking(reading, False)
    written = [b"", b""]
    code = None
    while code is None:
        waited, status = os.waitpid(child, os.WNOHANG)
        took = time.monotonic() - began
        if waited:
            code = os.waitstatus_to_exitcode(status)
        elif interrupt is not None and took > interrupt:
            os.kill(child, signal.SIGINT)
            interrupt = None
        elif took > 10 * seconds:  # of the clock, on a machine that is shared
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            code = OUT_OF_TIME
        else:
            time.sleep(0.002)
        for number, (reading, _) in enumerate(pipes):
            while chunk := _chunk(reading):
                written[number] += chunk
    for reading, _ in pipes:
        os.close(reading)
    out, err = (text.decode("utf-8", "replace") for text in written)
    return Ended(OUT_OF_TIME if code in (-signal.SIGXCPU, -signal.SIGKILL) else code, out, err, took)


def _chunk(reading: int) -> bytes:
    try:
        return os.read(reading, 65536)
    except BlockingIOError:
        return b""


def _child(
    action: Callable[[], int], folder: Path, ends: list[int], before: Callable[[], Any], seconds: float
) -> None:
    code = 70
    try:
        for number, end in enumerate(ends, start=1):
            os.dup2(end, number)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        torch.set_num_threads(1)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + SPACE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
        before()
        code = action()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:  # before the command began
        code = 130
        os.write(2, b"flatbayes: not begun\n")
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()
        finally:
            os._exit(code)
