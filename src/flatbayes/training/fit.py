"""Fit a posterior over the weights of a model to data."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from flatbayes.core.network_interface import OutputSelector
from flatbayes.data import DataSplits, Standardize
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.arguments import DataOptions, resolve_arguments, resolve_checkpoints
from flatbayes.training.callbacks.callback import Callback, CallbackList, Record, summarize_history
from flatbayes.training.callbacks.console import ProgressBar
from flatbayes.training.checkpoint import CheckpointFolder, CheckpointManager, Checkpoints
from flatbayes.training.choices import resolve_choices
from flatbayes.training.config import TrainingConfig
from flatbayes.training.cost import CostMeter
from flatbayes.training.draw_choice import explain_validation
from flatbayes.training.group import GroupResult
from flatbayes.training.identity import describe_name
from flatbayes.training.members import train_members
from flatbayes.training.model_builder import ModelFactory
from flatbayes.training.preparation import prepare_runs
from flatbayes.training.recording import Recordings
from flatbayes.training.setup import TrainingSetup
from flatbayes.training.trial import run_trial
from flatbayes.training.warm_start import PretrainedWeights

NUM_SCHEDULE_STEPS = 100
"""Steps at which the learning rate is compared to find out whether it is constant."""


@dataclass(frozen=True)
class FitOutcome:
    """Result of a fit: the fitted posterior, or an error.

    The records are those of the epochs of its first network.
    """

    fitted: FittedPosterior | None = None
    records: Sequence[Record] = ()
    error: Exception | None = None

    def get_fitted(self) -> FittedPosterior:
        """The fitted posterior.

        Raises:
            Exception: Why there is none.
        """
        if self.fitted is None:
            raise self.error or RuntimeError("The posterior was not fitted.")
        return self.fitted


def fit(
    model: nn.Module | ModelFactory,
    data: DataSplits | Dataset[Any] | DataLoader[Any],
    posterior: Posterior = SWAG(),
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
) -> FittedPosterior:
    """Fit a posterior over the weights of a model.

    The caller's random state does not change. Two fits with the same seed that differ only in flatness share initial
    weights, batch order, augmentation and noise.

    Args:
        model: A class or function that builds the network (it gets `input_shape`, `num_classes` and `num_outputs` if
            it has these parameters), or a network, which is copied. An ensemble needs a class or function, unless
            `init` has trained weights.
        data: Splits, such as `Digits().load(seed=0)`, or a source, which is read; a map-style torch dataset, which is
            read into memory; a pair `(inputs, targets)` of tensors, arrays or data frames, where classes may be
            texts; or a loader, list or iterable-style dataset with a length of
            `(inputs, targets)` that are ready for the model, where inputs may be a tuple or dictionary of tensors, or
            of dictionaries with an entry `labels`; or graphs of PyTorch Geometric with an entry `y`, as a list, a
            dataset, a loader or a batch. Inputs of splits, datasets and pairs are standardized by the
            training examples. A dataset or pair is used for training as a whole if there is a number of epochs or
            `val`; otherwise 15 % of it, 10 to 2,000 examples, is held out for validation.
        posterior: The posterior approximation.
        flatness: Where gradients are taken; `Plain()` for ordinary training.
        config: Training hyperparameters; by default `FINE_TUNING` with `init` or a model with trained weights (its
            normalization layers have scales that differ), else `TrainingConfig()`.
        init: Trained weights to start from: a network, its state dict, a file with one (safetensors or torch.save),
            or a fitted posterior or its folder, whose mean weights and input transform are used; for an ensemble a
            list of them. Names may have the prefix of a wrapper, such as `module.`.
        new_head: Start the last linear layer, for a class of each pixel the last one that is linear or a convolution,
            from fresh weights if the trained one has another shape: that of `init`, or of a network or function with
            trained weights, which then gets as many outputs as the targets need. The classes of a loader are counted
            up to its largest label, unless there is a `likelihood`.
        freeze: Name patterns of parameters that are not trained, such as `features.*`. BatchNorm layers without
            trained parameters keep their running statistics.
        transform: Standardization of the inputs; by default that of the training examples.
        likelihood: Distribution of the targets given the outputs; by default inferred from the targets: `Categorical`
            for integers and texts, with `single_logit` for two classes and a network of one output; `Gaussian` for
            fractions, `Bernoulli` for several labels of each example, rows of 0 and 1. Targets that may be either
            need one. The name of a distribution, such as "Poisson" or "StudentT", is `DistributionLikelihood.fit` of
            the training targets.
        num_data: Number of labelled examples of a loader. By default they are counted in one pass over the loader
            before training, which also checks all batches.
        output: Which output of a network that returns several is used: a key, an attribute, an index, or a function
            of the output. None uses the logits, or the only tensor.
        val: Validation examples of the same kind as the data, evaluated while training; splits have their own.
        seed: Seed of everything random.
        show_progress: Show a progress bar; by default if standard error is a terminal.
        callback: Called after every step and epoch, in the main process.
        checkpoints: Where to keep checkpoints, or the path of their folder. If the folder has some, training
            continues from them, and on a CPU ends in the same numbers as without interruption. They are kept until
            `checkpoints.remove()`.

    Raises:
        ValueError: Model, data, posterior, flatness and configuration do not go together, or the checkpoints are
            those of another training.
        RuntimeError: The loss or a weight is not finite.
        OSError: A checkpoint cannot be written; earlier ones remain valid.
        Interrupted: Ctrl-C was pressed; it holds what was fitted so far. With `checkpoints`, one of that step was
            written, and the same call continues from it.

    Examples:
        >>> fitted = fit(MLP, data, SWAG(rank=2), SAM(rho=0.05), config)
        >>> fitted.predict(inputs).mean.shape
        torch.Size([100, 10])
        >>> x, y = np.random.rand(100, 4), np.array(["yes", "no"] * 50)
        >>> fit(nn.Linear(4, 2), (x, y), MAP(), config=config).predict(x).mean.shape
        torch.Size([100, 2])
    """
    checkpoints = resolve_checkpoints(checkpoints)
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
    arguments = resolve_arguments(model, data, posterior, flatness, config, options)
    factory, model_spec = prepare_runs(*arguments, **options)
    setup = TrainingSetup.create(factory, model_spec, checkpoints)
    run_trial(factory, setup.fabric)
    return train_prepared(setup, checkpoints, callback, show_progress=show_progress)


def train_prepared(
    setup: TrainingSetup,
    checkpoints: Checkpoints | None,
    callback: Callback | None,
    *,
    show_progress: bool | None = None,
) -> FittedPosterior:
    """Train the networks of a prepared fit, and make its posterior.

    Raises:
        ValueError, RuntimeError, OSError, Interrupted: As for `fit`.
    """
    manager = CheckpointManager.open(checkpoints, setup.identity, is_writer=setup.world.is_main_process)
    (outcome,) = train_setups([setup], manager, callback, show_progress=show_progress)
    return outcome.get_fitted()


def train_setups(
    setups: Sequence[TrainingSetup],
    manager: CheckpointManager,
    callback: Callback | None,
    *,
    show_progress: bool | None = None,
    recordings: Recordings | None = None,
    is_shared: bool = False,
) -> list[FitOutcome]:
    """Train the networks of prepared fits, each once, and make their posteriors.

    With `is_shared` the cost is that of the steps and of what the posterior alone needs, and not of the call.

    Returns:
        One outcome for each fit; the error of one does not change the others.

    Raises:
        Exception: What ended a training, if it is neither an error of a posterior nor a RuntimeError or ValueError.
    """
    is_main = setups[0].world.is_main_process
    meter = CostMeter(setups[0].fabric.device)
    is_shown = is_main and (sys.stderr.isatty() if show_progress is None else show_progress)
    with ProgressBar() if is_shown else nullcontext(Callback()) as bar:
        callbacks = CallbackList([bar, callback] if callback and is_main else [bar])
        first = setups[0].factory
        message = explain_validation(
            first.training_data, stops_early=first.config.stops_early, is_automatic=first.is_automatic
        )
        if message is not None:
            callbacks.on_message(message)
        setups = resolve_choices(setups, manager, callbacks, bar)
        all_results = train_members(setups, manager, callbacks, recordings)
    outcomes, cost = list[FitOutcome](), {"peak_memory_mb": meter.peak_memory_mb()}
    if not is_shared:
        cost["train_seconds"] = manager.elapsed_seconds()
    for setup, results in zip(setups, all_results, strict=True):
        try:
            if isinstance(results, Exception):
                raise results
            outcomes.append(make_outcome(setup, results, cost))
        except Exception as error:  # the other posteriors are made all the same
            outcomes.append(FitOutcome(error=error))
    return outcomes


def make_outcome(setup: TrainingSetup, results: Sequence[GroupResult], cost: Mapping[str, float]) -> FitOutcome:
    """The outcome of a fit from the results of its trainings.

    Where the cost has no seconds, they are those of the results.
    """
    states = [state for result in results for state in result.states]
    if "train_seconds" not in cost:
        seconds = sum(result.seconds for result in results)
        cost = {"train_seconds": seconds, "num_posteriors": max(result.num_branches for result in results), **cost}
    cost = {"gradients": sum(result.num_gradients for result in results), **cost}
    fitted = setup.make_final(states, describe_results(setup, results), cost=cost)
    if not setup.factory.training_data.is_replicated:  # what was computed on different data in each process
        fitted.statistics_inputs = setup.world.broadcast(fitted.statistics_inputs)
        for state in states:
            setup.world.broadcast_tensors(list(state.statistics.values()))
    return FitOutcome(fitted, [record for record in results[0].records if record.get("member", 0) == 0])


def describe_stop(results: Sequence[GroupResult]) -> dict[str, Any]:
    """Epochs of the best evaluations of the members, and of their last snapshots, if training stopped early."""
    epochs = [result.best_epoch for result in results]
    last = [result.records[-1]["epoch"] for result in results if result.records]
    return {} if all(epoch is None for epoch in epochs) else {"best_epochs": epochs, "last_epochs": last}


def describe_results(setup: TrainingSetup, results: Sequence[GroupResult]) -> dict[str, Any]:
    """Flatness, epochs, seed, the metrics of the last epoch, and the losses by epoch, as plain data.

    Also the factor on the learning rate of the optimizer, where the schedule has a constant one.
    """
    factory = setup.factory
    last = results[-1].records[-1] if results[-1].records else {}
    num_steps = last.get("step", 0)
    steps = range(0, num_steps, max(1, num_steps // NUM_SCHEDULE_STEPS))
    factors = {factory.config.schedule.factor(step, num_steps) for step in steps}
    return {
        "flatness": describe_name(factory.flatness),
        "epochs": factory.config.epochs,
        **describe_stop(results),
        "seed": factory.seed,
        **({"learning_rate_factor": factors.pop()} if len(factors) == 1 else {}),
        "last_epoch": {name: value for name, value in last.items() if name.startswith(("loss", "val_"))},
        "history": summarize_history([result.records for result in results]),
    }
