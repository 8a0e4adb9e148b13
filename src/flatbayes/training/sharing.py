"""Several posteriors from one training: those that need the same networks share the steps that train them.

    for each member that a posterior needs:
        train it once; every posterior records snapshots after the steps that its own configuration says
        for each posterior: finalize it on its own copy of the network

Every posterior ends in the same numbers as with a training of its own. Memory is that of all of them together.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Unpack

from torch import nn
from torch.utils.data import DataLoader, Dataset

from flatbayes.core.components import resolve_component
from flatbayes.core.network_interface import OutputSelector
from flatbayes.data import DataSplits, Standardize
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.arguments import DataOptions, resolve_checkpoints, resolve_config, resolve_data, resolve_model
from flatbayes.training.batches import preserve_loader_state
from flatbayes.training.callbacks.callback import Callback
from flatbayes.training.checkpoint import SHARED_PREFIX, CheckpointFolder, CheckpointManager, Checkpoints
from flatbayes.training.compatibility import check_collection
from flatbayes.training.config import TrainingConfig
from flatbayes.training.config_groups import CollectionConfig
from flatbayes.training.fit import FitOutcome, train_setups
from flatbayes.training.identity import describe_branch, describe_name, describe_object, describe_training
from flatbayes.training.loader_data import LoaderData
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.preparation import check_method, complete_factory, prepare_runs
from flatbayes.training.recording import Recordings
from flatbayes.training.setup import TrainingSetup
from flatbayes.training.trial import NetworkWarning, run_trial
from flatbayes.training.warm_start import PretrainedWeights

Training = dict[str, TrainingSetup]
"""Prepared fits that share a training, by the names of their branches."""


def fit_together(
    model: nn.Module | ModelFactory,
    data: DataSplits | Dataset[Any] | DataLoader[Any],
    posteriors: Sequence[Posterior],
    flatness: Flatness = SAM(),
    config: TrainingConfig | None = None,
    *,
    init: PretrainedWeights | Sequence[PretrainedWeights] | None = None,
    new_head: bool = False,
    freeze: Sequence[str] = (),
    transform: Standardize | None = None,
    likelihood: Likelihood | str | None = None,
    num_data: int | None = None,
    output: OutputSelector | None = None,
    val: Any = None,
    seed: int = 0,
    show_progress: bool | None = None,
    callback: Callback | None = None,
    checkpoints: Checkpoints | CheckpointFolder | None = None,
) -> list[FittedPosterior]:
    """Fit several posteriors, with one training for all that are trained alike.

    MAP, SWAG, Laplace, TFB, MC-Dropout with the dropout layers that a network has, and the first member of an
    ensemble of one of them are the results of one training. Posteriors that are trained in another way, such as SGVB
    or SGLD, have a training of their own. Each posterior is equal to that of `fit`. Training is on one device, whose
    memory holds the snapshots of all posteriors.

    Args:
        model: As for `fit`.
        data: As for `fit`; read once.
        posteriors: The posterior approximations.
        flatness: As for `fit`.
        config: As for `fit`.
        init: As for `fit`.
        new_head: As for `fit`.
        freeze: As for `fit`.
        transform: As for `fit`.
        likelihood: As for `fit`.
        num_data: As for `fit`.
        output: As for `fit`.
        val: As for `fit`.
        seed: As for `fit`.
        show_progress: As for `fit`.
        callback: Called after every step and epoch of every training.
        checkpoints: As for `fit`. The same call, or one with some of the posteriors, continues from them.

    Returns:
        The fitted posteriors, in the order of `posteriors`. `info["cost"]["num_posteriors"]` of each is the number of
        posteriors that its training has served.

    Raises:
        ValueError: As for `fit`, for any of the posteriors, before the first step.
        RuntimeError: As for `fit`. Where one posterior fails after the training, a note names the others; with
            `checkpoints`, the same call without it returns them without a training step.
        OSError, Interrupted: As for `fit`.

    Examples:
        >>> point, swag = fit_together(MLP, data, [MAP(), SWAG(rank=2)], SAM(rho=0.05), config)
        >>> swag.predict(inputs).mean.shape
        torch.Size([100, 10])
    """
    if isinstance(posteriors, Posterior | type | str) or not posteriors:
        raise ValueError(f"posteriors must be a list of at least one, such as [MAP(), SWAG()], got {posteriors!r}.")
    posteriors = [resolve_component(posterior, Posterior, "posterior") for posterior in posteriors]
    config = resolve_config(config, model, init)
    flatness = resolve_component(flatness, Flatness, "flatness")
    methods = [(posterior, config) for posterior in posteriors]
    options = DataOptions(
        init=init,
        new_head=new_head,
        freeze=freeze,
        transform=transform,
        likelihood=likelihood,
        num_data=num_data,
        output=output,
        val=val,
        seed=seed,
    )
    data = resolve_data(data, seed, likelihood)
    trainings, errors = prepare_trainings(resolve_model(model), data, methods, flatness, options)
    for error in errors.values():
        raise error
    checkpoints = resolve_checkpoints(checkpoints)
    by_name = train_all(trainings, checkpoints, callback, show_progress=show_progress, replaces_others=False)
    outcomes = [by_name[describe_branch(*method)] for method in methods]
    fitted = [name for name, outcome in zip(map(describe_name, posteriors), outcomes, strict=True) if outcome.fitted]
    for outcome in outcomes:
        if outcome.error is not None and fitted:
            outcome.error.add_note(f"The other posteriors were fitted: {', '.join(fitted)}.")
    return [outcome.get_fitted() for outcome in outcomes]


def try_fit_together(
    model: nn.Module | ModelFactory,
    data: Any,
    methods: Sequence[tuple[Posterior, TrainingConfig]],
    flatness: Flatness,
    *,
    callback: Callback | None = None,
    checkpoints: Checkpoints | None = None,
    recordings: Recordings | None = None,
    **options: Unpack[DataOptions],
) -> list[FitOutcome]:
    """Fit several posteriors as `fit_together` does, each with a configuration and an error of its own.

    Checkpoints of other posteriors or data are replaced. Recordings are those of earlier trainings of the same
    networks with the same `collection`, to which those of this call are added; posteriors of a recorded trajectory
    are fitted without a training step.

    Returns:
        One outcome for each posterior, equal to that of `fit`; the error of one does not change the others.

    Raises:
        Exception: What ended a training, if it is neither an error of a posterior nor a RuntimeError or ValueError.
    """
    trainings, errors = prepare_trainings(model, data, methods, flatness, options)
    outcomes = {name: FitOutcome(error=error) for name, error in errors.items()}
    outcomes |= train_all(trainings, checkpoints, callback, show_progress=False, recordings=recordings)
    return [outcomes[describe_branch(*method)] for method in methods]


def prepare_trainings(
    model: nn.Module | ModelFactory,
    data: Any,
    methods: Sequence[tuple[Posterior, TrainingConfig]],
    flatness: Flatness,
    options: DataOptions,
) -> tuple[list[Training], dict[str, Exception]]:
    """Prepare and try the fits, before any of them takes a step.

    Returns:
        Prepared fits, those of equal trainings together, and why others cannot be fitted.
    """
    trainings: list[Training] = []
    errors: dict[str, Exception] = {}
    prepared: list[tuple[TrainingConfig, TrainingSetup]] = []
    for posterior, config in methods:
        name, steps = describe_branch(posterior, config), replace(config, collection=CollectionConfig())
        if name in errors or any(name in training for training in trainings):
            continue
        first = next((setup for other, setup in prepared if other == steps), None)
        try:
            setup = prepare_setup(model, data, posterior, flatness, config, first, **options)
        except Exception as error:  # the others are fitted all the same
            errors[name] = error
            continue
        prepared.append((steps, setup))
        for training in trainings:
            if is_same_training(setup, next(iter(training.values())), flatness):
                training[name] = setup
                break
        else:
            trainings.append({name: setup})
    return trainings, errors


def is_same_training(first: TrainingSetup, second: TrainingSetup, flatness: Flatness) -> bool:
    """Whether the networks of two fits are trained alike, now that their posteriors are adapted to the network."""
    descriptions = [
        describe_training(setup.factory.posterior, setup.factory.config, flatness) for setup in (first, second)
    ]
    return descriptions[0] == descriptions[1]


def prepare_setup(
    model: nn.Module | ModelFactory,
    data: Any,
    posterior: Posterior,
    flatness: Flatness,
    config: TrainingConfig,
    first: TrainingSetup | None = None,
    **options: Unpack[DataOptions],
) -> TrainingSetup:
    """Prepare and try a fit as `fit` does.

    `first` is a prepared fit of another posterior, equal but for `collection`, whose data, likelihood and initial
    weights are used.

    Raises:
        ValueError: As for `fit`; or there are several processes.
    """
    if first is not None:
        has_init = bool(first.factory.warm_start.weights) or first.factory.warm_start.new_head
        usual, auto_flatness = check_method(model, posterior, flatness, config, has_init=has_init)
        first.factory.warm_start.check_members(posterior)
        factory = replace(first.factory, posterior=posterior, flatness=usual, auto_flatness=auto_flatness)
        factory = complete_factory(replace(factory, config=config, auto_prior=None, weight_decay_factor=1.0))
        model_spec = first.info["model"]
    else:
        factory, model_spec = prepare_runs(model, data, posterior, flatness, config, **options)
    setup = TrainingSetup.create(factory, model_spec, None)
    if setup.world.size > 1:
        raise ValueError(
            f"Several posteriors are fitted together on one device, and there are {setup.world.size} processes. Call "
            "fit for each of them."
        )
    with warnings.catch_warnings():
        if first is not None:  # whose trial has shown them
            warnings.simplefilter("ignore", NetworkWarning)
        run_trial(factory, setup.fabric)
    batches = factory.training_data.make_batches(factory.config, factory.seed, setup.fabric)
    check_collection(posterior, factory.config, len(batches))
    return setup


def train_all(
    trainings: Sequence[Training],
    checkpoints: Checkpoints | None,
    callback: Callback | None,
    *,
    show_progress: bool | None,
    recordings: Recordings | None = None,
    replaces_others: bool = True,
) -> dict[str, FitOutcome]:
    """Train the networks of prepared fits, and make their posteriors.

    Recordings are those of the first training.

    Returns:
        The outcomes by the names of the branches.
    """
    outcomes: dict[str, FitOutcome] = {}
    for training in trainings:
        setups = [*training.values()]
        manager = open_checkpoints(setups, checkpoints, replaces_others=replaces_others)
        used, data = recordings if training is trainings[0] else None, setups[0].factory.training_data
        # Other trainings read the same loader, and begin in the state in which `fit` would.
        loader = data.loader if isinstance(data, LoaderData) and training is not trainings[-1] else None
        with nullcontext() if loader is None else preserve_loader_state(loader):
            results = train_setups(
                setups, manager, callback, show_progress=show_progress, recordings=used, is_shared=True
            )
        outcomes |= dict(zip(training, results, strict=True))
    return outcomes


def open_checkpoints(
    setups: Sequence[TrainingSetup], checkpoints: Checkpoints | None, *, replaces_others: bool
) -> CheckpointManager:
    """The checkpoints of a training, in a folder of their own."""
    if checkpoints is None:
        return CheckpointManager()
    factories = [setup.factory for setup in setups]
    first, own = factories[0], {"posterior", *vars(factories[0].config)}  # described by the training
    training = describe_training(first.posterior, first.config, first.flatness, describe_object)
    identity: Mapping[str, Any] = {
        **{name: value for name, value in setups[0].identity.items() if name not in own},
        "start": first.warm_start.fingerprint(first.training_data.transform),
        **training,
    }
    digest = hashlib.sha256(json.dumps(training, sort_keys=True).encode()).hexdigest()[:8]
    checkpoints = replace(checkpoints, folder=checkpoints.folder / f"{SHARED_PREFIX}{digest}")
    branches = [describe_branch(factory.posterior, factory.config) for factory in factories]
    return CheckpointManager.open_shared(checkpoints, identity, branches, replaces_others=replaces_others)
