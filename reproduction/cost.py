"""What a cell will cost, before anything is run: gradients, and memory in copies of the weights."""

from dataclasses import dataclass

import torch

from flatbayes.data import DataSource
from reproduction.configs import TableCell

NUM_TRAINING_IMAGES = 50_000
IMAGE_SHAPE = (3, 32, 32)
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class TrainingCost:
    """Of one run of a cell.

    Attributes:
        num_params: Weights of the network.
        num_gradients: Passes forward and backward over a batch, of all runs of an ensemble together.
        batch_size: Examples in a batch.
        weight_copies: What is held in training beside activations, in copies of the weights, these included.
        gigabytes: The same in float32.
    """

    num_params: int
    num_gradients: float
    batch_size: int
    weight_copies: float
    gigabytes: float


def estimate_cost(cell: TableCell) -> TrainingCost:
    """By counting, with no data read and no memory taken.

    Weights, gradients, the optimizer's state, the posterior's statistics, and one copy for a flatness that goes back
    to the weights it came from. Noise that lasts for a step is not counted.
    """
    recipe, posterior = cell.config, cell.posterior
    with torch.device("meta"):
        network = cell.model(input_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES[cell.table])
        state = posterior.init(network, recipe.optimizer or posterior.default_optimizer, NUM_TRAINING_IMAGES)
    optimizer: torch.optim.Optimizer = state.optimizer  # type: ignore[assignment]  # there is one
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    held = [*state.model.parameters(), *params]  # each parameter that is learnt has a gradient
    held += [value for kept in optimizer.state.values() for value in kept.values() if isinstance(value, torch.Tensor)]
    held += list(state.statistics.values())
    weights = sum(param.numel() for param in network.parameters())
    numbers = sum(tensor.numel() for tensor in held) + (weights if cell.flatness.gradients_per_step > 1 else 0)
    steps = recipe.epochs * max(1, count_training_examples(cell.source) // recipe.batch_size)
    return TrainingCost(
        num_params=weights,
        num_gradients=steps * cell.flatness.gradients_per_step * posterior.num_members,
        batch_size=recipe.batch_size,
        weight_copies=numbers / weights,
        gigabytes=4 * numbers / 1e9,
    )


def count_training_examples(source: DataSource) -> int:
    """How many there will be, if the data are what the table is about."""
    held_out = source.val_size if source.val_size >= 1 else NUM_TRAINING_IMAGES * source.val_size
    return source.train_size or NUM_TRAINING_IMAGES - round(held_out)
