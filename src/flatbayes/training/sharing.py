"""Several posteriors from one training: those that need the same networks share the steps that train them.

    for each member that a posterior needs:
        train it once; every posterior records snapshots after the steps that its own configuration says
        for each posterior: finalize it on its own copy of the network

Every posterior ends in the same numbers as with a training of its own. Memory is that of all of them together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from flatbayes.core import State
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.callbacks.callback import Callback, Record
from flatbayes.training.checkpoint import CheckpointManager, Checkpoints
from flatbayes.training.choices import resolve_choices
from flatbayes.training.compatibility import check_collection, check_compatibility, check_initial_weights
from flatbayes.training.config import TrainingConfig
from flatbayes.training.cost import CostMeter
from flatbayes.training.fit import describe_results
from flatbayes.training.group import GroupResult
from flatbayes.training.identity import describe_branch, describe_object, describe_training
from flatbayes.training.members import train_members
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.radius import check_pilot
from flatbayes.training.recording import Recordings
from flatbayes.training.setup import TrainingSetup, complete_factory, prepare_runs
from flatbayes.training.trial import run_trial


@dataclass(frozen=True)
class FitOutcome:
    """Result of the fit of one of several posteriors: the fitted posterior, or an error.

    Attributes:
        fitted: The fitted posterior; None if the fit failed.
        records: Records of the epochs of its first network.
        error: Why the fit failed; None if it did not.
    """

    fitted: FittedPosterior | None = None
    records: Sequence[Record] = ()
    error: Exception | None = None


def fit_together(
    model: nn.Module | ModelFactory,
    data: Any,
    methods: Sequence[tuple[Posterior, TrainingConfig]],
    flatness: Flatness,
    *,
    val: Any = None,
    seed: int = 0,
    callback: Callback | None = None,
    checkpoints: Checkpoints | None = None,
    recordings: Recordings | None = None,
) -> list[FitOutcome]:
    """Fit several posteriors with one training of every network, on one device.

    An ensemble's member of an index is the same network as that of another ensemble, or for index 0 as that of a
    single network, and is trained once.

    Args:
        model: As for `fit`.
        data: As for `fit`.
        methods: Posteriors with their configurations, which may differ in `collection` only. Their trainings must be
            equal by `describe_training`.
        flatness: Where gradients are taken.
        val: As for `fit`.
        seed: Seed of everything random.
        callback: Called after every step and epoch.
        checkpoints: As for `fit`. The same call, or one with some of the posteriors, continues from them; other
            posteriors replace them.
        recordings: Recordings of earlier trainings of the same networks with the same `collection`, to which those of
            this call are added. Posteriors of a recorded trajectory are fitted without a training step.

    Returns:
        One outcome for each posterior, equal to that of `fit`; the error of one does not change the others.

    Raises:
        ValueError: The trainings of the posteriors differ.
        Exception: What ended a training, if it is neither an error of a posterior nor a RuntimeError or ValueError.
    """
    check_same_training(methods, flatness)
    outcomes: dict[str, FitOutcome] = {}
    setups: dict[str, TrainingSetup] = {}
    others: list[tuple[Posterior, TrainingConfig]] = []
    for posterior, config in methods:
        name = describe_branch(posterior, config)
        if name in setups or name in outcomes:
            continue
        first = next(iter(setups.values()), None)
        try:
            setup = prepare_setup(model, data, posterior, flatness, config, seed, first, val)
        except Exception as error:  # the others are fitted all the same
            outcomes[name] = FitOutcome(error=error)
            continue
        if first is None or has_same_trajectory(setup.factory.posterior, first.factory.posterior):
            setups[name] = setup
        else:
            others.append((posterior, config))
    if others:  # which differ with this network, such as a dropout rate that it does not give
        separate = fit_together(model, data, others, flatness, val=val, seed=seed, callback=callback)
        outcomes |= {describe_branch(*method): outcome for method, outcome in zip(others, separate, strict=True)}
    if setups:
        trained = train_setups([*setups.values()], callback, checkpoints, recordings)
        outcomes |= dict(zip(setups, trained, strict=True))
    return [outcomes[describe_branch(*method)] for method in methods]


def has_same_trajectory(first: Posterior, second: Posterior) -> bool:
    """Whether two posteriors of equal trainings still have one trajectory, once they are adapted to the network."""
    return first.trajectory == second.trajectory


def check_same_training(methods: Sequence[tuple[Posterior, TrainingConfig]], flatness: Flatness) -> None:
    """Refuse posteriors that are trained in different ways.

    Raises:
        ValueError: The trainings of two posteriors differ.
    """
    first, *others = [describe_training(*method, flatness) for method in methods]
    for (posterior, _), other in zip(methods[1:], others, strict=True):
        if other != first:
            raise ValueError(
                f"{type(methods[0][0]).__name__} and {type(posterior).__name__} cannot share a training: their "
                "trajectory, optimizer or configuration differs. Fit them one by one."
            )


def prepare_setup(
    model: nn.Module | ModelFactory,
    data: Any,
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
    seed: int,
    first: TrainingSetup | None = None,
    val: Any = None,
) -> TrainingSetup:
    """Prepare and try a fit as `fit` does.

    Args:
        model: As for `fit`.
        data: As for `fit`.
        posterior: The posterior.
        flatness: The flatness.
        config: Training hyperparameters.
        seed: Seed of everything random.
        first: Prepared fit of another posterior, whose training data and likelihood are used.
        val: As for `fit`.

    Raises:
        ValueError: As for `fit`.
    """
    if first is not None:
        check_initial_weights(model, posterior, config, has_init=False)
        check_compatibility(posterior, first.factory.flatness, config)
        if first.factory.auto_flatness is not None:
            check_pilot(first.factory.auto_flatness, posterior, config)
        factory = complete_factory(
            replace(first.factory, posterior=posterior, config=config, weight_decay_factor=1.0)
        )
        model_spec = first.info["model"]
    else:
        factory, model_spec = prepare_runs(model, data, posterior, flatness, config, val=val, seed=seed)
    setup = TrainingSetup.create(factory, model_spec, None)
    run_trial(factory, setup.fabric)
    batches = factory.training_data.make_batches(factory.config, seed, setup.fabric)
    check_collection(posterior, factory.config, len(batches))
    return setup


def train_setups(
    setups: Sequence[TrainingSetup],
    callback: Callback | None,
    checkpoints: Checkpoints | None,
    recordings: Recordings | None,
) -> list[FitOutcome]:
    """Train the networks of prepared fits, and make their posteriors.

    Args:
        setups: The prepared fits.
        callback: Called after every step and epoch.
        checkpoints: Where to keep checkpoints.
        recordings: Recordings of the trainings.
    """
    manager = open_checkpoints(setups, checkpoints)
    meter = CostMeter(setups[0].fabric.device)
    setups = resolve_choices(setups, manager, callback or Callback(), Callback())
    results = train_members(setups, manager, callback or Callback(), recordings)
    peak_memory_mb = meter.peak_memory_mb()
    return [
        FitOutcome(error=result) if isinstance(result, Exception) else make_outcome(setup, result, peak_memory_mb)
        for setup, result in zip(setups, results, strict=True)
    ]


def make_outcome(setup: TrainingSetup, results: Sequence[GroupResult], peak_memory_mb: float) -> FitOutcome:
    """The outcome of a fit from the results of its trainings.

    Args:
        setup: The fit.
        results: Its results, one for each training.
        peak_memory_mb: Peak memory of the process in MiB.
    """
    cost = {
        "train_seconds": sum(result.seconds for result in results),
        "gradients": sum(result.num_gradients for result in results),
        "peak_memory_mb": peak_memory_mb,
        "num_posteriors": max(result.num_branches for result in results),
    }
    states: list[State] = [state for result in results for state in result.states]
    fitted = setup.make_final(states, describe_results(setup, results), cost=cost)
    return FitOutcome(fitted, [record for record in results[0].records if record.get("member", 0) == 0])


def open_checkpoints(setups: Sequence[TrainingSetup], checkpoints: Checkpoints | None) -> CheckpointManager:
    """The checkpoints of a training; those of other posteriors are removed.

    Args:
        setups: The fits.
        checkpoints: Where to keep checkpoints.
    """
    factories = [setup.factory for setup in setups]
    own = {"posterior", *vars(factories[0].config)}  # described by the training
    identity: Mapping[str, Any] = {
        **{name: value for name, value in setups[0].identity.items() if name not in own},
        **describe_training(factories[0].posterior, factories[0].config, factories[0].flatness, describe_object),
    }
    branches = [describe_branch(factory.posterior, factory.config) for factory in factories]
    return CheckpointManager.open_shared(checkpoints, identity, branches)
