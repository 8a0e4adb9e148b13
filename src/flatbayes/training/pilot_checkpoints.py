"""States of the trainings of a pilot, in main memory, and on the disk where the fit has checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flatbayes.core import TrainingProgress
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.early_stopping import pack_checkpoint, unpack_checkpoint


@dataclass
class PilotCheckpoints(CheckpointManager):
    """States of a run at the branch and at the end, and the checkpoints from which it continues.

    Early stopping makes a run shorter and takes it back; the state at the branch is then taken anew.

    Attributes:
        disk: Checkpoints of the fit.
        start: Fraction of training at which the branch is.
        progress: Progress of the run.
        branch: State at the first step from this fraction on; None before.
        branch_progress: Step of that state, and the number of steps of the training.
        end: State after the last step.
        interrupted: State at which the run was interrupted; None if it was not.
    """

    disk: CheckpointManager = field(default_factory=CheckpointManager)
    start: float = 1.0
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    branch: Tensor | None = None
    branch_progress: tuple[int, int] = (0, 0)
    end: Tensor | None = None
    interrupted: dict[str, Any] | None = None

    def start_from(self, other: "PilotCheckpoints") -> tuple[float, float]:
        """Continue from the state of another run at its branch; return its gradients and seconds until there."""
        self.branch, self.branch_progress = other.branch, other.branch_progress
        content = self.load_latest(0) or {}
        return float(content["num_gradients"]), float(content["run_seconds"])

    def resume(self, content: dict[str, Any] | None) -> None:
        """Continue from a checkpoint of this run, if there is one, as `save` has written it."""
        if content is not None:
            self.interrupted = content
            self.branch, self.branch_progress = content["branch"], tuple(content["branch_progress"])

    def is_candidate_step(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether a state may be kept after this step, counted from 1."""
        return self._is_kept(step) or self.disk.is_candidate_step(step, epoch_ended=epoch_ended)

    def is_due(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether the state after this step, counted from 1, is that of branch or end, or due on the disk."""
        return self._is_kept(step) or self.disk.is_due(step, epoch_ended=epoch_ended)

    def save(self, run_index: int, step: int, content: Mapping[str, Any]) -> None:
        """Keep a copy of the state, and write a checkpoint before the end."""
        if step == self.progress.total_steps:
            self.end = pack_checkpoint(content)
            return
        if self._is_kept(step):
            self.branch, self.branch_progress = pack_checkpoint(content), (step, self.progress.total_steps or 0)
        branch = {"branch": self.branch, "branch_progress": list(self.branch_progress)}
        self.disk.save(run_index, step, {**content, **branch})

    def load_latest(self, run_index: int) -> dict[str, Any] | None:
        """The state from which a run continues: where it was interrupted, or the branch; None if there is none."""
        content, self.interrupted = self.interrupted, None
        if content is not None:
            return content
        return None if self.branch is None else unpack_checkpoint(self.branch)

    def find_latest_step(self, run_index: int) -> int | None:
        """Step of the latest checkpoint on the disk, or None."""
        return self.disk.find_latest_step(run_index)

    def _is_kept(self, step: int) -> bool:
        total_steps = self.progress.total_steps or 0
        is_branch = self.branch_progress[1] != total_steps and self.progress.fraction >= self.start
        return step == total_steps or is_branch
