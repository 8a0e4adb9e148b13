"""Data and a model in, a fitted posterior out."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from flatbayes.core import State
from flatbayes.core.buffers import running_norms
from flatbayes.core.spec import to_spec
from flatbayes.data import Dataset, Standardize
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.checkpoint import Checkpoints, Keeper
from flatbayes.training.collection import check_collection
from flatbayes.training.material import Material, material
from flatbayes.training.model import ModelFactory, builder, describe
from flatbayes.training.pairing import check_pair
from flatbayes.training.processes.launch import fabric_of
from flatbayes.training.processes.parallel import World
from flatbayes.training.processes.sharded import check_sharded
from flatbayes.training.processes.workers import trained_by_workers
from flatbayes.training.recipe import FINE_TUNING, Recipe
from flatbayes.training.runs import Runs, kept_of
from flatbayes.training.start import Start, Trained, check_epochs
from flatbayes.training.together import chosen
from flatbayes.training.watching.cost import Meter
from flatbayes.training.watching.watch import Bar, Watch, Watches


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
    data: Dataset | DataLoader[Any],
    posterior: Posterior = SWAG(),
    flatness: Flatness = SAM(),
    recipe: Recipe | None = None,
    *,
    init: Trained | Sequence[Trained] | None = None,
    new_head: bool = False,
    freeze: Sequence[str] = (),
    transform: Standardize | None = None,
    likelihood: Likelihood | None = None,
    seed: int = 0,
    progress: bool | None = None,
    watch: Watch | None = None,
    checkpoints: Checkpoints | None = None,
) -> FittedPosterior:
    """Fit a posterior over the weights of a model.

    The caller's random state is left alone. With the same seed, twins that differ in flatness alone share initial
    weights, order of batches, augmentation and noise.

    Args:
        model: A class or function that builds the network (it is given `input_shape`, `num_classes` and
            `num_outputs` if it takes them), or a network, which is copied. Ensembles need a class or function, unless
            there are trained weights to start from.
        data: Training data, which inputs are standardised by; or a loader of ready `(inputs, targets)` batches.
        posterior: What is fitted.
        flatness: Where gradients are taken; `Plain()` for ordinary training.
        recipe: How it is trained; the default is `Recipe()`, or where training goes on from `init`, `FINE_TUNING`.
        init: Trained weights to start from: a state dict, a file with one (safetensors, or of torch.save), or the
            folder of a fitted posterior, whose mean is taken, with what its inputs were standardised by; for an
            ensemble a list of them. Names may be behind the prefix of a wrapper, such as `module.`.
        new_head: Start the last linear layer anew if the trained one has another shape.
        freeze: Name patterns of parameters that stay as they are, such as `features.*`.
        transform: What inputs of a data set are standardised by; the default is its training part.
        likelihood: How targets depend on outputs; the default is the data's own, a loader has none.
        seed: Decides everything random.
        progress: Show a progress bar; by default if standard error is a terminal.
        watch: Sees every step and epoch; of several processes, that of the first.
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
    if recipe is None:
        recipe = Recipe() if init is None else FINE_TUNING
    _check(model, posterior, trained=init is not None)
    check_epochs(recipe, trained=init is not None or isinstance(model, nn.Module))
    check_pair(posterior, flatness, recipe)
    source = material(data, transform)
    likelihood = likelihood or source.likelihood()
    sizes = dict.fromkeys(("num_classes", "num_outputs"), likelihood.num_outputs)
    known = source.known | sizes if source.known else {}
    build = builder(model, known)
    start = Start.of(init, build, posterior, new_head=new_head, freeze=freeze)
    if transform is None and start.transform is not None:
        source = material(data, start.transform)
    fabric = fabric_of(recipe)
    world = World.of(fabric)
    if recipe.members == "workers" and (world.size > 1 or isinstance(data, DataLoader)):
        raise ValueError("Members in workers are trained on one device each, and from data rather than a loader.")
    if recipe.strategy == "fsdp":
        check_sharded(posterior, recipe, world, checkpoints)
    meter = Meter(fabric.device)
    training = _identity(posterior, flatness, likelihood, recipe, describe(model, known), source, seed)
    fresh = init is None and not freeze and transform is None
    training["start"] = None if fresh else start.identity(source.transform)
    keeper = Keeper.open(checkpoints, training | {"processes": world.size}, writes=world.is_first)
    states: list[State] = []
    gradients: float = 0

    def fitted(states: Sequence[State], **info: Any) -> FittedPosterior:
        for state in states:
            state.optimizer = None
        needs_statistics = posterior.moves_weights and running_norms(states[0].model)
        about = {"flatbayes": version("flatbayes"), "model": describe(model, known), **source.info}
        if recipe.members in ("auto", "together"):
            about["members"] = "together" if as_one else f"one by one: {why_not}"
        return FittedPosterior(
            posterior=posterior,
            states=states,
            likelihood=likelihood,
            transform=source.transform,
            statistics_inputs=source.sample(recipe, seed) if needs_statistics else (),
            info=about | info,
        )

    runs = Runs(posterior, flatness, likelihood, source, recipe, build, seed, start)
    as_one, why_not = chosen(runs, posterior.runs)
    groups = [list(range(posterior.runs))] if as_one else [[run] for run in range(posterior.runs)]
    show = world.is_first and (sys.stderr.isatty() if progress is None else progress)
    with Bar() if show else nullcontext(Watch()) as bar:
        kept_by: dict[int, dict[str, Any]] = {}
        if recipe.members == "workers" and len(groups) > 1:
            kept_by = trained_by_workers(runs, [k for k in range(len(groups)) if not keeper.ended(k)], checkpoints)
        seen = Watches([bar, *([watch] if watch and world.is_first else [])])
        for number, group in enumerate(groups):
            job = runs.job(group, fabric)
            note = check_collection(posterior, recipe, len(job.batches))
            if note is not None and number == 0:
                seen.note(note)
            one = len(group) == 1
            seen.begin(group[0], posterior.runs if one else 1, recipe.epochs * len(job.batches))
            kept = kept_by.get(number) or world.read_by_first(partial(keeper.ended, number))
            if kept is not None:
                seen.again(kept["records"])
                states += [runs.ended(run, saved, fabric) for run, saved in zip(group, kept["states"], strict=True)]
                gradients += kept["gradients"]
                continue
            trained = False
            try:
                ended = job.train(fabric, seen, keeper, number)
                trained = True
                for state in ended:
                    _check_finite(state.model)
                    posterior.finish(state, source.examples(fabric.device), likelihood.loss)
                    states.append(state)
                keeper.keep_ended(number, kept_of(ended, job))
            except KeyboardInterrupt:
                done = states or job.states
                if not done:
                    raise
                if not states and not trained:  # a second time would take as long as the first, which was stopped
                    for state in done:
                        posterior.finish(state, source.examples(fabric.device), likelihood.loss)
                what = f"run {group[0] + 1} of {posterior.runs}" if one else f"{len(group)} runs together"
                place = f"after {job.epochs_done} of {recipe.epochs} epochs of {what}"
                raise Interrupted(f"stopped {place}", fitted(done, interrupted=place)) from None
            gradients += job.gradients
    cost = {
        "train_seconds": keeper.seconds(),
        "gradients": gradients,
        "peak_memory_mb": meter.peak_memory_mb(),
    }
    result = fitted(states, cost=cost)
    if not source.is_common:
        result.statistics_inputs = world.from_first(result.statistics_inputs)
        for state in states:
            world.copy_from_first(list(state.statistics.values()))
    return result


def _identity(
    posterior: Posterior,
    flatness: Flatness,
    likelihood: Likelihood,
    recipe: Recipe,
    model: Any,
    source: Material,
    seed: int,
) -> dict[str, Any]:
    """What has to be the same for a training to go on from a checkpoint; of code without a name, its kind."""
    chosen = {"posterior": posterior, "flatness": flatness, "likelihood": likelihood, **vars(recipe)}
    return {
        "flatbayes": version("flatbayes"),
        "model": model,
        "seed": seed,
        "data": source.identity,
        **{name: _described(value) for name, value in chosen.items()},
    }


def _described(thing: Any) -> Any:
    try:
        return to_spec(thing)
    except TypeError:
        return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _check_finite(network: nn.Module) -> None:
    if not all(param.isfinite().all() for param in network.parameters()):
        raise RuntimeError(
            "Some weights are not finite after the last step, which the loss before it could not show. Try a lower "
            "learning rate, a smaller rho, or clipping (--clip_norm 1)."
        )


def _check(model: nn.Module | ModelFactory, posterior: Posterior, *, trained: bool) -> None:
    if isinstance(model, nn.Module) and posterior.runs > 1 and not trained:
        raise ValueError(
            f"{type(posterior).__name__} trains {posterior.runs} networks from fresh initial weights, and was given "
            "one network. Pass its class, or a function that builds a new one."
        )
