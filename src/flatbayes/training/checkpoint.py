"""Checkpoints: what a training needs to go on after it was killed and end as if nothing had happened, bit for bit.

A checkpoint is written under a temporary name, brought to the disk, and renamed; older ones are removed only then. So
whenever a training is killed, also while it writes, a whole checkpoint is there. They hold tensors and plain data:
reading one runs no code.
"""

import os
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flatbayes.core.files import read_json, replacing, write_json

SCHEMA = 1
SHARE = 0.05
"""Of the time, what writing may take."""
ABOUT = "training.json"
NAME = re.compile(r"(\d{4})(?:-(\d{10}))?\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """Where, and how often, a training keeps what it needs to go on.

    With the same folder the same `fit` goes on from its last checkpoint; if there is none yet, it begins.

    Attributes:
        folder: Where they are; nothing else is to be in it.
        steps: Steps between two checkpoints within an epoch; None is at the end of epochs only, which is all that is
            exact with a loader of your own.
        seconds: Least time between two; 0 takes every chance. They are further apart where writing them would take
            more than a twentieth of the time.
        keep: How many of the latest are there.
    """

    folder: Path
    steps: int | None = None
    seconds: float = 30.0
    keep: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None for the end of epochs only; got {self.steps}.")
        if not self.seconds >= 0:
            raise ValueError(f"seconds must be at least 0, got {self.seconds}.")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}.")

    def remove(self) -> None:
        """Remove them all; files of others stay."""
        if self.folder.is_dir():
            for path in (*_written(self.folder), *_unfinished(self.folder), self.folder / ABOUT):
                path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


@dataclass
class Keeper:
    """Writes and finds the checkpoints of one fit, which may have several jobs.

    Attributes:
        wanted: Where, and how often; None for never.
        writes: Whether this process is the one that writes.
        before: Seconds that the training had taken before it was stopped.
    """

    wanted: Checkpoints | None = None
    writes: bool = True
    before: float = 0.0
    _began: float = field(default_factory=lambda: time.monotonic())
    _last: float = field(default_factory=lambda: time.monotonic())
    _took: float = 0.0

    @staticmethod
    def open(wanted: Checkpoints | None, training: Mapping[str, Any], *, writes: bool = True) -> "Keeper":
        """The keeper of a training.

        Args:
            wanted: Where, and how often.
            training: Plain data that says which training it is.
            writes: Whether this process is the one that writes.

        Raises:
            ValueError: The folder has the checkpoints of another training.
        """
        keeper = Keeper(wanted, writes)
        if wanted is None:
            return keeper
        path = wanted.folder / ABOUT
        if wanted.folder.exists() and not wanted.folder.is_dir():
            raise ValueError(f"{wanted.folder} is a file, and checkpoints need a folder.")
        if path.is_file():
            found, expected = read_json(path), {"schema": SCHEMA, **training}
            other = sorted(key for key in expected if not isinstance(found, dict) or found.get(key) != expected[key])
            if other:
                raise ValueError(
                    f"{wanted.folder} has the checkpoints of another training: {', '.join(other)} differ. Choose "
                    "another folder, or remove this one."
                )
        elif writes:
            write_json(path, {"schema": SCHEMA, **training})
        if writes:
            for path in _unfinished(wanted.folder):
                path.unlink(missing_ok=True)
        return keeper

    def has_turn(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether one may be written after this step, counted from 1, whatever the clock says."""
        if self.wanted is None:
            return False
        return epoch_ended or (self.wanted.steps is not None and step % self.wanted.steps == 0)

    def due(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether a checkpoint is to be written after this step, counted from 1."""
        if self.wanted is None or not self.has_turn(step, epoch_ended=epoch_ended):
            return False
        wait = max(self.wanted.seconds, self._took / SHARE) if self.wanted.seconds > 0 else 0.0
        return time.monotonic() - self._last >= wait

    def keep(self, job: int, step: int, content: Mapping[str, Any]) -> None:
        """Write a checkpoint of a job that is under way, and remove the older ones.

        Raises:
            OSError: It cannot be written. The earlier ones are as good as they were.
        """
        if self.wanted is not None and self.writes:
            started = time.monotonic()
            self._write(self.wanted.folder / f"{job:04d}-{step:010d}.pt", content)
            for path in self._under_way(job)[self.wanted.keep :]:
                path.unlink(missing_ok=True)
            self._last = time.monotonic()
            self._took = self._last - started

    def under_way(self, job: int) -> dict[str, Any] | None:
        """The content of the latest whole checkpoint of a job; None if there is none.

        Raises:
            ValueError: There are some, and none is whole.
        """
        paths = self._under_way(job)
        for path in paths:
            content = self._read(path)
            if content is not None:
                return content
        if paths:
            raise ValueError(f"No checkpoint in {paths[0].parent} is whole. Remove that folder to begin anew.")
        return None

    def keep_ended(self, job: int, content: Mapping[str, Any]) -> None:
        """Write what has come of a job, and remove its checkpoints.

        Raises:
            OSError: It cannot be written. The earlier ones are as good as they were.
        """
        if self.wanted is not None and self.writes:
            self._write(self.wanted.folder / f"{job:04d}.pt", content)
            for path in self._under_way(job):
                path.unlink(missing_ok=True)

    def ended(self, job: int) -> dict[str, Any] | None:
        """What has come of a job, if it has ended."""
        path = None if self.wanted is None else self.wanted.folder / f"{job:04d}.pt"
        return self._read(path) if path is not None and path.is_file() else None

    def seconds(self) -> float:
        """What the training has taken so far, without what was lost in between."""
        return self.before + time.monotonic() - self._began

    def _under_way(self, job: int) -> list[Path]:
        written = [] if self.wanted is None else _written(self.wanted.folder)
        return [path for path in written if path.name.startswith(f"{job:04d}-")][::-1]

    def _write(self, path: Path, content: Mapping[str, Any]) -> None:
        try:
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save({"schema": SCHEMA, "seconds": self.seconds(), **content}, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch's own writer raises the latter
            raise OSError(
                f"The checkpoint {path} cannot be written: {error}. What was kept before is whole, and "
                "training goes on from there when it is started again."
            ) from error

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']}")
            self.before = float(content["seconds"])
        except Exception as error:  # whatever a damaged file makes the reader raise
            warnings.warn(f"{path} is damaged, and left out: {error}", stacklevel=4)
            return None
        return content


def _written(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if NAME.fullmatch(path.name))


def _unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.glob(".*.pt.*.tmp") if NAME.match(path.name[1:])]
