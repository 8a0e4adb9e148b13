"""Execution engine of one network: forward, backward, gradient clipping and learning rate.

In mixed precision Lightning Fabric runs them. In full precision Fabric adds a fifth of a millisecond per call and
does nothing else, so the engine calls the network, the loss and the optimizer directly.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flatbayes.core.devices import has_float64
from flatbayes.core.networks import check_one_device, choose_memory_format
from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.core.weights import promoted_dtype
from flatbayes.training.config import TrainingConfig
from flatbayes.training.fabric import FULL_PRECISIONS, Fabric, SingleDevice

if TYPE_CHECKING:
    import lightning_fabric

CLIP_EPSILON = 1e-6
"""Added to the norm that a clipped gradient is divided by."""


@dataclass(frozen=True, eq=False)
class Engine:
    """Runs one network with one optimizer.

    Attributes:
        device: The device of training.
        fabric: Lightning Fabric, if it runs network, loss and optimizer; None in full precision.
        module: The network with the parameters that are trained.
        network: The callable network: wrapped, compiled, or the module itself.
        optimizer: The optimizer, wrapped if the network is.
        params: All tensors that the optimizer updates.
        base_lrs: Initial learning rate of each parameter group.
    """

    device: torch.device
    fabric: "lightning_fabric.Fabric | None"
    module: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    params: tuple[Tensor, ...]
    base_lrs: tuple[float, ...]

    @staticmethod
    def create(
        fabric: Fabric, module: nn.Module, optimizer: torch.optim.Optimizer, config: TrainingConfig
    ) -> "Engine":
        """The engine for a configuration, with the parameters and learning rates of the optimizer."""
        params = tuple(param for group in optimizer.param_groups for param in group["params"])
        base_lrs = tuple(group["lr"] for group in optimizer.param_groups)
        network: nn.Module = torch.compile(module) if config.precision.compile else module  # type: ignore[assignment]
        if isinstance(fabric, SingleDevice) or config.precision.mode in FULL_PRECISIONS:
            return Engine(fabric.device, None, module, network, optimizer, params, base_lrs)
        network, optimizer = fabric.setup(network, optimizer)
        return Engine(fabric.device, fabric, module, network, optimizer, params, base_lrs)

    def set_learning_rate(self, factor: float) -> float:
        """Set each learning rate to a multiple of its initial value; return that of the first parameter group."""
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor
        return self.base_lrs[0] * factor

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for param in self.params:
            param.grad = None

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of a loss."""
        if self.fabric is None:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def clip_gradients(self, max_norm: float) -> None:
        """Scale all gradients to a joint norm of at most `max_norm`, after removing the loss scale."""
        if self.fabric is None:
            clip_gradient_norm(self.params, max_norm)
        else:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=max_norm, error_if_nonfinite=False)

    def scaler_state_dict(self) -> dict[str, Any]:
        """State of the loss scale, for checkpoints; empty where there is none."""
        return {} if self.fabric is None else self.fabric.strategy.precision.state_dict()

    def load_scaler_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the loss scale."""
        if self.fabric is not None:
            self.fabric.strategy.precision.load_state_dict(state_dict)


def place_module(module: nn.Module, fabric: Fabric, config: TrainingConfig) -> nn.Module:
    """Move a module to the device, dtype and memory format of training.

    Raises:
        ValueError: It is on several devices, or has weights of float64, which the device does not have.
    """
    check_one_device(module)
    module = module.double() if config.precision.mode == "64-true" else module
    if not has_float64(fabric.device) and any(param.dtype == torch.float64 for param in module.parameters()):
        raise ValueError(
            f"{type(module).__name__} has weights of float64, which the device {fabric.device} does not have: "
            "convert them, network.float(), or use distribution.accelerator='cpu'."
        )
    placed: nn.Module = fabric.to_device(module)
    choose_memory_format(placed, config.precision.channels_last)
    return placed


@contextmanager
def set_cudnn_benchmark(*, enabled: bool) -> Iterator[None]:
    """Inside, cuDNN times its algorithms and takes the fastest, if enabled; otherwise the user's setting holds."""
    previous = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = previous or enabled
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = previous


def clip_gradient_norm(params: tuple[Tensor, ...], max_norm: float) -> None:
    """Multiply gradients by min(1, max_norm / norm), in place and without waiting for the device.

    The norm is that of all tensors together; with vectorized networks, each network is scaled by its own norm.
    """
    grads = [param.grad for param in params if param.grad is not None]
    if grads and max_norm < math.inf:
        with torch.no_grad():
            factor = (max_norm / (global_norm(grads) + CLIP_EPSILON)).clamp(max=1.0)
            factor = factor.to(grads[0].device, promoted_dtype(grads))
            if factor.ndim:
                torch._foreach_mul_(grads, [broadcast_per_network(factor, grad).to(grad.dtype) for grad in grads])
            else:
                torch._foreach_mul_(grads, factor)
