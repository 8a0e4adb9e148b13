"""Potential of the posterior of a network: U(w) = n / T L^rho(w) + prior_precision / 2 ||w||^2, over a weight vector.

L^rho(w) = max over ||e|| <= rho of L(w + e), where L is the mean negative log likelihood of all n training examples.
By Danskin's theorem its gradient is that of L at the maximiser w + e. The maximiser is found by ascent with a step to
the sphere (`maximize_loss`): the direction of e is that of the gradient at the point before. At a maximum on the
sphere the gradient has the direction of e, so that the sine of the angle between them measures what is missing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flatbayes.core import LossFn
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.reference.config import ReferenceConfig

LossGradient = Callable[[Tensor], tuple[float, Tensor]]
"""w -> L(w) and its gradient."""


class BallMaximum(NamedTuple):
    """The largest loss that an ascent reaches in a ball.

    `residual` is the sine of the angle between e and the gradient at w + e; 0 at a maximum on the sphere.
    """

    loss: float
    gradient: Tensor
    residual: float


def maximize_loss(loss_gradient: LossGradient, position: Tensor, rho: float, num_steps: int) -> BallMaximum:
    """Ascend to the largest loss in the ball: e = rho g / ||g||, g the gradient at the point before.

    A radius of 0 gives L(w). One step is that of SAM; each takes one gradient.
    """
    loss, gradient = loss_gradient(position)
    residual = 0.0
    for _ in range(num_steps if rho > 0 else 0):
        norm = float(gradient.norm())
        if norm == 0:
            break
        direction = gradient / norm
        loss, gradient = loss_gradient(position + rho * direction)
        cosine = float(direction @ gradient) / max(float(gradient.norm()), 1e-30)
        residual = max(0.0, 1 - cosine**2) ** 0.5
    return BallMaximum(loss, gradient, residual)


class NetworkPotential:
    """U of a network, as a function of the vector of its trainable weights.

    `residual_sum` is the sum of the residuals of the maxima, for their mean over calls.
    """

    def __init__(
        self,
        network: nn.Module,
        loss_fn: LossFn,
        inputs: Tensor,
        targets: Tensor,
        config: ReferenceConfig,
    ) -> None:
        """Move the weights of the network into one vector, of which its parameters become views."""
        self.num_data = len(targets)
        self.num_gradients = self.num_calls = 0
        self.residual_sum = 0.0
        self._network, self._loss_fn, self._inputs, self._targets = network, loss_fn, inputs, targets
        self._config = config
        self._params = trainable_parameters(network)
        self._vector = flatten(self._params)
        for param, view in zip(self._params, unflatten(self._vector, self._params), strict=True):
            param.data = view

    @property
    def position(self) -> Tensor:
        """A copy of the weights of the network."""
        return self._vector.clone()

    @contextmanager
    def install(self, position: Tensor) -> Iterator[nn.Module]:
        """Context in which the network has the weights of a vector, which stay there."""
        self._vector.copy_(position)
        yield self._network

    def loss_gradient(self, position: Tensor) -> tuple[float, Tensor]:
        """L(w) and its gradient."""
        self.num_gradients += 1
        with self.install(position) as network, torch.enable_grad():
            loss = self._loss_fn(network(self._inputs), self._targets)
            grads = torch.autograd.grad(loss, self._params, materialize_grads=True)
        return float(loss.detach()), flatten(grads)

    def __call__(self, position: Tensor) -> tuple[float, Tensor]:
        """U(w) and its gradient."""
        config = self._config
        loss, gradient, residual = maximize_loss(self.loss_gradient, position, config.rho, config.ascent_steps)
        self.num_calls, self.residual_sum = self.num_calls + 1, self.residual_sum + residual
        scale, precision = self.num_data / config.temperature, config.prior_precision
        value = scale * loss + 0.5 * precision * float(position @ position)
        return value, gradient.mul_(scale).add_(position, alpha=precision)
