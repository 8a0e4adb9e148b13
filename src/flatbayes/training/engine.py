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

from flatbayes.core.norms import global_norm
from flatbayes.core.stacked import for_each
from flatbayes.training.recipe import Recipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

FULL = ("32-true", "64-true")
LEAST = 1e-6
"""Added to the norm that a clipped gradient is divided by."""


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs one network with one optimiser.

    Attributes:
        fabric: Knows device and precision.
        module: The network as the posterior knows it, with the parameters that are trained.
        network: What is called in its place: wrapped, compiled, or itself.
        optimizer: The optimiser, wrapped where the network is.
        trained: Everything that the optimiser moves.
        bare: Whether Fabric is left out.
    """

    fabric: "Fabric"
    module: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    trained: tuple[Tensor, ...]
    bare: bool

    @staticmethod
    def start(fabric: "Fabric", module: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> "Engine":
        """The engine for a recipe; the optimiser's learning rates and parameters are those it comes with."""
        trained = tuple(param for group in optimizer.param_groups for param in group["params"])
        bare = recipe.precision in FULL
        network: nn.Module = torch.compile(module) if recipe.compile else module  # type: ignore[assignment]
        if not bare:
            network, optimizer = fabric.setup(network, optimizer)
        return Engine(fabric, module, network, optimizer, trained, bare)

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for param in self.trained:
            param.grad = None

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss."""
        if self.bare:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def clip(self, max_norm: float) -> None:
        """Scale all gradients together, so that their norm is at most this; takes a loss scaler's scale off first."""
        if self.bare:
            clip(self.trained, max_norm)
        else:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=max_norm, error_if_nonfinite=False)


def clip(params: tuple[Tensor, ...], max_norm: float) -> None:
    """Gradients times min(1, max_norm / norm), in place, with the norm over all of them; nothing waits for it.

    Of stacked networks each is scaled by its own norm.
    """
    grads = [param.grad for param in params if param.grad is not None]
    if grads and max_norm < math.inf:
        with torch.no_grad():
            factor = (max_norm / (global_norm(grads) + LEAST)).clamp(max=1.0).to(grads[0])
            if factor.ndim:
                torch._foreach_mul_(grads, [for_each(factor, grad) for grad in grads])
            else:
                torch._foreach_mul_(grads, factor)
