"""The one primitive of sharpness-aware training: ask for the gradient again, at displaced weights.

Pass 1 runs as it would without us: running statistics move, random numbers are used. Every later pass sees the
weights displaced, the same random numbers (dropout masks, weight noise) and leaves no trace but its gradient.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from flatbayes.core import Closure
from flatbayes.core.buffers import frozen
from flatbayes.core.randomness import RandomState, replayed
from flatbayes.core.weights import displaced

OffsetFn = Callable[[Mapping[str, Tensor], Sequence[Tensor]], list[Tensor] | None]
"""(weights by name, their gradients) -> displacement; None where there is no finite direction to go."""


def asked_at(
    offset_fn: OffsetFn,
    closure: Closure,
    model: nn.Module,
    *,
    ascent_steps: int = 1,
    fresh_noise: bool = False,
) -> Closure:
    """A closure whose gradient is taken at the end of `ascent_steps` re-aimed displacements.

    With e_0 = 0, each step sets e_{k+1} = offset_fn(gradient at w + e_k). Where a gradient is not finite the
    ascent ends, and `.grad` holds that gradient for a loss scaler, or the user, to deal with.

    Args:
        offset_fn: The displacement for a gradient, always from the undisplaced weights.
        closure: The plain closure.
        model: The module whose trainable parameters are displaced.
        ascent_steps: Displacements before the final gradient.
        fresh_noise: Let the later passes draw random numbers of their own.
    """

    def flat_closure() -> Tensor:
        noise = RandomState.capture(model)
        loss = closure()
        weights = {name: p for name, p in model.named_parameters() if p.grad is not None}
        params = list(weights.values())
        for _ in range(ascent_steps if params else 0):
            offsets = offset_fn(weights, [torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            if offsets is None:
                break
            same_noise = nullcontext() if fresh_noise else replayed(noise)
            with frozen(model), same_noise, displaced(params, offsets):
                closure()
        return loss

    return flat_closure


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, accumulated in at least float32."""
    if all(t.dtype in (torch.float32, torch.float64) for t in tensors):
        norms: list[Tensor] = list(torch._foreach_norm(list(tensors)))
    else:
        norms = [torch.linalg.vector_norm(t.float()) for t in tensors]
    total: Tensor = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))
    return total


def scaled_to(directions: Sequence[Tensor], norm: Tensor, rho: float) -> list[Tensor] | None:
    """`rho * direction / norm`: no displacement for a zero norm, None for a norm that is not finite."""
    if not bool(norm.isfinite()):
        return None
    scale = torch.where(norm > 0, rho / norm, 0.0)
    return list(torch._foreach_mul(list(directions), scale.to(directions[0])))


def check_radius(rho: float) -> None:
    """Refuse a radius that is no radius.

    Raises:
        ValueError: `rho` is negative or not finite.
    """
    if not (math.isfinite(rho) and rho >= 0):
        raise ValueError(f"rho is the radius of a ball: it must be finite and at least 0, got {rho}.")


def check_ascent_steps(ascent_steps: int) -> None:
    """Refuse an ascent without steps.

    Raises:
        ValueError: `ascent_steps` is below 1.
    """
    if ascent_steps < 1:
        raise ValueError(f"ascent_steps must be at least 1, got {ascent_steps}; for no ascent use Plain().")
