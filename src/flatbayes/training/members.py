"""Training of the members of ensembles, or of single networks: each once, for all posteriors that need it."""

import signal
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from flatbayes.core import State
from flatbayes.core.names import format_count
from flatbayes.core.randomness import Stream, make_generator, preserve_rng
from flatbayes.prediction import FittedPosterior
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import CheckpointManager
from flatbayes.training.compatibility import check_collection
from flatbayes.training.distributed.workers import train_in_workers
from flatbayes.training.group import GroupOutcome, GroupResult, finalize_states, restore_outcome, train_group
from flatbayes.training.recording import Recording, Recordings
from flatbayes.training.run import TrainingRun
from flatbayes.training.session import Session, make_session
from flatbayes.training.setup import TrainingSetup

VECTORIZED_RUN_INDEX = 9000
"""Index of a run of vectorized members, without their number, beside those of single members."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, SIGTERM or SIGHUP.

    Attributes:
        fitted: The posterior fitted so far: the completed members, or the one that was being trained.
        place: Where it was stopped.
        resume_step: Step of the checkpoint from which the same fit continues; None if it starts again.
        missing: Why the posterior cannot predict yet; empty if it can.
        signal_number: The signal, by which the process ends: SIGINT, SIGTERM or SIGHUP.

    Examples:
        >>> try:
        ...     fitted = fit(MLP, data, MAP(), config=config)
        ... except Interrupted as interruption:  # after Ctrl-C
        ...     fitted = interruption.fitted
        >>> fitted.predict(inputs).mean.shape
        torch.Size([100, 10])
    """

    def __init__(
        self,
        place: str,
        fitted: FittedPosterior,
        resume_step: int | None = None,
        missing: str = "",
        signal_number: int = signal.SIGINT,
    ) -> None:
        ability = f"cannot predict yet: {missing}" if missing else "can predict"
        kept = (
            "No checkpoint was kept, and the same fit starts again"
            if resume_step is None
            else f"The same fit with its checkpoints continues after step {resume_step}"
        )
        super().__init__(f"stopped {place}; the posterior so far (`fitted` of this exception) {ability}. {kept}.")
        self.fitted = fitted
        self.place = place
        self.resume_step = resume_step
        self.missing = missing
        self.signal_number = signal_number


def train_members(
    setups: Sequence[TrainingSetup],
    manager: CheckpointManager,
    callback: Callback,
    recordings: Recordings | None,
) -> list[list[GroupResult] | Exception]:
    """Train the members of ensembles, or single networks, in order, and each of them once for all posteriors.

    Recordings are replayed, or made and added; members whose result is in a checkpoint are not trained again.

    Returns:
        The results of every fit, or its error. The error of one fit does not change the results of the others.

    Raises:
        Interrupted: Ctrl-C was pressed.
        Exception: What ended a training, if it is neither an error of a posterior nor a RuntimeError or ValueError.
    """
    results: list[list[GroupResult]] = [[] for _ in setups]
    errors: dict[int, Exception] = {}
    factory, groups = setups[0].factory, list_groups(setups)
    trained: dict[int, dict[str, Any]] = {}
    if factory.config.distribution.members == "workers" and len(groups) > 1:
        missing = [index for index, _ in groups if not (manager.load_result(index) or manager.is_preloaded(index))]
        trained = train_in_workers(factory, missing, manager.checkpoints)
    for index, members in groups:
        users = [k for k, setup in enumerate(setups) if members in setup.groups and k not in errors]
        if not users:
            continue
        users_setups = [setups[k] for k in users]
        run = users_setups[0].factory.create_run(
            members, setups[0].fabric, [setup.factory for setup in users_setups[1:]]
        )
        for k in users:
            message = check_collection(setups[k].factory.posterior, setups[k].factory.config, len(run.batches))
            if message is not None and not results[k]:
                callback.on_message(message)
        num_members = max(setup.factory.posterior.num_members for setup in users_setups)
        callback.on_run_start(members[0], num_members if len(members) == 1 else 1, run.total_steps)
        saved = trained.get(index) or setups[0].world.read_on_main(partial(manager.load_result, index))
        if saved is not None:
            outcomes = restore_outcomes(saved, users_setups, members, callback)
        else:
            session = make_session(factory.config, setups[0].fabric, manager, index)
            try:
                recording = None if recordings is None else recordings.setdefault(tuple(members), Recording())
                by_name = train_group(users_setups[0].factory, run, session, callback, recording)
                outcomes = [by_name[branch.name] for branch in run.branches]
            except KeyboardInterrupt as stop:
                raise make_interrupted(stop, users_setups[0], results[users[0]], run, session) from None
            except Exception as error:
                if error is not run.leader.error and not isinstance(error, RuntimeError | ValueError):
                    raise  # such as a full disk, which concerns the other fits too
                outcomes = [branch.error or error for branch in run.branches]
        for k, outcome in zip(users, outcomes, strict=True):
            if isinstance(outcome, Exception):
                errors[k] = outcome
            else:
                results[k].append(outcome)
    return [errors.get(k, result) for k, result in enumerate(results)]


def list_groups(setups: Sequence[TrainingSetup]) -> list[tuple[int, Sequence[int]]]:
    """The distinct groups of members of several fits, each with the index of its run, which names its checkpoints."""
    groups = {tuple(members): members for setup in setups for members in setup.groups}
    return sorted(
        (key[0] if len(key) == 1 else VECTORIZED_RUN_INDEX + len(key), members) for key, members in groups.items()
    )


def restore_outcomes(
    saved: Mapping[str, Any], setups: Sequence[TrainingSetup], members: Sequence[int], callback: Callback
) -> list[GroupOutcome]:
    """The saved results of a run for several posteriors; the callback gets the records of the epochs."""
    outcomes = [restore_outcome(saved, setup.factory, members, setup.fabric) for setup in setups]
    records = [outcome.records for outcome in outcomes if isinstance(outcome, GroupResult)]
    callback.on_resume(records[0] if records else [])
    return outcomes


def make_interrupted(
    stop: KeyboardInterrupt,
    setup: TrainingSetup,
    results: Sequence[GroupResult],
    run: TrainingRun,
    session: Session,
) -> KeyboardInterrupt:
    """The interruption of a run, with what was fitted so far.

    The argument of `stop` is the number of the signal, if it was not SIGINT.
    """
    states = [state for result in results for state in result.states] or run.states
    if not states:
        return KeyboardInterrupt()
    missing = ""
    if not results and not run.status.is_trained:  # a trained run would take as long as the first time
        try:
            finalize_states(setup.factory, setup.factory.posterior, states, session)
        except Exception as error:  # the caller must still learn of the interruption
            missing = str(error)
    status, members = run.status, run.status.progress.members
    trained = (
        f"member {members[0] + 1} of {setup.factory.posterior.num_members}"
        if len(members) == 1
        else f"{len(members)} vectorized members"
    )
    place = (
        f"after {status.completed_epochs} of {format_count(run.config.num_epochs, 'epoch')} of {trained}, after step "
        f"{status.progress.step} of {status.progress.total_steps}"
    )
    resume_step = session.manager.find_latest_step(session.run_index)
    missing = (missing or _find_obstacle(setup, states[0])).rstrip(".")
    number = stop.args[0] if stop.args and isinstance(stop.args[0], int) else signal.SIGINT
    return Interrupted(place, setup.make_fitted(states, interrupted=place), resume_step, missing, number)


def _find_obstacle(setup: TrainingSetup, state: State) -> str:
    """Why no network can be drawn from a state; empty if one can."""
    try:
        with preserve_rng(None), setup.factory.posterior.draw(state, make_generator(Stream.DRY_RUN)):
            return ""
    except (RuntimeError, ValueError, KeyError) as error:
        return str(error)
