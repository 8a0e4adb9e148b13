"""Find out in a second whether a training can end well, before anything is written or hours have passed."""

from typing import Any

import torch
from torch import nn

from flatbayes.core.randomness import unmoved
from flatbayes.data import Dataset
from flatbayes.posteriors import Posterior
from flatbayes.training.material import Held
from flatbayes.training.model import ModelFactory, builder
from flatbayes.training.recipe import Recipe
from flatbayes.training.schedules import collects

ENOUGH = 5


def rehearse(model: nn.Module | ModelFactory, data: Dataset, posterior: Posterior, recipe: Recipe) -> None:
    """Begin the posterior, collect as many snapshots as the recipe will (up to a few), draw, take a loss.

    Raises:
        ValueError: Model, data, posterior and recipe do not go together.
        RuntimeError: The recipe collects too few snapshots to draw from.
    """
    source = Held(data)
    with unmoved(None):
        module = builder(model, source.known)()
        state = posterior.init(module, recipe.optimizer, len(data.train))
        for _ in range(min(ENOUGH, _snapshots(recipe, len(data.train)))):
            posterior.collect(state)
        with posterior.draw(state, torch.Generator().manual_seed(0)) as network, torch.no_grad():
            outputs: Any = network(source.transform(data.train.inputs[:2]))
        if not isinstance(outputs, torch.Tensor):
            raise ValueError(f"The model must return a tensor of logits, got a {type(outputs).__name__}.")
        source.likelihood().loss(outputs, data.train.targets[:2])


def _snapshots(recipe: Recipe, num_data: int) -> int:
    per_epoch = max(1, num_data // min(recipe.batch_size, num_data))
    total = per_epoch * recipe.epochs
    when = (collects(step, per_epoch, total, recipe.collect_from, recipe.collect_per_epoch) for step in range(total))
    return sum(when)
