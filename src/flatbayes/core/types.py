"""Types shared by both axes: closures, loss functions, optimiser factories, and the state of a posterior."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from flatbayes.core.buffers import list_buffers, load_buffers
from flatbayes.core.display import format_fields
from flatbayes.core.input_trees import ModelInputs
from flatbayes.core.traversal import named_parameters, trainable_by_name

Closure = Callable[[], Tensor]
"""Zeroes the gradients, computes the mean negative log likelihood (no prior, no weight decay, no KL) of one
batch, backpropagates it into `.grad`, and returns the detached loss. It may loop over micro-batches."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds an optimiser over the parameters it is given, or over some. They are the trainable ones of a network, in the
order of `named_parameters()`, and after them what the posterior trains beside them, such as standard deviations."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> the mean negative log likelihood of a batch, a differentiable scalar."""

Examples = Iterable[tuple[ModelInputs, Tensor]]
"""Batches of (inputs, targets), as the model takes them; they are moved to its device."""


@dataclass
class State:
    """Everything that one training run of a posterior changes.

    Attributes:
        model: The network. Its parameters are the current weights.
        optimizer: Updates the parameters; None once the posterior is fitted and only draws are taken from it.
        num_data: Number of training examples, the n of the likelihood; never the batch size.
        statistics: Tensors that the posterior holds beside the weights, by name; empty for MAP.
        cpu_statistics: Names of the statistics that stay in main memory on whatever device the model is.
        updated_buffers: Names of the model's buffers that the last epoch of training changed, such as the running
            statistics of normalization layers that are not frozen; None if that is unknown.
        trained: The parameters that were trained at the start, by name, which the statistics are of; None for those
            of the model that require gradients.

    Examples:
        >>> posterior = SWAG(rank=2)
        >>> state = posterior.init(network, torch.optim.SGD, num_data=12)
        >>> loss = posterior.step(state, closure)
        >>> sorted(state.statistics)
        ['count', 'deviations', 'mean', 'sum_squares']
    """

    model: nn.Module
    optimizer: Optimizer | None
    num_data: int
    statistics: dict[str, Tensor] = field(default_factory=dict)
    cpu_statistics: frozenset[str] = frozenset()
    updated_buffers: frozenset[str] | None = None
    trained: dict[str, nn.Parameter] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.trained is None:
            self.trained = trainable_by_name(self.model)
        self._find_trained()  # in a copy of the model

    __repr__ = format_fields

    def to(self, device: torch.device | str) -> None:
        """Move the model, and the statistics that are held beside it, in place."""
        self.model.to(device)
        self._find_trained()  # some devices replace the parameters
        for name in self.statistics.keys() - self.cpu_statistics:
            self.statistics[name] = self.statistics[name].to(device)

    def _find_trained(self) -> None:
        params = named_parameters(self.model)
        self.trained = {name: params[name] for name in self.trained or () if name in params}

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to resume bit for bit, except for the random state."""
        return {
            "model": self.model.state_dict(),
            "buffers": list_buffers(self.model),  # also those that are not persistent
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "statistics": dict(self.statistics),
            "updated_buffers": None if self.updated_buffers is None else sorted(self.updated_buffers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken.

        Raises:
            ValueError: The statistics are not those of this posterior on this model.
        """
        shapes = {name: tensor.shape for name, tensor in self.statistics.items()}
        saved_shapes = {name: tensor.shape for name, tensor in state_dict["statistics"].items()}
        if shapes != saved_shapes:
            raise ValueError(
                f"The saved statistics do not fit this posterior and model: expected {shapes}, got {saved_shapes}. "
                "Use the posterior and the model that they were saved with."
            )
        updated_buffers = state_dict.get("updated_buffers")  # not in checkpoints before version 0.2
        self.updated_buffers = None if updated_buffers is None else frozenset(updated_buffers)
        load_buffers(self.model, state_dict.get("buffers", {}), state_dict["model"])
        self.model.load_state_dict(state_dict["model"])
        if self.optimizer is not None and state_dict["optimizer"] is not None:
            self.optimizer.load_state_dict(state_dict["optimizer"])
        with torch.no_grad():
            for name, tensor in state_dict["statistics"].items():
                self.statistics[name].copy_(tensor)
