"""States of the trainings of a pilot, in main memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flatbayes.core import TrainingProgress
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.early_stopping import pack_checkpoint, unpack_checkpoint


@dataclass
class PilotCheckpoints(CheckpointManager):
    """States of a run at the branch and at the end, in main memory.

    Early stopping makes a run shorter and takes it back; the state at the branch is then taken anew.

    Attributes:
        start: Fraction of training at which the branch is.
        progress: Progress of the run.
        branch: State at the first step from this fraction on; None before.
        branch_progress: Step of that state, and the number of steps of the training.
        end: State after the last step.
    """

    start: float = 1.0
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    branch: Tensor | None = None
    branch_progress: tuple[int, int] = (0, 0)
    end: Tensor | None = None

    def start_from(self, other: "PilotCheckpoints") -> tuple[float, float]:
        """Continue from the state of another run at its branch; return its gradients and seconds until there."""
        self.branch, self.branch_progress = other.branch, other.branch_progress
        content = self.load_latest(0) or {}
        return float(content["num_gradients"]), float(content["run_seconds"])

    def is_candidate_step(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether the state after this step, counted from 1, is that of the branch or of the end."""
        total_steps = self.progress.total_steps or 0
        is_end = step == total_steps
        return is_end or (self.branch_progress[1] != total_steps and step >= self.start * total_steps)

    def is_due(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether the state after this step, counted from 1, is that of the branch or of the end."""
        return self.is_candidate_step(step, epoch_ended=epoch_ended)

    def save(self, run_index: int, step: int, content: Mapping[str, Any]) -> None:
        """Keep a copy of the state."""
        packed = pack_checkpoint(content)
        if step == self.progress.total_steps:
            self.end = packed
        else:
            self.branch, self.branch_progress = packed, (step, self.progress.total_steps or 0)

    def load_latest(self, run_index: int) -> dict[str, Any] | None:
        """The state at the branch, from which a run continues; None if there is none."""
        return None if self.branch is None else unpack_checkpoint(self.branch)
