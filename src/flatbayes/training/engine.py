"""How a network is run in training: forward, backward, clipping, update.

Lightning Fabric does it where there is something to do: in mixed precision. In full precision it would call the
network, the loss and the optimiser as they are, after a fifth of a millisecond of bookkeeping for each; there we call
them ourselves.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.training.config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FULL_PRECISIONS = ("32-true", "64-true")
CLIP_EPSILON = 1e-6
"""Added to the norm that a clipped gradient is divided by."""


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs one network with one optimiser.

    Attributes:
        fabric: Knows device and precision.
        module: The network as the posterior knows it, with the parameters that are trained.
        network: What is called in its place: wrapped, compiled, or itself.
        optimizer: The optimiser, wrapped where the network is.
        params: Everything that the optimiser moves.
        bypass_fabric: Whether Fabric is left out.
    """

    fabric: "Fabric"
    module: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    params: tuple[Tensor, ...]
    bypass_fabric: bool

    @staticmethod
    def create(
        fabric: "Fabric", module: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig
    ) -> "Engine":
        """The engine for a recipe; the optimiser's learning rates and parameters are those it comes with."""
        trained = tuple(param for group in optimizer.param_groups for param in group["params"])
        bare = config.precision.mode in FULL_PRECISIONS
        network: nn.Module = torch.compile(module) if config.precision.compile else module  # type: ignore[assignment]
        if not bare:
            network, optimizer = fabric.setup(network, optimizer)
        return Engine(fabric, module, network, optimizer, trained, bare)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for param in self.params:
            param.grad = None

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss."""
        if self.bypass_fabric:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def clip_gradients(self, max_norm: float) -> None:
        """Scale all gradients together, so that their norm is at most this; takes a loss scaler's scale off first."""
        if self.bypass_fabric:
            clip_gradient_norm(self.params, max_norm)
        else:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=max_norm, error_if_nonfinite=False)


def clip_gradient_norm(params: tuple[Tensor, ...], max_norm: float) -> None:
    """Gradients times min(1, max_norm / norm), in place, with the norm over all of them; nothing waits for it.

    Of stacked networks each is scaled by its own norm.
    """
    grads = [param.grad for param in params if param.grad is not None]
    if grads and max_norm < math.inf:
        with torch.no_grad():
            factor = (max_norm / (global_norm(grads) + CLIP_EPSILON)).clamp(max=1.0).to(grads[0])
            if factor.ndim:
                torch._foreach_mul_(grads, [broadcast_per_network(factor, grad) for grad in grads])
            else:
                torch._foreach_mul_(grads, factor)
