"""The course of training: which step it is, and what has to be remembered from one step to the next."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class TrainingProgress:
    """Made once for a training run by whoever owns the loop, and handed to the flatness at every step.

    Attributes:
        step: Steps done so far.
        total_steps: Steps of the whole training; None where nobody knows.
        flatness_state: What is remembered between steps, by name.
    """

    step: int = 0
    total_steps: int | None = None
    flatness_state: dict[str, Tensor] = field(default_factory=dict)

    def advance(self) -> None:
        """Another step is done: call this after that of the optimiser."""
        self.step += 1

    def store_state(self, namespace: str, values: Mapping[str, Tensor]) -> None:
        """Keep one tensor for each parameter, without its history, in place of those of the same kind and name."""
        self.flatness_state |= {f"{namespace}/{name}": value.detach() for name, value in values.items()}

    def load_state(self, namespace: str, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is kept of a kind for those of the parameters that have any, on the parameter's device."""
        found = {name: self.flatness_state.get(f"{namespace}/{name}") for name in params}
        return {name: kept.to(params[name].device) for name, kept in found.items() if kept is not None}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on from here, bit for bit."""
        return {"step": self.step, "total_steps": self.total_steps, "kept": dict(self.flatness_state)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Undo everything since `saved` was taken."""
        self.step, self.total_steps = state_dict["step"], state_dict["total_steps"]
        with torch.no_grad():
            self.flatness_state = {name: tensor.clone() for name, tensor in state_dict["kept"].items()}
