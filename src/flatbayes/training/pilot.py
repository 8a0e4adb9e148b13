"""Trainings that differ in what is chosen on validation data, within a budget of gradients; the best is the training.

    plain:      w_0 -> ... -> w_branch -> ... -> w_end       radius 0, with stronger and stronger priors
    radius r:                 w_branch -> ... -> w_end       from the state at a step late in training

All gradients are together at most `MAX_COST` times those of the same training with nothing to choose. The state at
the end of the best training is the result, so that nothing is trained twice.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from flatbayes.flatness import Flatness
from flatbayes.training.callbacks.callback import Callback, CallbackList
from flatbayes.training.candidates import Candidate, Score, measure_losses
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.early_stopping import unpack_checkpoint
from flatbayes.training.loop import DivergenceWarning, train
from flatbayes.training.members import make_interrupted
from flatbayes.training.pilot_checkpoints import PilotCheckpoints
from flatbayes.training.radius import MAX_COST, compute_pilot_fraction
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import make_session
from flatbayes.training.setup import TrainingSetup

ROUNDING = 1 + 1e-9
PILOT_RUN_INDEX = 8000
"""Index of the first training of a pilot among the runs of a fit, which names its checkpoints."""


class BudgetError(RuntimeError):
    """A training of a pilot has used up its gradients."""


class BudgetGuard(Callback):
    """Ends a training of a pilot that takes more gradients than are left.

    The limit counts from the first step of the run on.
    """

    def __init__(self, run: TrainingRun, limit: float) -> None:
        self._run, self._limit = run, limit * ROUNDING

    def on_step_end(self, step: int, loss: torch.Tensor, lr: float) -> None:
        """Count the gradients.

        Raises:
            BudgetError: There are more.
        """
        if self._run.status.num_gradients > self._limit:
            raise BudgetError


@dataclass
class PilotOutcome:
    """A training of the pilot.

    Attributes:
        score: Validation NLL.
        checkpoints: State at the branch, and at the end.
        num_gradients: Gradients, without those before the branch that it starts from.
        seconds: Duration, likewise.
        stopped_early: Whether early stopping has shortened it.
        is_finished: Whether the budget has not ended it.
        messages: Warnings.
        error: What ended it, such as a loss that is not finite; None if nothing did.
    """

    score: Score
    checkpoints: PilotCheckpoints
    num_gradients: float
    seconds: float
    stopped_early: bool = False
    is_finished: bool = True
    messages: Sequence[Warning | str] = ()
    error: Exception | None = None

    def state_dict(self) -> dict[str, Any]:
        """The outcome as tensors and plain data."""
        checkpoints = self.checkpoints
        return {
            "score": [self.score.end, self.score.best, self.score.losses],
            "branch": checkpoints.branch,
            "branch_progress": list(checkpoints.branch_progress),
            "end": checkpoints.end,
            "num_gradients": self.num_gradients,
            "run_seconds": self.seconds,
            "stopped_early": self.stopped_early,
            "is_finished": self.is_finished,
            "messages": [[isinstance(text, DivergenceWarning), str(text)] for text in self.messages],
            "error": None if self.error is None else str(self.error),
        }

    @staticmethod
    def from_state_dict(content: Mapping[str, Any]) -> "PilotOutcome":
        """The outcome from what `state_dict` returned."""
        checkpoints = PilotCheckpoints(
            branch=content["branch"], branch_progress=tuple(content["branch_progress"]), end=content["end"]
        )
        return PilotOutcome(
            Score(*content["score"]),
            checkpoints,
            content["num_gradients"],
            content["run_seconds"],
            content["stopped_early"],
            content["is_finished"],
            [DivergenceWarning(text) if diverges else text for diverges, text in content["messages"]],
            None if content["error"] is None else RuntimeError(content["error"]),
        )


@dataclass
class Pilot:
    """Trainings of a group of members that differ in radius and prior.

    Attributes:
        setups: The prepared fits.
        members: The members.
        progress: Called after every step.
        manager: Checkpoints of the fit, from which the pilot continues.
        outcomes: Finished trainings.
        num_steps: Number of steps without early stopping.
        num_data: Number of training examples.
        has_validation: Whether there are validation data.
        start: Fraction of training after which radii differ, unless they are tried in whole trainings.
    """

    setups: Sequence[TrainingSetup]
    members: Sequence[int]
    progress: Callback
    manager: CheckpointManager = field(default_factory=CheckpointManager)
    outcomes: dict[Candidate, PilotOutcome] = field(default_factory=dict)
    num_steps: int = field(init=False)
    num_data: int = field(init=False)
    has_validation: bool = field(init=False)
    start: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        run, flatness = self._create_run(Candidate()), self.setups[0].factory.auto_flatness
        self.num_steps, self.num_data = run.total_steps, run.batches.num_data
        self.has_validation = run.validate is not None
        if flatness is not None:
            self.start = 1 - compute_pilot_fraction(flatness)
            if run.config.stops_early:  # which may go back from here, and is to see plain training before
                self.start = max(self.start, run.config.collection.start_fraction)

    @property
    def obstacle(self) -> str | None:
        """Why nothing can be chosen; None if something can."""
        if self.num_steps == 0:
            return "there is no training"
        return None if self.has_validation else "there are no validation data to choose it on"

    @property
    def budget(self) -> float:
        """Largest number of gradients of the pilot."""
        return MAX_COST * self.count_gradients(self.num_steps, self.setups[0].factory.flatness)

    @property
    def num_gradients(self) -> float:
        """Number of gradients so far."""
        return sum(outcome.num_gradients for outcome in self.outcomes.values())

    def can_afford(self, num_gradients: float) -> bool:
        """Whether so many gradients are left."""
        return self.num_gradients + num_gradients <= self.budget * ROUNDING

    def count_gradients(self, num_steps: int, flatness: Flatness) -> float:
        """Number of gradients of all members in so many steps with a flatness."""
        factory = self.setups[0].factory
        return num_steps * len(self.members) * flatness.gradients_per_step * factory.posterior.gradients_per_step

    def train(self, candidate: Candidate, branch: Candidate | None = None) -> PilotOutcome:
        """Train a candidate, or continue its training where the fit was interrupted.

        Without `branch` it is a whole training; otherwise it starts from the state of that one at the branch.

        Raises:
            RuntimeError: The first training diverges before radii differ.
            Interrupted: Ctrl-C was pressed.
        """
        world, run_index = self.setups[0].world, PILOT_RUN_INDEX + len(self.outcomes)
        saved = world.read_on_main(partial(self.manager.load_result, run_index))
        if saved is not None:
            outcome = self.outcomes[candidate] = PilotOutcome.from_state_dict(saved)
            return outcome
        run = self._create_run(candidate)
        checkpoints = PilotCheckpoints(disk=self.manager, start=self.start, progress=run.status.progress)
        shared = (0.0, 0.0) if branch is None else checkpoints.start_from(self.outcomes[branch].checkpoints)
        checkpoints.resume(world.read_on_main(partial(self.manager.load_latest, run_index)))
        session = make_session(run.config, self.setups[0].fabric, checkpoints, run_index)
        limit = self.budget - self.num_gradients + shared[0] if self.outcomes else math.inf
        self.progress.on_run_start(self.members[0], 1, self.num_steps)
        score, losses, is_finished, failure = None, None, True, None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                train(run, session, CallbackList([self.progress, BudgetGuard(run, limit)]))
                score, losses = self._validate(run)
            except BudgetError:
                is_finished = False
            except (RuntimeError, ValueError) as error:
                if checkpoints.branch is None and not self.outcomes:
                    raise
                failure = error
            except KeyboardInterrupt as stop:
                raise make_interrupted(stop, self.setups[0], [], run, session) from None
        status = run.status
        best = score if score is None or status.best is None else min(score, status.best.val_nll)
        outcome = self.outcomes[candidate] = PilotOutcome(
            Score(score, best, losses),
            checkpoints,
            status.num_gradients - shared[0],
            status.elapsed_seconds() - shared[1],
            status.is_stopped_early,
            is_finished,
            [warning.message for warning in caught],
            failure,
        )
        self.manager.save_result(run_index, outcome.state_dict())
        return outcome

    def get_result(self, candidate: Candidate) -> dict[str, Any]:
        """The state at the end of a training, with the cost of the whole pilot; its warnings are shown.

        Raises:
            RuntimeError: All trainings have diverged.
        """
        outcome = self.outcomes[candidate]
        if outcome.checkpoints.end is None:
            raise RuntimeError(
                "Every training of the pilot has failed, that with radius 0 and the given prior too. Try a lower "
                f"learning rate, or clipping (--optimization.clip_norm 1), where it has diverged: {outcome.error}"
            ) from outcome.error
        for message in outcome.messages:
            warnings.warn(message, stacklevel=2)
        return unpack_checkpoint(outcome.checkpoints.end) | {
            "num_gradients": self.num_gradients,
            "run_seconds": sum(other.seconds for other in self.outcomes.values()),
        }

    def remove_checkpoints(self) -> None:
        """Remove the checkpoints of all trainings."""
        for k in range(len(self.outcomes)):
            self.manager.remove_run(PILOT_RUN_INDEX + k)

    def _validate(self, run: TrainingRun) -> tuple[float | None, torch.Tensor | None]:
        """Validation NLL of the first network, and the loss of every validation example."""
        factory = self.setups[0].factory
        return measure_losses(factory.likelihood, factory.training_data.predict_validation(run.states[0].model))

    def _create_run(self, candidate: Candidate) -> TrainingRun:
        users = [setup.factory for setup in self.setups if self.members in setup.groups]
        first, *others = [candidate.apply_to(factory) for factory in users]
        return first.create_run(self.members, self.setups[0].fabric, others)
