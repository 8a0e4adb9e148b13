"""Data and a model in, a fitted posterior out."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from flatbayes.core import State
from flatbayes.core.buffers import running_norms
from flatbayes.data import Dataset
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.cost import Meter
from flatbayes.training.material import material
from flatbayes.training.model import ModelFactory, builder, describe
from flatbayes.training.pairing import check_pair
from flatbayes.training.recipe import Recipe, fabric_of
from flatbayes.training.runs import Runs
from flatbayes.training.together import chosen
from flatbayes.training.watch import Bar, Watch, Watches


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
    recipe: Recipe = Recipe(),
    *,
    likelihood: Likelihood | None = None,
    seed: int = 0,
    progress: bool | None = None,
    watch: Watch | None = None,
) -> FittedPosterior:
    """Fit a posterior over the weights of a model.

    The caller's random state is left alone. With the same seed, twins that differ in flatness alone share initial
    weights, order of batches, augmentation and noise.

    Args:
        model: A class or function that builds the network (it is given `input_shape`, `num_classes` and
            `num_outputs` if it takes them), or a network, which is copied. Ensembles need a class or function.
        data: Training data, which inputs are standardised by; or a loader of ready `(inputs, targets)` batches.
        posterior: What is fitted.
        flatness: Where gradients are taken; `Plain()` for ordinary training.
        recipe: How it is trained.
        likelihood: How targets depend on outputs; the default is the data's own, a loader has none.
        seed: Decides everything random.
        progress: Show a progress bar; by default if standard error is a terminal.
        watch: Sees every step and epoch.

    Raises:
        ValueError: Model, data, posterior, flatness and recipe do not go together.
        RuntimeError: The loss became non-finite.
        Interrupted: Ctrl-C was pressed; it carries what was fitted so far.
    """
    _check(model, posterior)
    check_pair(posterior, flatness, recipe)
    source = material(data)
    likelihood = likelihood or source.likelihood()
    sizes = dict.fromkeys(("num_classes", "num_outputs"), likelihood.num_outputs)
    known = source.known | sizes if source.known else {}
    build = builder(model, known)
    fabric = fabric_of(recipe)
    meter = Meter(fabric.device)
    states: list[State] = []
    gradients: float = 0

    def fitted(states: Sequence[State], **info: Any) -> FittedPosterior:
        for state in states:
            state.optimizer = None
        needs_statistics = posterior.moves_weights and running_norms(states[0].model)
        about = {"flatbayes": version("flatbayes"), "model": describe(model, known), **source.info}
        if recipe.members != "one_by_one":
            about["members"] = "together" if as_one else f"one by one: {why_not}"
        return FittedPosterior(
            posterior=posterior,
            states=states,
            likelihood=likelihood,
            transform=source.transform,
            statistics_inputs=source.sample(recipe, seed) if needs_statistics else (),
            info=about | info,
        )

    runs = Runs(posterior, flatness, likelihood, source, recipe, build, seed)
    as_one, why_not = chosen(runs, posterior.runs)
    groups = [list(range(posterior.runs))] if as_one else [[run] for run in range(posterior.runs)]
    show = sys.stderr.isatty() if progress is None else progress
    with Bar() if show else nullcontext(Watch()) as bar:
        seen = Watches([bar, *([watch] if watch else [])])
        for group in groups:
            job = runs.job(group, fabric)
            one = len(group) == 1
            seen.begin(group[0], posterior.runs if one else 1, recipe.epochs * len(job.batches))
            trained = False
            try:
                ended = job.train(fabric, seen)
                trained = True
                for state in ended:
                    posterior.finish(state, source.examples(fabric.device), likelihood.loss)
                    states.append(state)
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
        "train_seconds": meter.seconds(),
        "gradients": gradients,
        "peak_memory_mb": meter.peak_memory_mb(),
    }
    return fitted(states, cost=cost)


def _check(model: nn.Module | ModelFactory, posterior: Posterior) -> None:
    if isinstance(model, nn.Module) and posterior.runs > 1:
        raise ValueError(
            f"{type(posterior).__name__} trains {posterior.runs} networks from fresh initial weights, and was given "
            "one network. Pass its class, or a function that builds a new one."
        )
