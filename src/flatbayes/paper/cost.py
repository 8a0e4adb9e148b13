"""What a cell will cost, before anything is run: gradients, and memory in copies of the weights."""

from dataclasses import dataclass

import torch

from flatbayes.data import Source
from flatbayes.paper.cells import Cell

TRAINING_IMAGES = 50_000
SHAPE = (3, 32, 32)
CLASSES = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class Cost:
    """Of one run of a cell.

    Attributes:
        params: Weights of the network.
        gradients: Passes forward and backward over a batch, of all runs of an ensemble together.
        batch: Examples in a batch.
        copies: What is held in training beside activations, in copies of the weights, these included.
        gigabytes: The same in float32.
    """

    params: int
    gradients: float
    batch: int
    copies: float
    gigabytes: float


def cost_of(cell: Cell) -> Cost:
    """By counting, with no data read and no memory taken.

    Weights, gradients, the optimizer's state, the posterior's statistics, and one copy for a flatness that goes back
    to the weights it came from. Noise that lasts for a step is not counted.
    """
    recipe, posterior = cell.recipe, cell.posterior
    with torch.device("meta"):
        network = cell.model(input_shape=SHAPE, num_classes=CLASSES[cell.table])
        state = posterior.init(network, recipe.optimizer or posterior.default_optimizer, TRAINING_IMAGES)
    optimizer: torch.optim.Optimizer = state.optimizer  # type: ignore[assignment]  # there is one
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    held = [*state.model.parameters(), *params]  # each parameter that is learnt has a gradient
    held += [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    held += list(state.statistics.values())
    weights = sum(param.numel() for param in network.parameters())
    numbers = sum(tensor.numel() for tensor in held) + (weights if cell.flatness.gradients > 1 else 0)
    steps = recipe.epochs * max(1, training_examples(cell.source) // recipe.batch_size)
    return Cost(
        params=weights,
        gradients=steps * cell.flatness.gradients * posterior.runs,
        batch=recipe.batch_size,
        copies=numbers / weights,
        gigabytes=4 * numbers / 1e9,
    )


def training_examples(source: Source) -> int:
    """How many there will be, if the data are what the table is about."""
    held_out = source.val_size if source.val_size >= 1 else TRAINING_IMAGES * source.val_size
    return source.train_size or TRAINING_IMAGES - round(held_out)
