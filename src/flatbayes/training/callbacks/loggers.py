"""Metric loggers: JSON lines, and TensorBoard, CSV files or Weights & Biases.

TensorBoard and CSV use Lightning Fabric's loggers; any object with their two methods works. A training that continues
from a checkpoint starts a new log, with the earlier epochs at its beginning.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from flatbayes.core.files import atomic_write, explain_write_errors
from flatbayes.core.optional import import_fabric
from flatbayes.training.callbacks.callback import MemberCallback, Record
from flatbayes.training.cost import get_peak_memory_mb

LoggerKind = Literal["tensorboard", "csv", "wandb"]
WANDB_STEP = "train_step"


class JSONLinesLogger(MemberCallback):
    """Appends the record of every epoch, with its `member`, to a file: one JSON object per line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def on_epoch_end(self, record: Record) -> None:
        """Write it at once, so that an interruption loses nothing."""
        with explain_write_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(f"{self._format_line(record)}\n")

    def on_run_start(self, member: int, num_members: int, total_steps: int) -> None:
        """Remove the lines of this member and of later ones, which a killed process has left."""
        super().on_run_start(member, num_members, total_steps)
        self._rewrite(())

    def on_resume(self, records: Sequence[Record]) -> None:
        """Write the records of this member, or of networks that are trained together."""
        self._rewrite(records)

    def on_rollback(self, records: Sequence[Record], total_steps: int) -> None:
        """Write these records in place of those of this member."""
        self._rewrite(records)

    def _rewrite(self, records: Sequence[Record]) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else []
        earlier = [line for line in lines if -1 < _parse_member(line) < self._member]
        if lines == earlier and not records:
            return
        with atomic_write(self._path) as temporary:
            text = "".join(f"{line}\n" for line in (*earlier, *map(self._format_line, records)))
            temporary.write_text(text, encoding="utf-8")

    def _format_line(self, record: Record) -> str:
        return json.dumps({"member": self._member, **record})


class Logger(Protocol):
    """Interface of a logger; those of Lightning Fabric and of Lightning have it."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log numbers by name."""

    def save(self) -> None:
        """Write them to the disk."""


class MetricLogger(MemberCallback):
    """Logs `loss`, `lr`, validation metrics, `peak_memory_mb` and `seconds` of every epoch.

    With several members, names have the prefix `run0/`, `run1/` ...; losses of single steps are `step_loss`.

    Args:
        loggers: Loggers that get the numbers.
        every_n_steps: Steps between two whose loss is logged; reading it waits for the device.

    Examples:
        >>> logger = make_logger("csv", Path("logs"))
        >>> fitted = fit(MLP, data, MAP(), config=config, callback=MetricLogger([logger]))
        >>> len(list(Path("logs").rglob("metrics.csv")))
        1
    """

    def __init__(self, loggers: Sequence[Logger], every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1; got {every_n_steps}.")
        super().__init__()
        self._loggers, self._every_n_steps, self._start_time = loggers, every_n_steps, time.monotonic()

    def on_step_end(self, step: int, loss: Tensor, lr: float) -> None:
        """Log the loss of every n-th step."""
        if step % self._every_n_steps == 0:
            self._log_metrics({"step_loss": float(loss), "lr": lr}, step)

    def on_epoch_end(self, record: Record) -> None:
        """Log the epoch, and write everything to the disk."""
        seconds = time.monotonic() - self._start_time
        self._log_epoch(record | {"peak_memory_mb": get_peak_memory_mb(), "seconds": seconds})
        for logger in self._loggers:
            logger.save()

    def on_resume(self, records: Sequence[Record]) -> None:
        """Log the earlier epochs."""
        for record in records:
            self._log_epoch(record)

    def _log_epoch(self, record: Record) -> None:
        metrics = {name: value for name, value in record.items() if name not in ("step", "member")}
        self._log_metrics(metrics, record["step"], record.get("member"))

    def _log_metrics(self, metrics: Mapping[str, float], step: int, member: int | None = None) -> None:
        """Log numbers of one of several networks that are trained together, or of the one that is trained."""
        is_one_of_several = member is not None or self._num_members > 1
        prefix = f"run{self._member if member is None else member}/" if is_one_of_several else ""
        for logger in self._loggers:
            logger.log_metrics({f"{prefix}{name}": value for name, value in metrics.items()}, step=step)


class WandbLogger:
    """A run of Weights & Biases, stored below a folder and, unless WANDB_MODE is `offline`, uploaded."""

    def __init__(self, folder: Path) -> None:
        try:
            import wandb  # optional
        except ImportError as error:
            raise ImportError("Logs for Weights & Biases need it: pip install wandb.") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(project="flatbayes", dir=str(folder))
        self._run.define_metric("*", step_metric=WANDB_STEP)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers by name. The step is one of them: wandb would drop those of an earlier step."""
        self._run.log(metrics if step is None else {**metrics, WANDB_STEP: step})

    def save(self) -> None:
        """Nothing: wandb writes them itself."""


def make_logger(kind: LoggerKind, folder: Path) -> Logger:
    """A logger that writes to a new folder below the given one.

    Raises:
        ImportError: The package of the logger is not installed.
        ValueError: The kind is unknown.

    Examples:
        >>> logger = make_logger("csv", Path("logs"))  # or tensorboard, or wandb
        >>> fitted = fit(MLP, data, MAP(), config=config, callback=MetricLogger([logger]))
    """
    if kind == "csv":
        csv_logs = import_fabric("loggers.csv_logs")  # slow to import
        csv_logger: Logger = csv_logs.CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)
        return csv_logger
    if kind == "tensorboard":
        tensorboard = import_fabric("loggers.tensorboard")  # slow to import
        try:
            tensorboard_logger: Logger = tensorboard.TensorBoardLogger(folder, name="tensorboard")
        except ImportError as error:
            raise ImportError("Logs for TensorBoard need it: pip install 'flatbayes[track]'.") from error
        return tensorboard_logger
    if kind == "wandb":
        return WandbLogger(folder)
    raise ValueError(f"A log is tensorboard, csv or wandb; got {kind!r}.")


def _parse_member(line: str) -> int:
    """The member of a line; -1 for a damaged one, such as the last line of a process that was killed."""
    try:
        member = json.loads(line)["member"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return member if isinstance(member, int) else -1
