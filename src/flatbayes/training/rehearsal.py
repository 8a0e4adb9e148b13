"""Find out in a second whether a training can end well, before anything is written or hours have passed."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from flatbayes.core import Course
from flatbayes.core.randomness import unmoved
from flatbayes.data import Dataset
from flatbayes.flatness import Flatness
from flatbayes.posteriors import Posterior
from flatbayes.training.collection import check_collection, collected
from flatbayes.training.loss import training_loss
from flatbayes.training.material import Held
from flatbayes.training.model import ModelFactory, builder
from flatbayes.training.pairing import check_pair
from flatbayes.training.processes.launch import fabric_of, processes
from flatbayes.training.recipe import Recipe
from flatbayes.training.start import Start, Trained, check_epochs

ENOUGH, FEW = 5, 4


def rehearse(
    model: nn.Module | ModelFactory,
    data: Dataset,
    posterior: Posterior,
    flatness: Flatness,
    recipe: Recipe,
    *,
    init: Trained | Sequence[Trained] | None = None,
    new_head: bool = False,
    freeze: Sequence[str] = (),
) -> None:
    """Take one step on a few examples, collect as many snapshots as the recipe will (up to a few), draw, predict.

    Arguments are as for `fit`.

    Raises:
        ValueError: Model, data, posterior, flatness, recipe and trained weights do not go together; or the recipe
            collects too few snapshots to draw from.
    """
    check_epochs(recipe, trained=init is not None or isinstance(model, nn.Module))
    check_pair(posterior, flatness, recipe)
    if prod(processes(recipe)) == 1:
        fabric_of(recipe)  # says so if there is no such device
    steps = max(1, len(data.train) // min(recipe.batch_size, len(data.train)))
    check_collection(posterior, recipe, steps)
    source = Held(data)
    inputs, targets = source.scale(data.train.inputs[:FEW]), data.train.targets[:FEW]
    loss_of = training_loss(source.likelihood(), recipe)
    with unmoved(None):
        build = builder(model, source.known)
        start = Start.of(init, build, posterior, new_head=new_head, freeze=freeze)
        module = start.put(build(), 0)
        state = posterior.init(module, recipe.optimizer or posterior.default_optimizer, len(data.train))
        network = state.model.train()

        def loss_fn(outputs: Any, targets: torch.Tensor) -> torch.Tensor:
            if not isinstance(outputs, torch.Tensor):
                raise ValueError(f"The model must return a tensor of logits, got a {type(outputs).__name__}.")
            return loss_of(outputs, targets)

        def closure() -> torch.Tensor:
            network.zero_grad()
            loss = loss_fn(network(inputs), targets)
            loss.backward()
            return loss.detach()

        at_once = Course(total_steps=0)  # begins and ends here: whatever takes turns has its turn
        posterior.step(state, flatness(closure, network, at_once))
        for _ in range(min(ENOUGH, collected(recipe, steps))):
            posterior.collect(state)
        network.eval()
        posterior.finish(state, [(inputs, targets)], loss_fn)
        with posterior.draw(state, torch.Generator().manual_seed(0)) as drawn, torch.no_grad():
            loss_fn(drawn(inputs), targets)
