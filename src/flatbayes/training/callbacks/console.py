"""Console output of a training: a progress bar, or lines for a log file."""

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from flatbayes.core.console import PlainConsole
from flatbayes.training.callbacks.callback import Callback, MemberCallback, Record
from flatbayes.training.cost import get_peak_memory_mb


class ProgressBar(Callback):
    """A progress bar on the terminal with loss, learning rate, memory and time left; a context manager.

    Args:
        console: Terminal to write to; by default standard error.
        min_refresh_seconds: Least time between two updates.
    """

    def __init__(self, console: Console | None = None, min_refresh_seconds: float = 0.2) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or PlainConsole(stderr=True),
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
        """Start the bar of this run."""
        description = "training" if num_members == 1 else f"training {member + 1} of {num_members}"
        self._progress.reset(self._task, total=total_steps, description=description)

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Advance the bar, a few times per second."""
        if time.monotonic() - self._last_refresh_time >= self._min_refresh_seconds:
            self._last_refresh_time = time.monotonic()
            self._progress.update(self._task, completed=step, numbers=f"loss {loss.item():.4f}  lr {lr:.2g}")

    def on_epoch_end(self, record: Record) -> None:
        """Advance the bar to the end of the epoch."""
        validation = f"  val nll {record['val_nll']:.4f}" if record.get("val_nll") is not None else ""
        numbers = f"epoch {record['epoch']}  loss {record['loss']:.4f}  lr {record['lr']:.2g}{validation}"
        memory = f"  {get_peak_memory_mb():,.0f} MiB"
        self._progress.update(self._task, completed=record["step"], numbers=numbers + memory)

    def on_resume(self, records: Sequence[Record]) -> None:
        """Advance the bar to the last of these epochs."""
        for record in records[-1:]:
            self.on_epoch_end(record)

    def on_rollback(self, records: Sequence[Record], total_steps: int) -> None:
        """Set the bar back."""
        self._progress.update(self._task, total=total_steps)
        self.on_resume(records)

    def on_message(self, text: str) -> None:
        """Print it above the bar."""
        self._progress.console.print(text, style="yellow", soft_wrap=True)


class ConsoleLogger(MemberCallback):
    """Writes lines with epoch, loss, learning rate, memory and time left, at most one per interval.

    Args:
        write: Writes a line.
        min_interval_seconds: Least time between two lines; the first and the last epoch of a run always have one.

    Examples:
        >>> lines = []
        >>> fitted = fit(MLP, data, MAP(), config=config, callback=ConsoleLogger(lines.append))
        >>> lines[0][:23]
        'epoch 1, step 6 of 12: '
    """

    def __init__(self, write: Callable[[str], None], min_interval_seconds: float = 60.0) -> None:
        super().__init__()
        self._write, self._min_interval_seconds = write, min_interval_seconds
        self._total_steps, self._first_step = 1, 0
        self._start_time = self._last_write_time = time.monotonic()

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Start the estimate of the time left."""
        super().on_run_start(member, num_members, total_steps)
        self._total_steps, self._first_step = total_steps, 0
        self._start_time = time.monotonic()

    def on_epoch_end(self, record: Record) -> None:
        """Write a line if the interval has passed."""
        now, step = time.monotonic(), record["step"]
        is_inner = record["epoch"] > 1 and step < self._total_steps
        if is_inner and now - self._last_write_time < self._min_interval_seconds:
            return
        self._last_write_time = now
        left = (now - self._start_time) * (self._total_steps - step) / max(1, step - self._first_step)
        owner = f"member {self._member + 1} of {self._num_members}, " if self._num_members > 1 else ""
        validation = f", validation NLL {record['val_nll']:.4f}" if record.get("val_nll") is not None else ""
        self._write(
            f"{owner}epoch {record['epoch']}, step {step} of {self._total_steps}: loss {record['loss']:.4f}"
            f"{validation}, learning rate {record['lr']:.2g}, {get_peak_memory_mb():,.0f} MiB, "
            f"{timedelta(seconds=round(left))} left"
        )

    def on_resume(self, records: Sequence[Record]) -> None:
        """Write a line; the steps before do not count for the speed."""
        if records:
            self._first_step = records[-1]["step"]
            epoch = records[-1]["epoch"]
            self._write(f"continuing after epoch {epoch}, step {self._first_step} of {self._total_steps}")

    def on_rollback(self, records: Sequence[Record], total_steps: int) -> None:
        """Write a line."""
        self._total_steps, self._first_step = total_steps, records[-1]["step"]
        self._start_time = time.monotonic()
        epoch = records[-1]["epoch"]
        if self._first_step == total_steps:
            self._write(f"early stopping: training ends after epoch {epoch}, as its validation NLL was lower before")
        else:
            self._write(
                f"early stopping: validation NLL was lowest after epoch {epoch}; training goes on from there, to "
                f"step {total_steps}"
            )

    def on_message(self, text: str) -> None:
        """Write it."""
        self._write(text)
