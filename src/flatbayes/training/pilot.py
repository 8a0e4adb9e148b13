"""Trainings that differ in what is chosen on validation data, within a budget of gradients; the best is the training.

    plain:      w_0 -> ... -> w_branch -> ... -> w_end       radius 0, with stronger and stronger priors
    radius r:                 w_branch -> ... -> w_end       from the state at a step late in training

All gradients are together at most `MAX_COST` times those of the same training with nothing to choose. The state at
the end of the best training is the result, so that nothing is trained twice.
"""

import math
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flatbayes.flatness import Flatness
from flatbayes.training.callbacks.callback import Callback, CallbackList
from flatbayes.training.candidates import Candidate, Score
from flatbayes.training.early_stopping import unpack_checkpoint
from flatbayes.training.loop import train
from flatbayes.training.members import make_interrupted
from flatbayes.training.pilot_checkpoints import PilotCheckpoints
from flatbayes.training.radius import MAX_COST, compute_pilot_fraction
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import make_session
from flatbayes.training.setup import TrainingSetup

ROUNDING = 1 + 1e-9


class BudgetError(RuntimeError):
    """A training of a pilot has used up its gradients."""


class BudgetGuard(Callback):
    """Ends a training of a pilot that takes more gradients than are left.

    Args:
        run: The run.
        limit: Largest number of gradients from its first step on.
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
        caught: Warnings.
        error: What ended it, such as a loss that is not finite; None if nothing did.
    """

    score: Score
    checkpoints: PilotCheckpoints
    num_gradients: float
    seconds: float
    stopped_early: bool = False
    is_finished: bool = True
    caught: Sequence[warnings.WarningMessage] = ()
    error: Exception | None = None


@dataclass
class Pilot:
    """Trainings of a group of members that differ in radius and prior.

    Attributes:
        setups: The prepared fits.
        index: Index of the run of the group.
        members: The members.
        progress: Called after every step.
        outcomes: Finished trainings.
        num_steps: Number of steps without early stopping.
        num_data: Number of training examples.
        has_validation: Whether there are validation data.
        start: Fraction of training after which radii differ, unless they are tried in whole trainings.
    """

    setups: Sequence[TrainingSetup]
    index: int
    members: Sequence[int]
    progress: Callback
    outcomes: dict[Candidate, PilotOutcome] = field(default_factory=dict)
    num_steps: int = field(init=False)
    num_data: int = field(init=False)
    has_validation: bool = field(init=False)
    start: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        run, flatness = self._create_run(Candidate()), self.setups[0].factory.auto_flatness
        self.num_steps, self.num_data = run.config.num_epochs * len(run.batches), run.batches.num_data
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
        """Train a candidate.

        Args:
            candidate: The candidate.
            branch: The training from whose state at the branch it starts; None for a whole training.

        Raises:
            RuntimeError: The first training diverges before radii differ.
            Interrupted: Ctrl-C was pressed.
        """
        run = self._create_run(candidate)
        manager = PilotCheckpoints(start=self.start, progress=run.status.progress)
        shared = 0.0, 0.0
        if branch is not None:
            shared = manager.start_from(self.outcomes[branch].checkpoints)
        session = make_session(run.config, self.setups[0].fabric, manager, self.index)
        limit = self.budget - self.num_gradients + shared[0] if self.outcomes else math.inf
        self.progress.on_run_start(self.members[0], 1, self.num_steps)
        score, is_finished, failure = None, True, None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                train(run, session, CallbackList([self.progress, BudgetGuard(run, limit)]))
                score = self._validate(run)
            except BudgetError:
                is_finished = False
            except (RuntimeError, ValueError) as error:
                if manager.branch is None and not self.outcomes:
                    raise
                failure = error
            except KeyboardInterrupt as stop:
                number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
                raise make_interrupted(self.setups[0], [], run, session, self.members, number) from None
        status = run.status
        best = score if score is None or status.best is None else min(score, status.best.val_nll)
        outcome = self.outcomes[candidate] = PilotOutcome(
            Score(score, best),
            manager,
            status.num_gradients - shared[0],
            status.elapsed_seconds() - shared[1],
            status.best_epoch is not None,
            is_finished,
            caught,
            failure,
        )
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
        for warning in outcome.caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return unpack_checkpoint(outcome.checkpoints.end) | {
            "num_gradients": self.num_gradients,
            "run_seconds": sum(other.seconds for other in self.outcomes.values()),
        }

    def _validate(self, run: TrainingRun) -> float | None:
        assert run.validate is not None
        nll = run.validate(run.leader.get_state().model)[0]["val_nll"]
        return nll if math.isfinite(nll) else None

    def _create_run(self, candidate: Candidate) -> TrainingRun:
        users = [setup.factory for setup in self.setups if self.members in setup.groups]
        first, *others = [candidate.apply_to(factory) for factory in users]
        return first.create_run(self.members, self.setups[0].fabric, others)
