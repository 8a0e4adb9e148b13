"""Training progress: the step, the seed, and the state that a flatness keeps between steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.core.tensor_lists import ReusableMemory


@dataclass
class TrainingProgress:
    """How far a training run has come. Its loop makes one, passes it to the flatness at every step, and advances it.

    Attributes:
        step: Number of steps done.
        total_steps: Number of steps of the whole training; None if it is not known.
        seed: Seed of the run, from which a flatness derives random directions of its own; by default that of the last
            `torch.manual_seed`.
        members: Number of each network that is trained, such as its place in an ensemble: one, or one for each
            vectorized network.
        flatness_state: Tensors that are kept between steps, by namespace and name.
        restart: Step to which early stopping has gone back, and the fraction of training that it stands for.
        namespace: Prefix of the names in `flatness_state`; see `scope`.
        memory: Memory for perturbed weights, which is no state: it is not saved.

    Examples:
        >>> progress, optimizer = (
        ...     TrainingProgress(total_steps=3, seed=0),
        ...     torch.optim.SGD(network.parameters()),
        ... )
        >>> for _ in range(3):
        ...     loss = MSAM(rho=0.5)(closure, network, progress)()
        ...     optimizer.step()
        ...     progress.advance()
        >>> progress.step, len(progress.flatness_state)
        (3, 2)
    """

    step: int = 0
    total_steps: int | None = None
    seed: int = field(default_factory=torch.initial_seed)
    members: tuple[int, ...] = (0,)
    flatness_state: dict[str, Tensor] = field(default_factory=dict)
    restart: tuple[int, float] = (0, 0.0)
    namespace: str = ""
    memory: ReusableMemory = field(default_factory=ReusableMemory, repr=False, compare=False)

    __repr__ = format_fields

    def advance(self) -> None:
        """Count one more step. Call it after the step of the optimiser."""
        self.step += 1

    @property
    def fraction(self) -> float:
        """Fraction of the whole training that is done: after a restart, that of the rest; 1 if there are no steps."""
        first_step, fraction = self.restart
        num_steps = (self.total_steps or 0) - first_step
        return fraction + (1 - fraction) * (self.step - first_step) / num_steps if num_steps > 0 else 1.0

    def scope(self, name: str) -> "TrainingProgress":
        """The same progress for an inner flatness, whose state is stored under a namespace of its own.

        A flatness that runs others passes each of them another scope, so that they do not share state. The scope
        holds the current step only: make a new one at every step.

        Args:
            name: Name of the inner flatness within the outer one.
        """
        return replace(self, namespace=f"{self.namespace}{name}/")

    def store_state(self, kind: str, values: Mapping[str, Tensor]) -> None:
        """Keep one detached tensor per parameter until a later step.

        Args:
            kind: What the tensors are. They replace those of the same kind and parameter.
            values: Tensors by name of parameter.
        """
        prefix = f"{self.namespace}{kind}/"
        self.flatness_state |= {f"{prefix}{name}": value.detach() for name, value in values.items()}

    def load_state(self, kind: str, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `store_state` has kept, on the device of each parameter; parameters without a tensor are left out.

        Args:
            kind: What the tensors are.
            params: Parameters by name.
        """
        prefix = f"{self.namespace}{kind}/"
        return {
            name: self.flatness_state[f"{prefix}{name}"].to(param.device)
            for name, param in params.items()
            if f"{prefix}{name}" in self.flatness_state
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to resume bit for bit."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "seed": self.seed,
            "members": list(self.members),
            "restart": list(self.restart),
            "flatness_state": dict(self.flatness_state),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go back to where `state_dict` was taken, also with one of version 0.1, which has no seed."""
        self.step, self.total_steps = state_dict["step"], state_dict["total_steps"]
        self.seed = state_dict.get("seed", self.seed)
        self.members = tuple(state_dict.get("members", self.members))
        self.restart = tuple(state_dict.get("restart", (0, 0.0)))
        kept = state_dict["flatness_state"] if "flatness_state" in state_dict else state_dict["kept"]
        with torch.no_grad():
            self.flatness_state = {name: tensor.clone() for name, tensor in kept.items()}
