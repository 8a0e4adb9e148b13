"""What is seen of a training while it runs: a progress bar, a log of its epochs."""

import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from flatbayes.core.files import atomic_write
from flatbayes.training.cost import get_peak_memory_mb

Record = dict[str, Any]


class Callback:
    """Sees nothing; the interface of all that do."""

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """A training run starts, or one training of all runs together: then it is the first of one."""

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """A step is done; reading the loss waits for the device, so do it seldom."""

    def on_epoch_end(self, record: Record) -> None:
        """An epoch is done; of runs that are trained together, one for each, with its number as `run`."""

    def on_resume(self, records: Sequence[Record]) -> None:
        """The run that has begun goes on from a checkpoint, before which these epochs were done."""

    def on_message(self, text: str) -> None:
        """Something that is good to know before hours have passed."""


class CallbackList(Callback):
    """Several watches as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Pass it on."""
        for watch in self._callbacks:
            watch.on_run_start(member, num_members, total_steps)

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Pass it on."""
        for watch in self._callbacks:
            watch.on_step_end(step, loss, lr)

    def on_epoch_end(self, record: Record) -> None:
        """Pass it on."""
        for watch in self._callbacks:
            watch.on_epoch_end(record)

    def on_resume(self, records: Sequence[Record]) -> None:
        """Pass it on."""
        for watch in self._callbacks:
            watch.on_resume(records)

    def on_message(self, text: str) -> None:
        """Pass it on."""
        for watch in self._callbacks:
            watch.on_message(text)


class History(Callback):
    """Keeps every epoch's record, with the number of its run."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._member = 0

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Remember which run it is."""
        self._member = member

    def on_epoch_end(self, record: Record) -> None:
        """Keep it."""
        self.records.append({"run": self._member, **record})

    def on_resume(self, records: Sequence[Record]) -> None:
        """Keep them."""
        for record in records:
            self.on_epoch_end(record)


class JSONLinesLogger(Callback):
    """Appends every epoch's record, with the number of its run, to a file: one JSON object a line."""

    def __init__(self, path: Path) -> None:
        self._path, self._member = path, 0

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Remember which run it is."""
        self._member = member

    def on_epoch_end(self, record: Record) -> None:
        """Write it at once, so that nothing is lost when training stops."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"run": self._member, **record}) + "\n")

    def on_resume(self, records: Sequence[Record]) -> None:
        """Write them, in place of what was written of this run before."""
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        others = [line for line in lines if _parse_member(line) not in (None, self._member)]
        own = [json.dumps({"run": self._member, **record}) for record in records]
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in (*others, *own)), encoding="utf-8")


class ProgressBar(Callback):
    """A progress bar on the terminal with loss, learning rate and time left."""

    def __init__(self, console: Console | None = None, min_refresh_seconds: float = 0.2) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._min_refresh_seconds, self._last_refresh_time = min_refresh_seconds, 0.0
        self._task = self._progress.add_task("training", total=None, numbers="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """A bar for the whole of this run."""
        what = "training" if num_members == 1 else f"training {member + 1} of {num_members}"
        self._progress.reset(self._task, total=total_steps, description=what)

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Move the bar, a few times a second."""
        if time.monotonic() - self._last_refresh_time >= self._min_refresh_seconds:
            self._last_refresh_time = time.monotonic()
            self._progress.update(self._task, completed=step, numbers=f"loss {loss.item():.4f}  lr {lr:.2g}")

    def on_epoch_end(self, record: Record) -> None:
        """Move the bar to the end of the epoch."""
        validation = f"  val nll {record['val_nll']:.4f}" if record.get("val_nll") is not None else ""
        numbers = f"epoch {record['epoch']}  loss {record['loss']:.4f}  lr {record['lr']:.2g}{validation}"
        memory = f"  {get_peak_memory_mb():,.0f} MiB"
        self._progress.update(self._task, completed=record["step"], numbers=numbers + memory)

    def on_resume(self, records: Sequence[Record]) -> None:
        """Move the bar to where they end."""
        for record in records[-1:]:
            self.on_epoch_end(record)

    def on_message(self, text: str) -> None:
        """Show it above the bar."""
        self._progress.console.print(text, style="yellow", soft_wrap=True)


class ConsoleLogger(Callback):
    """A line now and then, for logs that nobody watches as they grow: epoch, loss, memory, time left.

    Args:
        write: Takes a line.
        min_interval_seconds: Least time between two; the first and the last epoch of a run always have one.
    """

    def __init__(self, write: Callable[[str], None], min_interval_seconds: float = 60.0) -> None:
        self._write, self._min_interval_seconds = write, min_interval_seconds
        self._member, self._num_members, self._total_steps, self._first_step = 0, 1, 1, 0
        self._start_time = self._last_write_time = time.monotonic()

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Time is estimated from here on."""
        self._member, self._num_members, self._total_steps, self._first_step = member, num_members, total_steps, 0
        self._start_time = time.monotonic()

    def on_epoch_end(self, record: Record) -> None:
        """Write it, if it is time."""
        now, step = time.monotonic(), record["step"]
        if (
            record["epoch"] > 1
            and step < self._total_steps
            and now - self._last_write_time < self._min_interval_seconds
        ):
            return
        self._last_write_time = now
        left = (now - self._start_time) * (self._total_steps - step) / max(1, step - self._first_step)
        which = f"run {self._member + 1} of {self._num_members}, " if self._num_members > 1 else ""
        validation = f", validation NLL {record['val_nll']:.4f}" if record.get("val_nll") is not None else ""
        self._write(
            f"{which}epoch {record['epoch']}, step {step} of {self._total_steps}: loss {record['loss']:.4f}{validation}, "
            f"learning rate {record['lr']:.2g}, {get_peak_memory_mb():,.0f} MiB, {timedelta(seconds=round(left))} left"
        )

    def on_resume(self, records: Sequence[Record]) -> None:
        """Say so; what was done before says nothing about the speed now."""
        if records:
            self._first_step = records[-1]["step"]
            self._write(
                f"going on after epoch {records[-1]['epoch']}, step {self._first_step} of {self._total_steps}"
            )

    def on_message(self, text: str) -> None:
        """Write it at once."""
        self._write(text)


def _parse_member(line: str) -> int | None:
    try:
        run: int = json.loads(line)["run"]
    except (ValueError, KeyError, TypeError):  # the last line, when the writer was killed
        return None
    return run
