"""Find out in a second whether a training can begin, before anything is written or hours have passed."""

from typing import Any

import torch
from torch import nn

from flatbayes.core.buffers import evaluating
from flatbayes.core.randomness import unmoved
from flatbayes.data import Dataset
from flatbayes.posteriors import Posterior
from flatbayes.training.material import Held
from flatbayes.training.model import ModelFactory, builder
from flatbayes.training.recipe import Recipe


def rehearse(model: nn.Module | ModelFactory, data: Dataset, posterior: Posterior, recipe: Recipe) -> None:
    """Build the network, begin the posterior, and take the loss of two examples.

    Raises:
        ValueError: Model, data, posterior and recipe do not go together.
    """
    source = Held(data)
    with unmoved(None):
        module = builder(model, source.known)()
        posterior.init(module, recipe.optimizer, len(data.train))
        with evaluating(module), torch.no_grad():
            outputs: Any = module(source.transform(data.train.inputs[:2]))
        if not isinstance(outputs, torch.Tensor):
            raise ValueError(f"The model must return a tensor of logits, got a {type(outputs).__name__}.")
        source.likelihood().loss(outputs, data.train.targets[:2])
