"""Data and a model in, a fitted posterior out."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from flatbayes.core import State
from flatbayes.core.buffers import norm_layers
from flatbayes.core.spec import to_spec
from flatbayes.data import DataSplits, Standardize, load_training_splits
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.callbacks.callback import Callback, CallbackList, ProgressBar
from flatbayes.training.checkpoint import CheckpointManager, Checkpoints
from flatbayes.training.collection import check_collection
from flatbayes.training.compatibility import check_compatibility
from flatbayes.training.config import FINE_TUNING, TrainingConfig
from flatbayes.training.cost import CostMeter
from flatbayes.training.data import TrainingData, make_training_data
from flatbayes.training.distributed.fsdp import check_fsdp
from flatbayes.training.distributed.launch import make_fabric
from flatbayes.training.distributed.process_group import ProcessGroupInfo
from flatbayes.training.distributed.workers import train_in_workers
from flatbayes.training.model_builder import ModelFactory, describe_model, make_model_builder
from flatbayes.training.run_factory import RunFactory, export_run_result
from flatbayes.training.vectorization_trial import should_vectorize
from flatbayes.training.warm_start import PretrainedWeights, WarmStart, check_epochs


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C; what had been fitted by then is in `fitted`.

    Attributes:
        fitted: The posterior so far: the completed runs, or the one that was under way.
    """

    def __init__(self, message: str, fitted: FittedPosterior) -> None:
        super().__init__(message)
        self.fitted = fitted


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
    likelihood: Likelihood | None = None,
    seed: int = 0,
    show_progress: bool | None = None,
    callback: Callback | None = None,
    checkpoints: Checkpoints | None = None,
) -> FittedPosterior:
    """Fit a posterior over the weights of a model.

    The caller's random state is left alone. With the same seed, twins that differ in flatness alone share initial
    weights, order of batches, augmentation and noise.

    Args:
        model: A class or function that builds the network (it is given `input_shape`, `num_classes` and
            `num_outputs` if it takes them), or a network, which is copied. Ensembles need a class or function, unless
            there are trained weights to start from.
        data: Splits, such as `Digits().load(seed=0)`; a map-style torch dataset, which is read into memory and used
            for training as a whole; or a loader of ready `(inputs, targets)` batches. Inputs are standardised by the
            training examples, except those of a loader.
        posterior: What is fitted.
        flatness: Where gradients are taken; `Plain()` for ordinary training.
        config: How it is trained; the default is `TrainingConfig()`, or where training goes on from `init`,
            `FINE_TUNING`.
        init: Trained weights to start from: a state dict, a file with one (safetensors, or of torch.save), or the
            folder of a fitted posterior, whose mean is taken, with what its inputs were standardised by; for an
            ensemble a list of them. Names may be behind the prefix of a wrapper, such as `module.`.
        new_head: Start the last linear layer anew if the trained one has another shape.
        freeze: Name patterns of parameters that stay as they are, such as `features.*`.
        transform: What inputs of a data set are standardised by; the default is its training part.
        likelihood: How targets depend on outputs; the default is the data's own, a loader has none.
        seed: Decides everything random.
        show_progress: Show a progress bar; by default if standard error is a terminal.
        callback: Sees every step and epoch; of several processes, that of the first.
        checkpoints: Where to keep what is needed to go on after an interruption; if something is there, it goes on
            from it, and on a CPU it ends in the same numbers as if nothing had happened. They stay there: `remove`
            them once the posterior is saved.

    Raises:
        ValueError: Model, data, posterior, flatness and recipe do not go together, or the checkpoints are those of
            another training.
        RuntimeError: The loss, or a weight, became non-finite.
        OSError: A checkpoint could not be written; earlier ones are as good as they were.
        Interrupted: Ctrl-C was pressed; it carries what was fitted so far.
    """
    if config is None:
        config = TrainingConfig() if init is None else FINE_TUNING
    _check_fresh_members(model, posterior, has_init=init is not None)
    check_epochs(config, has_init=init is not None or isinstance(model, nn.Module))
    check_compatibility(posterior, flatness, config)
    data = load_training_splits(data) if isinstance(data, Dataset) else data
    source = make_training_data(data, transform)
    likelihood = likelihood or source.infer_likelihood()
    sizes = dict.fromkeys(("num_classes", "num_outputs"), likelihood.num_outputs)
    known = source.model_arguments | sizes if source.model_arguments else {}
    build = make_model_builder(model, known)
    start = WarmStart.from_init(init, build, posterior, new_head=new_head, freeze=freeze)
    if transform is None and start.transform is not None:
        source = make_training_data(data, start.transform)
    fabric = make_fabric(config)
    world = ProcessGroupInfo.from_fabric(fabric)
    if config.distribution.members == "workers" and (world.size > 1 or isinstance(data, DataLoader)):
        raise ValueError("Members in workers are trained on one device each, and from data rather than a loader.")
    if config.distribution.strategy == "fsdp":
        check_fsdp(posterior, config, world, checkpoints)
    meter = CostMeter(fabric.device)
    training = _describe_training(posterior, flatness, likelihood, config, describe_model(model, known), source, seed)
    fresh = init is None and not freeze and transform is None
    training["start"] = None if fresh else start.fingerprint(source.transform)
    keeper = CheckpointManager.open(
        checkpoints, training | {"processes": world.size}, is_writer=world.is_main_process
    )
    states: list[State] = []
    gradients: float = 0

    def make_fitted(states: Sequence[State], **info: Any) -> FittedPosterior:
        for state in states:
            state.optimizer = None
        needs_statistics = posterior.needs_norm_reestimation and norm_layers(states[0].model)
        about = {"flatbayes": version("flatbayes"), "model": describe_model(model, known), **source.info}
        if config.distribution.members in ("auto", "vectorized"):
            about["members"] = "vectorized" if as_one else f"one by one: {why_not}"
        return FittedPosterior(
            posterior=posterior,
            states=states,
            likelihood=likelihood,
            transform=source.transform,
            statistics_inputs=source.sample_inputs(config, seed) if needs_statistics else (),
            info=about | info,
        )

    runs = RunFactory(posterior, flatness, likelihood, source, config, build, seed, start)
    as_one, why_not = should_vectorize(runs, posterior.num_members)
    groups = [list(range(posterior.num_members))] if as_one else [[run] for run in range(posterior.num_members)]
    show = world.is_main_process and (sys.stderr.isatty() if show_progress is None else show_progress)
    with ProgressBar() if show else nullcontext(Callback()) as bar:
        kept_by: dict[int, dict[str, Any]] = {}
        if config.distribution.members == "workers" and len(groups) > 1:
            kept_by = train_in_workers(
                runs, [k for k in range(len(groups)) if not keeper.load_result(k)], checkpoints
            )
        seen = CallbackList([bar, *([callback] if callback and world.is_main_process else [])])
        for number, group in enumerate(groups):
            job = runs.create_run(group, fabric)
            note = check_collection(posterior, config, len(job.batches))
            if note is not None and number == 0:
                seen.on_message(note)
            one = len(group) == 1
            seen.on_run_start(group[0], posterior.num_members if one else 1, config.epochs * len(job.batches))
            kept = kept_by.get(number) or world.read_on_main(partial(keeper.load_result, number))
            if kept is not None:
                seen.on_resume(kept["records"])
                states += [
                    runs.restore_state(run, saved, fabric) for run, saved in zip(group, kept["states"], strict=True)
                ]
                gradients += kept["gradients"]
                continue
            trained = False
            try:
                ended = job.train(fabric, seen, keeper, number)
                trained = True
                for state in ended:
                    _check_finite_weights(state.model)
                    posterior.finalize(state, source.iter_examples(fabric.device), likelihood.loss)
                    states.append(state)
                keeper.save_result(number, export_run_result(ended, job))
            except KeyboardInterrupt:
                done = states or job.states
                if not done:
                    raise
                if not states and not trained:  # a second time would take as long as the first, which was stopped
                    for state in done:
                        posterior.finalize(state, source.iter_examples(fabric.device), likelihood.loss)
                what = f"run {group[0] + 1} of {posterior.num_members}" if one else f"{len(group)} runs together"
                place = f"after {job.completed_epochs} of {config.epochs} epochs of {what}"
                raise Interrupted(f"stopped {place}", make_fitted(done, interrupted=place)) from None
            gradients += job.num_gradients
    cost = {
        "train_seconds": keeper.elapsed_seconds(),
        "gradients": gradients,
        "peak_memory_mb": meter.peak_memory_mb(),
    }
    result = make_fitted(states, cost=cost)
    if not source.is_replicated:
        result.statistics_inputs = world.broadcast(result.statistics_inputs)
        for state in states:
            world.broadcast_tensors(list(state.statistics.values()))
    return result


def _describe_training(
    posterior: Posterior,
    flatness: Flatness,
    likelihood: Likelihood,
    config: TrainingConfig,
    model: Any,
    training_data: TrainingData,
    seed: int,
) -> dict[str, Any]:
    """What has to be the same for a training to go on from a checkpoint; of code without a name, its kind."""
    chosen = {"posterior": posterior, "flatness": flatness, "likelihood": likelihood, **vars(config)}
    return {
        "flatbayes": version("flatbayes"),
        "model": model,
        "seed": seed,
        "data": training_data.fingerprint,
        **{name: _describe_object(value) for name, value in chosen.items()},
    }


def _describe_object(value: Any) -> Any:
    try:
        return to_spec(value)
    except TypeError:
        return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_finite_weights(network: nn.Module) -> None:
    if not all(param.isfinite().all() for param in network.parameters()):
        raise RuntimeError(
            "Some weights are not finite after the last step, which the loss before it could not show. Try a lower "
            "learning rate, a smaller rho, or clipping (--optimization.clip_norm 1)."
        )


def _check_fresh_members(model: nn.Module | ModelFactory, posterior: Posterior, *, has_init: bool) -> None:
    if isinstance(model, nn.Module) and posterior.num_members > 1 and not has_init:
        raise ValueError(
            f"{type(posterior).__name__} trains {posterior.num_members} networks from fresh initial weights, and was given "
            "one network. Pass its class, or a function that builds a new one."
        )
