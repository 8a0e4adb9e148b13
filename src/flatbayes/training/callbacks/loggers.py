"""Logs for the tools that people look at training with: TensorBoard, a CSV file, Weights & Biases.

The first two are Lightning Fabric's loggers, and any other with their two methods will do. A training that goes on
from a checkpoint begins a new log, with the epochs that were done before at its beginning.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.cost import get_peak_memory_mb

LoggerKind = Literal["tensorboard", "csv", "wandb"]


class Logger(Protocol):
    """What is asked of a logger; those of Lightning Fabric and of Lightning have it."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take numbers by name."""

    def save(self) -> None:
        """Bring them to where they are kept."""


class MetricLogger(Callback):
    """Passes on what is seen: `loss`, `lr`, what was validated, `peak_memory_mb` and `seconds` of every epoch.

    Of several runs, names begin with `run0/`, `run1/` ...; losses of single steps are `step_loss`.

    Args:
        loggers: Where to.
        every_n_steps: Steps between two of which the loss is logged; reading it waits for the device.
    """

    def __init__(self, loggers: Sequence[Logger], every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1; got {every_n_steps}.")
        self._loggers, self._every_n_steps = loggers, every_n_steps
        self._member, self._num_members, self._start_time = 0, 1, time.monotonic()

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Remember which run it is."""
        self._member, self._num_members = member, num_members

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Log every so many."""
        if step % self._every_n_steps == 0:
            self._log_metrics({"step_loss": float(loss), "lr": lr}, step, self._member)

    def on_epoch_end(self, record: Record) -> None:
        """Log it, and bring all to the disk."""
        self._log_epoch(
            record | {"peak_memory_mb": get_peak_memory_mb(), "seconds": time.monotonic() - self._start_time}
        )
        for logger in self._loggers:
            logger.save()

    def on_resume(self, records: Sequence[Record]) -> None:
        """Log the epochs that were done before."""
        for record in records:
            self._log_epoch(record)

    def _log_epoch(self, record: Record) -> None:
        numbers = {key: value for key, value in record.items() if key not in ("step", "run")}
        self._log_metrics(numbers, record["step"], record.get("run", self._member))

    def _log_metrics(self, metrics: dict[str, float], step: int, member: int) -> None:
        prefix = f"run{member}/" if self._num_members > 1 or member > 0 else ""
        for logger in self._loggers:
            logger.log_metrics({f"{prefix}{name}": value for name, value in metrics.items()}, step=step)


def make_logger(kind: LoggerKind, folder: Path) -> Logger:
    """A logger that writes below a folder, in one of its own for each training.

    Raises:
        ImportError: The package that it needs is not installed.
        ValueError: There is no such kind.
    """
    if kind == "csv":
        from lightning_fabric.loggers.csv_logs import CSVLogger

        return CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)
    if kind == "tensorboard":
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        try:
            return TensorBoardLogger(folder, name="tensorboard")
        except ImportError as error:
            raise ImportError("Logs for TensorBoard need it: pip install 'flatbayes[track]'.") from error
    if kind == "wandb":
        return WandbLogger(folder)
    raise ValueError(f"A log is tensorboard, csv or wandb; got {kind!r}.")


class WandbLogger:
    """A run of Weights & Biases, kept below a folder and, unless WANDB_MODE says offline, sent there too.

    Args:
        folder: Where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("Logs for Weights & Biases need it: pip install wandb.") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(project="flatbayes", dir=str(folder))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Pass them on."""
        self._run.log(metrics, step=step)

    def save(self) -> None:
        """Nothing: it is written as it comes."""
