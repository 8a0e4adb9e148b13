"""Choice of the radius of a flatness on validation data, by a pilot that becomes the training: `rho="auto"`.

The first network is trained plain. From the state at a step late in training it is trained again with one radius, and
then with a larger or a smaller one:

    plain:      w_0 -> ... -> w_branch -> ... -> w_end       radius 0
    radius r:                 w_branch -> ... -> w_end       the usual radius of the flatness
    radius r':                w_branch -> ... -> w_end       r times FACTOR if r is better than 0, else r / FACTOR

The end with the lowest validation NLL is the result of the training, so that nothing is trained twice. Further
members of an ensemble are trained with its radius, from the same step on. The step is such that all gradients are
together at most `MAX_COST` times those of the same training with a fixed radius.
"""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch

from flatbayes.core.files import read_json, write_json
from flatbayes.flatness import Flatness, Plain
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import RADIUS_FILE, CheckpointManager
from flatbayes.training.loop import train
from flatbayes.training.members import list_groups
from flatbayes.training.radius import (
    FACTOR,
    NUM_PILOT_RADII,
    RadiusChoice,
    compute_pilot_fraction,
    describe_choice,
    find_radius_name,
    make_candidate,
)
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import make_session
from flatbayes.training.setup import TrainingSetup


@dataclass
class PilotCheckpoints(CheckpointManager):
    """States of a run after some steps, in main memory.

    Attributes:
        steps: Numbers of steps after which the state is kept.
        contents: Serialised states by the number of steps.
    """

    steps: frozenset[int] = frozenset()
    contents: dict[int, bytes] = field(default_factory=dict)

    def is_candidate_step(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether the state after this step, counted from 1, is kept."""
        return step in self.steps

    def is_due(self, step: int, *, epoch_ended: bool) -> bool:
        """Whether the state after this step, counted from 1, is kept."""
        return step in self.steps

    def save(self, run_index: int, step: int, content: Mapping[str, Any]) -> None:
        """Keep a copy of the state."""
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        self.contents[step] = buffer.getvalue()

    def load_latest(self, run_index: int) -> dict[str, Any] | None:
        """The last state; None if there is none."""
        return self.load(max(self.contents)) if self.contents else None

    def load(self, step: int) -> dict[str, Any]:
        """The state after a step that is kept."""
        content: dict[str, Any] = torch.load(io.BytesIO(self.contents[step]), map_location="cpu", weights_only=True)
        return content


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
    obstacle = pilot.find_branch_step()
    if obstacle is not None:
        reason = f"{name} is {usual:g}, its usual value: {obstacle}."
        return RadiusChoice(name, usual, 0.0, (), reason)
    callback.on_message(
        f"A pilot chooses {name} on validation data: the last {1 - pilot.start:.0%} of the training of a network is "
        f"run with 0 and {NUM_PILOT_RADII} other values."
    )
    plain, first = pilot.train_candidate(0.0), pilot.train_candidate(usual)
    pilot.train_candidate(usual * FACTOR if order_score(first) < order_score(plain) else usual / FACTOR)
    scores = {radius: pilot.outcomes[radius].score for radius in sorted(pilot.outcomes)}
    best = min(scores, key=lambda radius: order_score(scores[radius]))
    manager.preload(index, pilot.get_result(best))
    return RadiusChoice(
        name, best, pilot.start, tuple(scores.items()), describe_choice(name, best, pilot.start, scores)
    )


def order_score(score: float | None) -> float:
    """A score to be minimised, infinity if training diverged."""
    return math.inf if score is None else score


@dataclass
class PilotOutcome:
    """A training of the pilot.

    Attributes:
        score: Validation NLL of the first network at the end; None if training diverged.
        checkpoints: State at the branch, and at the end.
        num_gradients: Gradients from the first step on.
        seconds: Duration from the first step on.
        caught: Warnings.
    """

    score: float | None
    checkpoints: PilotCheckpoints
    num_gradients: float
    seconds: float
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
        branch_step: Step after which radii differ.
        total_steps: Number of steps.
        outcomes: Finished trainings by radius.
    """

    setups: Sequence[TrainingSetup]
    flatness: Flatness
    index: int
    members: Sequence[int]
    progress: Callback
    branch_step: int = 0
    total_steps: int = 0
    outcomes: dict[float, PilotOutcome] = field(default_factory=dict)

    @property
    def start(self) -> float:
        """Fraction of training after which radii differ."""
        return self.branch_step / self.total_steps

    def find_branch_step(self) -> str | None:
        """Set the steps, or return why no radius can be chosen."""
        run = self._create_run(Plain())
        self.total_steps = run.config.num_epochs * len(run.batches)
        if self.total_steps == 0:
            return "there is no training"
        if run.validate is None:
            return "there are no validation data to choose it on"
        unit = 1 if run.batches.can_skip_batches else len(run.batches)  # else a run continues after an epoch only
        self.branch_step = unit * ceil((1 - compute_pilot_fraction(self.flatness)) * self.total_steps / unit)
        if not 0 < self.branch_step < self.total_steps:
            return f"a training of {self.total_steps} steps is too short to repeat its end"
        return None

    def train_candidate(self, radius: float) -> float | None:
        """Train with a radius, and return the validation NLL of the first network; None if training diverges.

        Raises:
            RuntimeError: Plain training diverges before radii differ.
        """
        manager = PilotCheckpoints(steps=frozenset({self.branch_step, self.total_steps}))
        if radius:
            manager.contents[self.branch_step] = self.outcomes[0.0].checkpoints.contents[self.branch_step]
        run = self._create_run(make_candidate(self.flatness, radius, self.start))
        session = make_session(run.config, self.setups[0].fabric, manager, self.index)
        self.progress.on_run_start(self.members[0], 1, self.total_steps)
        score = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                train(run, session, self.progress)
                score = self._validate(run)
            except (RuntimeError, ValueError):
                if self.branch_step not in manager.contents:
                    raise
        status = run.status
        self.outcomes[radius] = PilotOutcome(score, manager, status.num_gradients, status.elapsed_seconds(), caught)
        return score

    def get_result(self, radius: float) -> dict[str, Any]:
        """The state at the end of a training, with the cost of the whole pilot; its warnings are shown.

        Raises:
            RuntimeError: All trainings have diverged.
        """
        outcome, branch = self.outcomes[radius], self.outcomes[0.0].checkpoints.load(self.branch_step)
        if self.total_steps not in outcome.checkpoints.contents:
            raise RuntimeError(
                "Every training of the pilot for the radius has diverged, with radius 0 too. Try a lower learning "
                "rate, or clipping (--optimization.clip_norm 1)."
            )
        for warning in outcome.caught:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        others = [other for other in self.outcomes.values() if other is not outcome]
        return outcome.checkpoints.load(self.total_steps) | {
            "num_gradients": outcome.num_gradients + sum(x.num_gradients - branch["num_gradients"] for x in others),
            "run_seconds": outcome.seconds + sum(x.seconds - branch["run_seconds"] for x in others),
        }

    def _validate(self, run: TrainingRun) -> float | None:
        assert run.validate is not None
        nll = run.validate(run.leader.get_state().model)[0]["val_nll"]
        return nll if math.isfinite(nll) else None

    def _create_run(self, flatness: Flatness) -> TrainingRun:
        users = [setup.factory for setup in self.setups if self.members in setup.groups]
        first, *others = [replace(factory, flatness=flatness) for factory in users]
        return first.create_run(self.members, self.setups[0].fabric, others)
