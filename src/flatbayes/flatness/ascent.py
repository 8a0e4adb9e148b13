"""The one primitive of sharpness-aware training: ask for the gradient again, at displaced weights.

Pass 1 runs as it would without us: running statistics move, random numbers are used. Every later pass sees the
weights displaced, the same random numbers (dropout masks, weight noise) and leaves no trace but its gradient.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.buffers import preserve_buffers
from flatbayes.core.randomness import RandomState, replay_rng
from flatbayes.core.weights import axpy, perturb

MIN_NORM = 1e-30
"""What a norm is divided by at least where it cannot be looked at; a zero gradient is then no displacement."""


@dataclass(frozen=True)
class Perturbation:
    """A displacement of length `rho`: rho / norm * direction, zero for a zero norm.

    It is not multiplied out, since every pass over all weights costs.

    Attributes:
        directions: One direction per tensor.
        norm: Their norm in the geometry of the ball, a tensor without dimensions, or one for each stacked network.
        rho: The radius, a number or a tensor of the norm's shape.
    """

    directions: list[Tensor]
    norm: Tensor
    rho: float | Tensor

    @property
    def is_finite(self) -> bool:
        """Whether there is a direction to go; taken to be so where asking would wait, and of stacked networks."""
        return self._keeps_norm_as_tensor or math.isfinite(self.norm.item())

    @property
    def scale(self) -> float | Tensor:
        """The radius divided by the norm; a number, unless reading the norm would wait, or there are several."""
        if self._keeps_norm_as_tensor:
            return self.norm.clamp(min=MIN_NORM).reciprocal() * self.rho
        norm = self.norm.item()
        return float(self.rho) / norm if norm > 0 else 0.0

    def to_tensors(self) -> list[Tensor]:
        """The displacement, multiplied out."""
        return axpy([torch.zeros_like(direction) for direction in self.directions], self.directions, self.scale)

    @property
    def _keeps_norm_as_tensor(self) -> bool:
        return self.norm.ndim > 0 or not self.norm.is_cpu


PerturbationFn = Callable[[Mapping[str, Tensor], Sequence[Tensor]], Perturbation]
"""(weights by name, their gradients) -> displacement."""


def gradient_at_perturbation(
    perturbation_fn: PerturbationFn,
    closure: Closure,
    model: nn.Module,
    *,
    ascent_steps: int = 1,
    resample_noise: bool = False,
) -> Closure:
    """A closure whose gradient is taken at the end of `ascent_steps` re-aimed displacements.

    With e_0 = 0, each step sets e_{k+1} = perturbation_fn(gradient at w + e_k). Where a gradient is not finite the
    ascent ends, and `.grad` holds that gradient for a loss scaler, or the user, to deal with; on an accelerator,
    where seeing that would mean to wait for it, and of one of stacked networks, the later gradients come out just as
    little finite.

    Args:
        perturbation_fn: The displacement for a gradient, always from the undisplaced weights.
        closure: The plain closure.
        model: The module whose trainable parameters are displaced.
        ascent_steps: Displacements before the final gradient.
        resample_noise: Let the later passes draw random numbers of their own.
    """

    def flat_closure() -> Tensor:
        noise = RandomState.capture(model)
        loss = closure()
        weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
        params = list(weights.values())
        for _ in range(ascent_steps if params else 0):
            offset = perturbation_fn(weights, [torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            if not offset.is_finite:
                break
            same_noise = nullcontext() if resample_noise else replay_rng(noise)
            with preserve_buffers(model), same_noise, perturb(params, offset.directions, offset.scale):
                closure()
        return loss

    return flat_closure


def check_radius(rho: float) -> None:
    """Refuse a radius that is no radius.

    Raises:
        ValueError: `rho` is negative or not finite.
    """
    if not 0 <= rho <= sys.float_info.max:  # also of integers that no float can hold
        raise ValueError(f"rho is the radius of a ball: it must be finite and at least 0, got {rho}.")


def check_ascent_steps(ascent_steps: int) -> None:
    """Refuse an ascent without steps.

    Raises:
        ValueError: `ascent_steps` is below 1.
    """
    if ascent_steps < 1:
        raise ValueError(f"ascent_steps must be at least 1, got {ascent_steps}; for no ascent use Plain().")
