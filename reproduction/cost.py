"""Cost of a cell before it is run: gradients, and memory in copies of the weights."""

from dataclasses import dataclass

import torch

from flatbayes.data import DataSource
from reproduction.configs import TableCell

NUM_TRAINING_IMAGES = 50_000
IMAGE_SHAPE = (3, 32, 32)
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


@dataclass(frozen=True)
class TrainingCost:
    """Cost of one run of a cell.

    Attributes:
        num_params: Number of weights of the network.
        num_gradients: Forward and backward passes over a batch, of all members of an ensemble together.
        batch_size: Examples in a batch.
        weight_copies: Memory of training without activations, in copies of the weights, including the weights.
        gigabytes: The same memory in GB, in float32.
    """

    num_params: int
    num_gradients: float
    batch_size: int
    weight_copies: float
    gigabytes: float


def estimate_cost(cell: TableCell) -> TrainingCost:
    """Count gradients and tensors on the meta device, without data or memory.

    The count includes weights, gradients, optimizer state, statistics of the posterior, and a copy of the weights for
    a flatness that perturbs them. Noise drawn for a single step is not included.
    """
    config, posterior = cell.config, cell.posterior
    with torch.device("meta"):
        network = cell.model(input_shape=IMAGE_SHAPE, num_classes=NUM_CLASSES[cell.table])
        state = posterior.init(network, config.optimizer or posterior.default_optimizer, NUM_TRAINING_IMAGES)
    optimizer: torch.optim.Optimizer = state.optimizer  # type: ignore[assignment]  # after init it is set
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    tensors = [*state.model.parameters(), *params]  # `params` once more for their gradients
    tensors += [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    tensors += list(state.statistics.values())
    num_params = sum(param.numel() for param in network.parameters())
    num_perturbed = num_params if cell.flatness.gradients_per_step > 1 else 0
    num_elements = sum(tensor.numel() for tensor in tensors) + num_perturbed
    steps = config.num_epochs * max(1, count_training_examples(cell.source) // config.batch_size)
    return TrainingCost(
        num_params=num_params,
        num_gradients=steps * cell.flatness.gradients_per_step * posterior.num_members,
        batch_size=config.batch_size,
        weight_copies=num_elements / num_params,
        gigabytes=4 * num_elements / 1e9,
    )


def count_training_examples(source: DataSource) -> int:
    """Number of training examples, for a source with the images of CIFAR."""
    num_val = source.val_size if source.val_size >= 1 else NUM_TRAINING_IMAGES * source.val_size
    return source.train_size or NUM_TRAINING_IMAGES - round(num_val)
