"""Runner of the tasks of `gpu.py`: a worker process with a time limit for each task, and a report on disk.

The process of the command imports neither torch nor flatbayes. It sends tasks to a worker process, one at a time, and
writes the report after every message. A task that fails is recorded with its message. A task that exceeds its time is
stopped with its process; so is a worker whose CUDA context an error has made unusable. The next task gets a new one.
"""

import contextlib
import gc
import importlib
import json
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

Row = dict[str, Any]
FATAL_TEXTS = ("CUDA error", "CUDNN_STATUS", "device-side assert", "Triton Error [CUDA]")
"""Texts of errors after which a CUDA context may be unusable."""
MIN_TASK_SECONDS = 8.0
"""Smallest limit of a task, however short the whole command is."""
STOP_SECONDS = 2.0
"""Time that ending a worker may take."""


class Skip(Exception):  # noqa: N818 - it is no error
    """A task cannot run here; the message is the reason."""


@dataclass(frozen=True)
class Context:
    """What a task gets.

    Attributes:
        device: `cuda` or `cpu`.
        deadline: Time of `time.monotonic` at which the task is stopped.
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
        """Seconds until the task is stopped."""
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
        limit: Most seconds that it may take if the whole command has 520.
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

    def run(self, task: Task, deadline: float, on_row: Callable[[Row], None]) -> Row:
        """Run a task; return its record without the result.

        Args:
            task: The task.
            deadline: Time of `time.monotonic` at which it is stopped.
            on_row: Called with every row that it yields.
        """
        start, connection = time.monotonic(), self._connect()
        connection.send((task, deadline))
        while True:
            if not connection.poll(max(0.0, deadline - time.monotonic())):
                self.stop()
                return {"status": "skipped", "reason": f"stopped after {time.monotonic() - start:.0f} s: out of time"}
            try:
                kind, content = connection.recv()
            except (EOFError, ConnectionError):
                code = self.stop()
                return {"status": "failed", "message": f"The process of the task ended with exit code {code}."}
            if kind == "row":
                on_row(content)
                continue
            if content.pop("is_fatal", False):
                self.stop()
            return content

    def _connect(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=serve, args=(other, dict(self.settings)), daemon=False)
            self._process.start()
            other.close()
        return self._connection

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
        for row in getattr(importlib.import_module(module), name)(context) or ():
            send(("row", row))
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


def reset_device(device: str) -> None:
    """Wait for the device, so that an error belongs to its task, and undo the settings of the task."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


@dataclass
class Report:
    """The results so far, written to a file after every change.

    Attributes:
        path: JSON file; None writes nothing.
        content: Plain data.
    """

    path: Path | None
    content: Row

    def write(self) -> None:
        """Replace the file as a whole, so that a reader never sees half of it."""
        if self.path is not None:
            temporary = self.path.with_name(f".{self.path.name}.tmp")
            temporary.write_text(json.dumps(make_plain(self.content), indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self.path)


def make_plain(value: Any) -> Any:
    """Plain data for JSON: floats are rounded, those that are not finite become None, other objects become texts."""
    match value:
        case dict():
            return {str(key): make_plain(item) for key, item in value.items()}
        case list() | tuple():
            return [make_plain(item) for item in value]
        case bool() | int() | str() | None:
            return value
        case float():
            return float(f"{value:.6g}") if abs(value) < float("inf") else None
        case _:
            return str(value)


def run_sections(
    sections: Mapping[str, tuple[float, Iterable[Task]]], worker: Worker, report: Report, seconds: float
) -> Iterator[tuple[str, str, Row]]:
    """Run all sections, each until the sum of the budgets so far is spent; time that one leaves goes to the next.

    Args:
        sections: Budget in seconds, and tasks, by name; budgets are scaled to `seconds`.
        worker: Runs the tasks.
        report: Gets the results.
        seconds: Limit of the whole, from now on.

    Yields:
        Section, name of the task, and record, as each task ends.
    """
    start, budget_sum = time.monotonic(), 0.0
    total = sum(budget for budget, _ in sections.values())
    scale = max(0.0, seconds - STOP_SECONDS) / total
    for section, (budget, tasks) in sections.items():
        budget_sum += budget
        end = start + scale * budget_sum
        records: dict[str, Row] = {}
        report.content["sections"][section] = {"budget_s": round(scale * budget, 1), "tasks": records}
        section_start = time.monotonic()
        for task in tasks:
            now = time.monotonic()
            record: Row = {"status": "running", "result": {}}
            records[task.name] = record
            if now >= end:
                record |= {
                    "status": "skipped",
                    "reason": f"the budget of the section is spent ({scale * budget:.0f} s)",
                }
            else:
                report.write()

                def keep(row: Row, record: Row = record) -> None:
                    record["result"].update(row)
                    report.write()

                limit = max(task.limit * scale, MIN_TASK_SECONDS)
                record |= worker.run(task, min(end, now + limit), keep)
            report.content["sections"][section]["elapsed_s"] = round(time.monotonic() - section_start, 1)
            report.content["elapsed_s"] = round(time.monotonic() - start, 1)
            report.write()
            yield section, task.name, record
