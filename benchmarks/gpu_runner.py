"""Runner of the tasks of `gpu.py`: a worker process with a time limit for each task, and a report on disk.

The process of the command imports neither torch nor flatbayes. It sends tasks to a worker process, one at a time, and
writes the report after every message. A task that fails is recorded with its message. A task that exceeds its time
ends at its next row; if none comes, its process is stopped. So is a worker whose CUDA context an error has made
unusable. The next task gets a new one.
"""

import contextlib
import gc
import importlib
import math
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gpu_report import Report, Row

FATAL_TEXTS = ("CUDA error", "CUDNN_STATUS", "device-side assert", "Triton Error [CUDA]")
"""Texts of errors after which a CUDA context may be unusable."""
MIN_TASK_SECONDS = 8.0
"""Smallest limit of a task, however short the whole command is."""
GRACE_SECONDS = 6.0
"""Time in which a task that exceeds its limit may end by itself: starting another worker takes about as long."""
STOP_SECONDS = 2.0
"""Time that ending a worker may take."""
MAX_START_SECONDS = 60.0
"""Most seconds until a worker is ready."""
START_SECONDS = 2.0
"""Time of the command before it looks at the clock."""


class Skip(Exception):  # noqa: N818 - it is no error
    """A task cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Context:
    """What a task gets.

    Attributes:
        device: `cuda` or `cpu`.
        deadline: Time of `time.monotonic` at which the task should end.
        data: Path of CIFAR-10, if any.
        seconds: Time limit of the whole command.
    """

    device: str
    deadline: float
    data: str | None = None
    seconds: float = 520.0

    @property
    def is_cpu(self) -> bool:
        """Whether this is a dry run on the CPU, with small sizes."""
        return self.device == "cpu"

    def remaining(self) -> float:
        """Seconds until the task should end."""
        return self.deadline - time.monotonic()

    def require_cuda(self, what: str) -> None:
        """Skip the task on the CPU."""
        if self.is_cpu:
            raise Skip(f"{what} needs a CUDA device")


@dataclass(frozen=True)
class Task:
    """A function in a module of this folder that yields rows, each merged into the result of the task.

    Attributes:
        name: Name in the report.
        target: `module:function`; it takes a `Context`.
        limit: Most seconds that it may take if its section has the budget for which it is given.
    """

    name: str
    target: str
    limit: float = 60.0


@dataclass
class Worker:
    """A process that runs one task at a time, and is started again when it was stopped.

    Attributes:
        settings: Arguments of each `Context`, without the deadline; and `log`, the file for its output.
    """

    settings: Mapping[str, Any]
    _process: multiprocessing.Process | None = field(default=None, init=False)
    _connection: Connection | None = field(default=None, init=False)

    def run(self, task: Task, deadline: float, on_row: Callable[[Row], None], last: float = math.inf) -> Row:
        """Run a task; return its record without the result.

        Args:
            task: The task.
            deadline: Time of `time.monotonic` at which it should end.
            on_row: Called with every row that it yields.
            last: Time at which it is stopped even if it could end by itself soon.
        """
        stop_time = min(deadline + GRACE_SECONDS, last)
        self.start(last)
        start, connection = time.monotonic(), self._connection
        if connection is None:
            return {"status": "skipped", "reason": "out of time: no process could be started for it"}
        connection.send((task, deadline))
        while True:
            if not connection.poll(max(0.0, stop_time - time.monotonic())):
                self.stop()
                return {"status": "skipped", "reason": f"out of time: its process was stopped after {since(start)}"}
            try:
                kind, content = connection.recv()
            except (EOFError, ConnectionError):
                code = self.stop()
                return {"status": "failed", "message": f"The process of the task ended with exit code {code}."}
            if kind == "row":
                on_row(content)
            if kind != "done":
                continue
            if content.pop("is_fatal", False):
                self.stop()
            return content

    def start(self, last: float = math.inf) -> None:
        """Start the process if there is none, and wait until it is ready, at most until a time."""
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=serve, args=(other, dict(self.settings)), daemon=False)
            self._process.start()
            other.close()
            if not self._connection.poll(max(0.0, min(last - time.monotonic(), MAX_START_SECONDS))):
                self.stop()

    def stop(self) -> int | None:
        """End the process with all that it started; return its exit code."""
        process, self._process, self._connection = self._process, None, None
        if process is None:
            return None
        if process.is_alive():
            process.join(0.05)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not process.is_alive():
                break
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)  # it may not have its group yet
            process.join(STOP_SECONDS / 2)
        return process.exitcode


def serve(connection: Connection, settings: Row) -> None:
    """Run the tasks that arrive, in a process group of its own, until the other end closes."""
    if hasattr(os, "setsid"):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides
    log = os.open(settings.pop("log", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    warnings.simplefilter("ignore")
    connection.send(("ready", {}))
    while True:
        try:
            task, deadline = connection.recv()
        except (EOFError, ConnectionError):
            return
        connection.send(("done", run_task(task, Context(deadline=deadline, **settings), connection.send)))


def run_task(task: Task, context: Context, send: Callable[[tuple[str, Row]], None]) -> Row:
    """Run a task in this process, send its rows, and return its record."""
    module, _, name = task.target.partition(":")
    start = time.monotonic()
    try:
        with contextlib.closing(getattr(importlib.import_module(module), name)(context)) as rows:
            for row in rows:
                send(("row", row))
                if context.remaining() <= 0:
                    raise Skip(f"out of time after {since(start)}; what was measured until then is in the result")
        reset_device(context.device)
    except Skip as skip:
        return {"status": "skipped", "reason": str(skip)}
    except Exception as error:
        message = f"{type(error).__name__}: {error}".strip()
        frames = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)]
        is_fatal = any(text in message for text in FATAL_TEXTS)
        with contextlib.suppress(Exception):
            reset_device(context.device)
        return {"status": "failed", "message": message[:2000], "traceback": frames[-8:], "is_fatal": is_fatal}
    return {"status": "passed", "seconds": round(time.monotonic() - start, 2)}


def since(start: float) -> str:
    """Seconds since a time of `time.monotonic`, as text."""
    return f"{time.monotonic() - start:.1f} s"


def reset_device(device: str) -> None:
    """Wait for the device, so that an error belongs to its task, and undo the settings of the task."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def run_sections(
    sections: Mapping[str, tuple[float, Iterable[Task]]], worker: Worker, report: Report, seconds: float
) -> Iterator[tuple[str, str, Row]]:
    """Run all sections; at the start of each, the time that is left is divided by the budgets of those to come.

    The limits of tasks are for the budget of their section, and scale with the time that it gets.

    Args:
        sections: Budget and tasks by name.
        worker: Runs the tasks.
        report: Gets the results.
        seconds: Limit of the whole, from now on.

    Yields:
        Section, name of the task, and record, as each task ends.
    """
    start, budgets_left = time.monotonic(), sum(budget for budget, _ in sections.values())
    last = start + max(0.0, seconds - STOP_SECONDS - START_SECONDS)
    for section, (budget, tasks) in sections.items():
        section_start = time.monotonic()
        allowed = max(0.0, last - section_start) * budget / budgets_left
        end, budgets_left = section_start + allowed, budgets_left - budget
        records: dict[str, Row] = {}
        report.content["sections"][section] = {"budget_s": round(allowed, 1), "tasks": records}
        for task in tasks:
            if time.monotonic() < end:
                worker.start(last)
            now = time.monotonic()
            record: Row = {"status": "running", "result": {}}
            records[task.name] = record
            if now >= end:
                reason = f"the time of the section is spent ({allowed:.0f} s)"
                record |= {"status": "skipped", "reason": reason}
            else:
                report.write()

                def keep(row: Row, record: Row = record) -> None:
                    record["result"].update(row)
                    report.write()

                limit = max(task.limit * allowed / budget, MIN_TASK_SECONDS)
                record |= worker.run(task, min(end, now + limit), keep, last)
            report.content["sections"][section]["elapsed_s"] = round(time.monotonic() - section_start, 1)
            report.content["elapsed_s"] = round(time.monotonic() - start, 1)
            report.write()
            yield section, task.name, record
