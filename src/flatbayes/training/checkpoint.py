"""Checkpoints from which an interrupted training continues bit for bit.

A checkpoint is written under a temporary name, synchronized to the disk, and renamed; older ones are removed only
then. A complete checkpoint therefore exists at any time, also while one is written. Checkpoints hold tensors and
plain data: reading one runs no code.
"""

import re
import time
import warnings
import zipfile
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flatbayes.core.files import WriteError, atomic_write, list_temporary_files, read_json, remove_files, write_json
from flatbayes.data.fingerprint import explain_change

CHECKPOINT_SCHEMA = 3
"""Schema 3 has the seeds of named random streams: a training of an older schema cannot be continued."""
MAX_WRITE_TIME_FRACTION = 0.05
"""Largest fraction of the training time that writing checkpoints takes."""
IDENTITY_FILE = "training.json"
CHOICES_FILE = "choices.json"
"""What a pilot has chosen on validation data."""
SHARED_PREFIX, FOLD_PREFIX = "shared-", "fold-"
"""First part of the names of folders with the checkpoints of one of several trainings of a call."""
CHECKPOINT_PATTERN = re.compile(r"(\d{4})(?:-(\d{10}))?\.pt")

CheckpointFolder = Path | str
"""Path of a folder of checkpoints."""


@dataclass(frozen=True)
class Checkpoints:
    """Folder and frequency of checkpoints.

    With the same folder the same `fit` continues from its last checkpoint, or starts if there is none.

    Attributes:
        folder: Folder of the checkpoints, which should hold nothing else.
        every_n_steps: Steps between two checkpoints within an epoch; None writes them at the end of epochs only, as
            is always done with a loader of your own.
        min_interval_seconds: Least time between two checkpoints. It is longer if writing one takes more than a
            twentieth of it; 0 removes both limits.
        max_to_keep: Number of checkpoints that are kept.
        allow_changed_data: Continue although the content of the data has changed since the checkpoint.

    Examples:
        >>> checkpoints = Checkpoints(Path("checkpoints"))
        >>> fitted = fit(
        ...     MLP, data, MAP(), config=config, checkpoints=checkpoints
        ... )  # again: continues
        >>> checkpoints.remove()
    """

    folder: Path
    every_n_steps: int | None = None
    min_interval_seconds: float = 30.0
    max_to_keep: int = 2
    allow_changed_data: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise ValueError(
                f"every_n_steps must be at least 1, or None for the end of epochs only; got {self.every_n_steps}."
            )
        if not self.min_interval_seconds >= 0:
            raise ValueError(f"min_interval_seconds must be at least 0, got {self.min_interval_seconds}.")
        if self.max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1, got {self.max_to_keep}.")

    def remove(self) -> None:
        """Remove all checkpoints; other files stay."""
        if self.folder.is_dir():
            for prefix in (SHARED_PREFIX, FOLD_PREFIX):
                for folder in self.folder.glob(f"{prefix}*"):
                    replace(self, folder=folder).remove()
            temporary_files = list_temporary_files(self.folder)
            plain_files = [self.folder / name for name in (IDENTITY_FILE, CHOICES_FILE)]
            remove_files([*_list_checkpoint_files(self.folder), *temporary_files, *plain_files])
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


@dataclass
class CheckpointManager:
    """Writes and reads the checkpoints of a fit, which may have several runs.

    Attributes:
        checkpoints: Folder and frequency; None writes no checkpoints.
        is_writer: Whether this process writes.
        previous_seconds: Duration of the training before it was interrupted.
    """

    checkpoints: Checkpoints | None = None
    is_writer: bool = True
    previous_seconds: float = 0.0
    _preloaded: dict[int, dict[str, Any]] = field(default_factory=dict)
    _start_time: float = field(default_factory=lambda: time.monotonic())
    _last_write_time: float = field(default_factory=lambda: time.monotonic())
    _last_write_seconds: float = 0.0

    @staticmethod
    def open(
        checkpoints: Checkpoints | None, identity: Mapping[str, Any], *, is_writer: bool = True
    ) -> "CheckpointManager":
        """The manager of a training; `identity` is plain data that differ between trainings.

        Raises:
            ValueError: The folder has the checkpoints of another training.
        """
        manager = CheckpointManager(checkpoints, is_writer)
        if checkpoints is None:
            return manager
        path = checkpoints.folder / IDENTITY_FILE
        if checkpoints.folder.exists() and not checkpoints.folder.is_dir():
            raise ValueError(f"{checkpoints.folder} is a file, and checkpoints need a folder.")
        if path.is_file():
            stored, expected = read_json(path), {"schema": CHECKPOINT_SCHEMA, **identity}
            other = sorted(
                key for key in expected if not isinstance(stored, dict) or stored.get(key) != expected[key]
            )
            if other == ["data"] and checkpoints.allow_changed_data:
                other = []
            if other == ["data"] and isinstance(stored["data"], dict):
                change = explain_change(stored["data"], expected["data"])
                raise ValueError(
                    f"The data have changed since the checkpoints in {checkpoints.folder} were written: {change}. "
                    "Restore them, train anew in another folder, or allow it (Checkpoints(allow_changed_data=True), "
                    "--allow_changed_data)."
                )
            if other == ["start"]:
                raise ValueError(
                    f"{checkpoints.folder} has the checkpoints of a training that started from other weights, frozen "
                    "parameters or inputs. To continue it, give the same ones (of a network that is built at random, "
                    "the function that builds it); otherwise choose another folder, or remove this one."
                )
            if other:
                raise ValueError(
                    f"{checkpoints.folder} has the checkpoints of another training: {', '.join(other)} differ. "
                    "Choose another folder, or remove this one."
                )
        elif is_writer:
            write_json(path, {"schema": CHECKPOINT_SCHEMA, **identity})
        if is_writer:
            remove_files(list_temporary_files(checkpoints.folder))
        return manager

    @staticmethod
    def open_shared(
        checkpoints: Checkpoints, identity: Mapping[str, Any], branches: Collection[str], *, replaces_others: bool
    ) -> "CheckpointManager":
        """The manager of a training that several posteriors share.

        With `replaces_others`, checkpoints of another training, or of this training without some of the posteriors,
        are removed rather than refused.

        Raises:
            ValueError: The folder has such checkpoints, and `replaces_others` is not set.
        """
        path, stored = checkpoints.folder / IDENTITY_FILE, None
        with suppress(FileNotFoundError, ValueError):
            stored = read_json(path)
        saved = stored.get("branches") if isinstance(stored, dict) else None
        if not isinstance(saved, list) or not set(branches) <= set(map(str, saved)):
            if isinstance(saved, list) and not replaces_others:
                raise ValueError(
                    f"{checkpoints.folder} has the checkpoints of this training without some of the posteriors. Fit "
                    "the others by a call of their own, with another folder, or remove this one."
                )
            if replaces_others:
                checkpoints.remove()
            saved = sorted(branches)
        try:
            return CheckpointManager.open(checkpoints, {**identity, "branches": saved})
        except ValueError:  # of another version, or on other content of the data
            if not replaces_others:
                raise
            checkpoints.remove()
            return CheckpointManager.open(checkpoints, {**identity, "branches": saved})

    def is_candidate_step(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether a checkpoint may be written after this step, counted from 1, regardless of the time."""
        if self.checkpoints is None:
            return False
        return epoch_ended or (
            self.checkpoints.every_n_steps is not None and step % self.checkpoints.every_n_steps == 0
        )

    def is_due(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether a checkpoint is written after this step, counted from 1."""
        if self.checkpoints is None or not self.is_candidate_step(step, epoch_ended=epoch_ended):
            return False
        wait = (
            max(self.checkpoints.min_interval_seconds, self._last_write_seconds / MAX_WRITE_TIME_FRACTION)
            if self.checkpoints.min_interval_seconds > 0
            else 0.0
        )
        return time.monotonic() - self._last_write_time >= wait

    def save(self, run_index: int, step: int, content: Mapping[str, Any]) -> None:
        """Write a checkpoint of a run after a number of steps, and remove older ones.

        Raises:
            OSError: It cannot be written; earlier ones remain valid.
        """
        if self.checkpoints is not None and self.is_writer:
            started = time.monotonic()
            self._write_file(self.checkpoints.folder / f"{run_index:04d}-{step:010d}.pt", content)
            paths = self._list_run_checkpoints(run_index)
            given_up = [path for path in paths if _get_step(path) > step]  # early stopping went back
            remove_files([*given_up, *paths[len(given_up) + self.checkpoints.max_to_keep :]])
            self._last_write_time = time.monotonic()
            self._last_write_seconds = self._last_write_time - started

    def preload(self, run_index: int, content: dict[str, Any]) -> None:
        """Let a run continue from this content, which is also written as its checkpoint."""
        self._preloaded[run_index] = content
        self.save(run_index, content["progress"]["step"], content)

    def is_preloaded(self, run_index: int) -> bool:
        """Whether a run continues from content that is not in a file."""
        return run_index in self._preloaded

    def load_latest(self, run_index: int) -> dict[str, Any] | None:
        """The content of the latest complete checkpoint of a run; None if there is none.

        Raises:
            ValueError: All checkpoints of the run are damaged.
        """
        if run_index in self._preloaded:
            return self._preloaded.pop(run_index)
        paths = self._list_run_checkpoints(run_index)
        for path in paths:
            content = self._read_file(path)
            if content is not None:
                return content
        if paths:
            raise ValueError(f"No checkpoint in {paths[0].parent} is complete. Remove that folder to start again.")
        return None

    def find_latest_step(self, run_index: int) -> int | None:
        """Step of the latest checkpoint of a run, or None."""
        paths = self._list_run_checkpoints(run_index)
        return _get_step(paths[0]) if paths else None

    def save_result(self, run_index: int, content: Mapping[str, Any]) -> None:
        """Write the result of a run, and remove its checkpoints.

        Raises:
            OSError: It cannot be written; earlier ones remain valid.
        """
        if self.checkpoints is not None and self.is_writer:
            self._write_file(self.checkpoints.folder / f"{run_index:04d}.pt", content)
            remove_files(self._list_run_checkpoints(run_index))

    def remove_run(self, run_index: int) -> None:
        """Remove the checkpoints and the result of a run."""
        if self.checkpoints is not None and self.is_writer:
            result = self.checkpoints.folder / f"{run_index:04d}.pt"
            remove_files([*self._list_run_checkpoints(run_index), result])

    def load_result(self, run_index: int) -> dict[str, Any] | None:
        """The result of a run; None if it has not ended."""
        path = None if self.checkpoints is None else self.checkpoints.folder / f"{run_index:04d}.pt"
        return self._read_file(path) if path is not None and path.is_file() else None

    def elapsed_seconds(self) -> float:
        """Duration of the training in seconds, without the time between an interruption and its continuation."""
        return self.previous_seconds + time.monotonic() - self._start_time

    def _list_run_checkpoints(self, run_index: int) -> list[Path]:
        written = [] if self.checkpoints is None else _list_checkpoint_files(self.checkpoints.folder)
        return [path for path in written if path.name.startswith(f"{run_index:04d}-")][::-1]

    def _write_file(self, path: Path, content: Mapping[str, Any]) -> None:
        try:
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                torch.save({"schema": CHECKPOINT_SCHEMA, "seconds": self.elapsed_seconds(), **content}, file)
        except WriteError as error:
            text = "Earlier checkpoints are valid, and training continues from them when it is started again."
            raise OSError(f"The checkpoint {error} {text}") from error

    def _read_file(self, path: Path) -> dict[str, Any] | None:
        try:
            with zipfile.ZipFile(path) as archive:  # torch writes the checksums, and does not compare them
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ValueError("it is compressed, as checkpoints never are")
                if (record := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {record} is not the one it was saved with")
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if content["schema"] != CHECKPOINT_SCHEMA:
                raise ValueError(f"schema {content['schema']}")
            self.previous_seconds = float(content["seconds"])
        except Exception as error:  # damaged files raise exceptions of many kinds
            warnings.warn(f"{path} is damaged and skipped, for the one before it: {error}", stacklevel=4)
            return None
        return content


def _get_step(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _list_checkpoint_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if CHECKPOINT_PATTERN.fullmatch(path.name))
