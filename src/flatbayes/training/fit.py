"""Data and a model in, a fitted posterior out."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from flatbayes.core import State
from flatbayes.core.buffers import running_norms
from flatbayes.core.randomness import forked, spawn
from flatbayes.data import Dataset
from flatbayes.flatness import SAM, Flatness
from flatbayes.likelihoods import Likelihood
from flatbayes.posteriors import SWAG, Posterior
from flatbayes.prediction import FittedPosterior
from flatbayes.training.cost import Meter
from flatbayes.training.loop import Job
from flatbayes.training.material import material
from flatbayes.training.model import ModelFactory, builder, describe
from flatbayes.training.pairing import check_pair
from flatbayes.training.recipe import Recipe
from flatbayes.training.watch import Bar, Watch, Watches

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
        ValueError: Model, data, posterior and flatness do not go together.
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
    fabric = _fabric(recipe)
    meter = Meter(fabric.device)
    states: list[State] = []
    gradients: float = 0

    def fitted(states: Sequence[State], **info: Any) -> FittedPosterior:
        for state in states:
            state.optimizer = None
        needs_statistics = posterior.moves_weights and running_norms(states[0].model)
        about = {"flatbayes": version("flatbayes"), "model": describe(model, known), **source.info}
        return FittedPosterior(
            posterior=posterior,
            states=states,
            likelihood=likelihood,
            transform=source.transform,
            statistics_inputs=source.sample(recipe, seed) if needs_statistics else (),
            info=about | info,
        )

    show = sys.stderr.isatty() if progress is None else progress
    with Bar() if show else nullcontext(Watch()) as bar:
        seen = Watches([bar, *([watch] if watch else [])])
        for run in range(posterior.runs):
            initial, order, noise = spawn(seed, run, count=3)
            with forked(initial, None):
                module = build()
            batches = source.batches(recipe, order, fabric.device)
            seen.begin(run, posterior.runs, recipe.epochs * len(batches))
            job = Job(posterior, flatness, likelihood, batches, recipe)
            job.validate = source.validator(likelihood)
            trained = False
            try:
                state = job.train(fabric, module, seed=noise, watch=seen)
                trained = True
                posterior.finish(state, source.examples(fabric.device), likelihood.loss)
                states.append(state)
            except KeyboardInterrupt:
                done = states or ([job.state] if job.state else [])
                if not done:
                    raise
                if not states and not trained:  # a second time would take as long as the first, which was stopped
                    posterior.finish(done[0], source.examples(fabric.device), likelihood.loss)
                place = f"after {job.epochs_done} of {recipe.epochs} epochs of run {run + 1} of {posterior.runs}"
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


def _fabric(recipe: Recipe) -> "Fabric":
    from lightning_fabric import Fabric  # over a second to import

    return Fabric(accelerator=recipe.accelerator, devices=1, precision=recipe.precision)
