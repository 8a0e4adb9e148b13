"""Logs for the tools that people look at training with: TensorBoard, a CSV file, Weights & Biases.

The first two are Lightning Fabric's loggers, and any other with their two methods will do. A training that goes on
from a checkpoint begins a new log, with the epochs that were done before at its beginning.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from flatbayes.training.watching.cost import peak_memory_mb
from flatbayes.training.watching.watch import Record, Watch

LogKind = Literal["tensorboard", "csv", "wandb"]


class Logger(Protocol):
    """What is asked of a logger; those of Lightning Fabric and of Lightning have it."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Take numbers by name."""

    def save(self) -> None:
        """Bring them to where they are kept."""


class Logged(Watch):
    """Passes on what is seen: `loss`, `lr`, what was validated, `peak_memory_mb` and `seconds` of every epoch.

    Of several runs, names begin with `run0/`, `run1/` ...; losses of single steps are `step_loss`.

    Args:
        loggers: Where to.
        every: Steps between two of which the loss is logged; reading it waits for the device.
    """

    def __init__(self, loggers: Sequence[Logger], every: int = 50) -> None:
        if every < 1:
            raise ValueError(f"every is a number of steps, at least 1; got {every}.")
        self._loggers, self._every = loggers, every
        self._run, self._runs, self._began = 0, 1, time.monotonic()

    def begin(self, run: int, runs: int, total_steps: int) -> None:
        """Remember which run it is."""
        self._run, self._runs = run, runs

    def step(self, step: int, loss: Tensor, lr: float) -> None:
        """Log every so many."""
        if step % self._every == 0:
            self._log({"step_loss": float(loss), "lr": lr}, step, self._run)

    def epoch(self, record: Record) -> None:
        """Log it, and bring all to the disk."""
        self._log_epoch(record | {"peak_memory_mb": peak_memory_mb(), "seconds": time.monotonic() - self._began})
        for logger in self._loggers:
            logger.save()

    def again(self, records: Sequence[Record]) -> None:
        """Log the epochs that were done before."""
        for record in records:
            self._log_epoch(record)

    def _log_epoch(self, record: Record) -> None:
        numbers = {key: value for key, value in record.items() if key not in ("step", "run")}
        self._log(numbers, record["step"], record.get("run", self._run))

    def _log(self, numbers: dict[str, float], step: int, run: int) -> None:
        prefix = f"run{run}/" if self._runs > 1 or run > 0 else ""
        for logger in self._loggers:
            logger.log_metrics({f"{prefix}{name}": value for name, value in numbers.items()}, step=step)


def make_logger(kind: LogKind, folder: Path) -> Logger:
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
        return WeightsAndBiases(folder)
    raise ValueError(f"A log is tensorboard, csv or wandb; got {kind!r}.")


class WeightsAndBiases:
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
