"""The words that both axes share: what a closure is, and what a posterior carries while it is being fitted."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Closure = Callable[[], Tensor]
"""Zeroes the gradients, computes the mean negative log likelihood (no prior, no weight decay, no KL) of one
batch, backpropagates it into `.grad`, and returns the detached loss. It may loop over micro-batches."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds an optimiser over the parameters it is given."""

LossFn = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> the mean negative log likelihood of a batch, a differentiable scalar."""

Examples = Iterable[tuple[Tensor, Tensor]]
"""Batches of (inputs, targets), ready for the model and on its device."""


@dataclass
class State:
    """Everything that one training run of a posterior changes.

    Attributes:
        model: The network. Its parameters are the current weights.
        optimizer: Updates the parameters; None once the posterior is fitted and only drawn from.
        num_data: Number of training examples, the n of the likelihood; never the batch size.
        statistics: What the posterior keeps beside the weights, by name; empty for a point.
        cpu_statistics: Names of the statistics that stay in main memory wherever the model goes.
    """

    model: nn.Module
    optimizer: Optimizer | None
    num_data: int
    statistics: dict[str, Tensor] = field(default_factory=dict)
    cpu_statistics: frozenset[str] = frozenset()

    def to(self, device: torch.device | str) -> None:
        """Move the model, and the statistics that are held beside it, in place."""
        self.model.to(device)
        for name in self.statistics.keys() - self.cpu_statistics:
            self.statistics[name] = self.statistics[name].to(device)

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, bit for bit (the random state is the caller's)."""
        return {
            "model": self.model.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "statistics": dict(self.statistics),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Undo everything since `saved` was taken.

        Raises:
            ValueError: The statistics are not those of this posterior on this model.
        """
        shapes = {name: tensor.shape for name, tensor in self.statistics.items()}
        found = {name: tensor.shape for name, tensor in state_dict["statistics"].items()}
        if shapes != found:
            raise ValueError(
                f"The saved statistics do not fit this posterior and model: expected {shapes}, got {found}. "
                "Use the posterior and the model that they were saved with."
            )
        self.model.load_state_dict(state_dict["model"])
        if self.optimizer is not None and state_dict["optimizer"] is not None:
            self.optimizer.load_state_dict(state_dict["optimizer"])
        with torch.no_grad():
            for name, tensor in state_dict["statistics"].items():
                self.statistics[name].copy_(tensor)
