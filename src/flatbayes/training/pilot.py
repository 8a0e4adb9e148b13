"""Choice of the radius of a flatness on validation data, by a pilot that becomes the training: `rho="auto"`.

The first network is trained plain. From the state at a step late in training it is trained again with a moderate and
with a large radius:

    plain:      w_0 -> ... -> w_branch -> ... -> w_end       radius 0
    radius r:                 w_branch -> ... -> w_end       for each of RADIUS_FACTORS times the usual radius

The end with the lowest validation NLL, or radius 0 if that is hardly higher, is the result of the training, so
that nothing is trained twice. Further members of an ensemble are trained with its radius, from the same step on.
The step is such that all gradients are together at most `MAX_COST` times those of the same training with a fixed
radius.

Where plain training stops early, so that gradients are left for a whole training, radii are tried in whole trainings.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from flatbayes.core.files import read_json, write_json
from flatbayes.flatness import Flatness, Plain
from flatbayes.training.callbacks.callback import Callback, CallbackList
from flatbayes.training.checkpoint import RADIUS_FILE, CheckpointManager
from flatbayes.training.early_stopping import unpack_checkpoint
from flatbayes.training.loop import train
from flatbayes.training.members import list_groups
from flatbayes.training.pilot_checkpoints import PilotCheckpoints
from flatbayes.training.radius import (
    MAX_COST,
    RADIUS_FACTORS,
    RadiusChoice,
    compute_pilot_fraction,
    describe_choice,
    find_radius_name,
    get_active_flatness,
    make_candidate,
    select_radius,
)
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import make_session
from flatbayes.training.setup import TrainingSetup


def resolve_radius(
    setups: Sequence[TrainingSetup], manager: CheckpointManager, callback: Callback, progress: Callback
) -> Sequence[TrainingSetup]:
    """The prepared fits with a radius chosen on validation data, where it was to be chosen.

    The pilot trains the networks of the first group; the manager gets their state at the end of training.

    Args:
        setups: Prepared fits whose trainings are equal.
        manager: Checkpoints of the fits. If they have a choice, it is taken.
        callback: Gets a message about the choice.
        progress: Called after every step of the pilot.

    Raises:
        RuntimeError: Plain training diverges before radii differ.
    """
    factory = setups[0].factory
    if factory.auto_flatness is None:
        return setups
    path = None if manager.checkpoints is None else manager.checkpoints.folder / RADIUS_FILE
    stored = setups[0].world.read_on_main(lambda: read_json(path) if path is not None and path.is_file() else None)
    record = stored if isinstance(stored, dict) else None
    if record is None:
        record = choose_radius(setups, manager, callback, progress).to_dict()
        if path is not None and manager.is_writer:
            write_json(path, record)
    callback.on_message(str(record["reason"]))
    value, start = float(str(record["value"])), float(str(record["start"]))
    flatness = make_candidate(factory.auto_flatness, value, start)
    return [
        replace(
            setup,
            factory=replace(setup.factory, flatness=flatness, auto_flatness=None),
            info=setup.info | {"radius": record},
        )
        for setup in setups
    ]


def choose_radius(
    setups: Sequence[TrainingSetup], manager: CheckpointManager, callback: Callback, progress: Callback
) -> RadiusChoice:
    """Run the pilot; the arguments are those of `resolve_radius`."""
    flatness, (index, members) = setups[0].factory.auto_flatness or Plain(), list_groups(setups)[0]
    name, usual = find_radius_name(flatness), flatness.reference_radius
    pilot = Pilot(setups, flatness, index, members, progress)
    obstacle = pilot.find_obstacle()
    if obstacle is None:
        callback.on_message(f"A pilot chooses {name} on validation data, 0 among the values.")
        obstacle = pilot.train_plain()
    if obstacle is not None:
        reason = f"{name} is {usual:g}, its usual value: {obstacle}."
        return RadiusChoice(name, usual, 0.0, (), reason)
    for factor in RADIUS_FACTORS:
        pilot.train_candidate(usual * factor)
    scores = pilot.scores
    best = select_radius(scores)
    manager.preload(index, pilot.get_result(best))
    reason = describe_choice(name, best, pilot.start, scores)
    return RadiusChoice(name, best, pilot.start, tuple(scores.items()), reason)


class BudgetError(RuntimeError):
    """A training of a pilot has used up its gradients."""


class BudgetGuard(Callback):
    """Ends a training of a pilot that takes more gradients than are left.

    Args:
        run: The run.
        limit: Largest number of gradients from its first step on.
    """

    def __init__(self, run: TrainingRun, limit: float) -> None:
        self._run, self._limit = run, limit * (1 + 1e-9)

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
        end_score: Validation NLL of the first network at the end; None if training diverged.
        best_score: The lowest one of all evaluations, with early stopping.
        checkpoints: State at the branch, and at the end.
        num_gradients: Gradients from the first step on.
        seconds: Duration from the first step on.
        is_finished: Whether the budget has not ended it.
        caught: Warnings.
    """

    end_score: float | None
    best_score: float | None
    checkpoints: PilotCheckpoints
    num_gradients: float
    seconds: float
    is_finished: bool = True
    caught: Sequence[warnings.WarningMessage] = ()


@dataclass
class Pilot:
    """Trainings of a group of members that differ in the radius.

    Attributes:
        setups: The prepared fits.
        flatness: The flatness whose radius is chosen.
        index: Index of the run of the group.
        members: The members.
        progress: Called after every step.
        start: Fraction of training after which radii differ; 0 if they are tried in whole trainings.
        num_steps: Number of steps without early stopping.
        outcomes: Finished trainings by radius.
    """

    setups: Sequence[TrainingSetup]
    flatness: Flatness
    index: int
    members: Sequence[int]
    progress: Callback
    start: float = 0.0
    num_steps: int = 0
    outcomes: dict[float, PilotOutcome] = field(default_factory=dict)

    @property
    def scores(self) -> dict[float, float | None]:
        """Validation NLL by radius, of trainings that the budget has not ended: that at the end.

        With early stopping there is the lowest one of all evaluations too, which is that of posteriors without
        snapshots; those with snapshots are near the end. A radius has the difference from radius 0 that is worse. So
        the choice depends on the training alone, and posteriors can share it.
        """
        plain, scores = self.outcomes[0.0], dict[float, float | None]()
        for radius, x in sorted(self.outcomes.items()):
            scores[radius] = x.best_score
            if not (
                x.end_score is None or x.best_score is None or plain.end_score is None or plain.best_score is None
            ):
                excess = x.end_score - plain.end_score - (x.best_score - plain.best_score)
                scores[radius] = x.best_score + max(0.0, excess)
            if not x.is_finished:
                del scores[radius]
        return scores

    @property
    def budget(self) -> float:
        """Largest number of gradients of the pilot."""
        return MAX_COST * self.flatness.gradients_per_step * self.num_steps * len(self.members)

    @property
    def num_gradients(self) -> float:
        """Number of gradients so far."""
        plain, others = self.outcomes[0.0], [x for radius, x in self.outcomes.items() if radius]
        return plain.num_gradients + sum(other.num_gradients - self._branch_gradients for other in others)

    def find_obstacle(self) -> str | None:
        """Why no radius can be chosen; None if one can. Sets the number of steps and the first fraction to try."""
        run = self._create_run(Plain())
        self.num_steps = run.config.num_epochs * len(run.batches)
        self.start = 1 - compute_pilot_fraction(self.flatness)
        if run.config.stops_early:  # which may go back from here, and is to see plain training before
            self.start = max(self.start, run.config.collection.start_fraction)
        if self.num_steps == 0:
            return "there is no training"
        return "there are no validation data to choose it on" if run.validate is None else None

    def train_plain(self) -> str | None:
        """Train with radius 0, and return why no other radius can be tried; None if one can.

        Raises:
            RuntimeError: The training diverges before radii differ.
        """
        self.train_candidate(0.0)
        checkpoints = self.outcomes[0.0].checkpoints
        is_whole = (
            self.setups[0].factory.config.stops_early and self.num_gradients + self._max_cost(0.0) <= self.budget
        )
        if is_whole:
            self.start = 0.0
            return None
        if checkpoints.branch is None:
            return f"a training of {self.num_steps} steps is too short to repeat its end"
        self.start = checkpoints.branch_progress[0] / checkpoints.branch_progress[1]
        return None

    def train_candidate(self, radius: float) -> None:
        """Train with a radius.

        Raises:
            RuntimeError: Plain training diverges before radii differ.
        """
        run = self._create_run(make_candidate(self.flatness, radius, self.start))
        manager = PilotCheckpoints(start=self.start or 1.0, progress=run.status.progress)
        if radius and self.start > 0:
            branch = self.outcomes[0.0].checkpoints
            manager.branch, manager.branch_progress = branch.branch, branch.branch_progress
        session = make_session(run.config, self.setups[0].fabric, manager, self.index)
        limit = self.budget - self.num_gradients + self._branch_gradients if radius else math.inf
        self.progress.on_run_start(self.members[0], 1, self.num_steps)
        score, is_finished = None, True
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                train(run, session, CallbackList([self.progress, BudgetGuard(run, limit)]))
                score = self._validate(run)
            except BudgetError:
                is_finished = False
            except (RuntimeError, ValueError):
                if manager.branch is None and not radius:
                    raise
        status = run.status
        best = score if score is None or status.best is None else min(score, status.best.val_nll)
        seconds = status.elapsed_seconds()
        self.outcomes[radius] = PilotOutcome(score, best, manager, status.num_gradients, seconds, is_finished, caught)

    def get_result(self, radius: float) -> dict[str, Any]:
        """The state at the end of a training, with the cost of the whole pilot; its warnings are shown.

        Raises:
            RuntimeError: All trainings have diverged.
        """
        outcome = self.outcomes[radius]
        if outcome.checkpoints.end is None:
            raise RuntimeError(
                "Every training of the pilot for the radius has diverged, with radius 0 too. Try a lower learning "
                "rate, or clipping (--optimization.clip_norm 1)."
            )
        for warning in outcome.caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        others = [other for other in self.outcomes.values() if other is not outcome]
        shared = 0.0 if self.start == 0 else self._load_branch()["run_seconds"]
        return unpack_checkpoint(outcome.checkpoints.end) | {
            "num_gradients": self.num_gradients,
            "run_seconds": outcome.seconds + sum(other.seconds - shared for other in others),
        }

    @property
    def _branch_gradients(self) -> float:
        return 0.0 if self.start == 0 else float(self._load_branch()["num_gradients"])

    def _load_branch(self) -> dict[str, Any]:
        branch = self.outcomes[0.0].checkpoints.branch
        assert branch is not None
        return unpack_checkpoint(branch)

    def _max_cost(self, start: float) -> float:
        """Gradients of a training from a fraction on, without early stopping."""
        active = get_active_flatness(self.flatness) if start > 0 else self.flatness
        return (1 - start) * self.num_steps * len(self.members) * active.gradients_per_step

    def _validate(self, run: TrainingRun) -> float | None:
        assert run.validate is not None
        nll = run.validate(run.leader.get_state().model)[0]["val_nll"]
        return nll if math.isfinite(nll) else None

    def _create_run(self, flatness: Flatness) -> TrainingRun:
        users = [setup.factory for setup in self.setups if self.members in setup.groups]
        first, *others = [replace(factory, flatness=flatness) for factory in users]
        return first.create_run(self.members, self.setups[0].fabric, others)
