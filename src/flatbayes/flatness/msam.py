"""Momentum-SAM (Becker et al., 2024): the gradients of the last steps give the direction, so that it is free.

The sum v <- momentum v + g of the gradients seen stands in for the gradient of the step, and the one gradient of the
step is taken at w - rho v / ||v||. That point lies ahead, where the optimiser is going; the gradients there oppose
the sharp directions, along which successive gradients disagree. The paper takes v from the optimiser and leaves
the displaced weights in place between steps. Here v is the flatness's own, so any optimiser will do, weight decay
has no part in it, and weights are displaced during the gradient alone.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.core.weights import perturb
from flatbayes.flatness.ascent import Perturbation, check_radius
from flatbayes.flatness.flatness import Flatness, require_progress

STATE_NAMESPACE = "msam"


@dataclass(frozen=True)
class MSAM(Flatness):
    """Asks at a distance from the weights, against the sum of the gradients of the steps before; one gradient a step.

    Attributes:
        rho: Distance, the norm taken over all trainable weights together; ten times the radius of SAM is a usual
            start.
        momentum: How much of the sum of gradients is left after a step; that of the optimiser is usual.
    """

    rho: float = 0.5
    momentum: float = 0.9

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")

    gradients_per_step = 1  # the direction was paid for by the steps before
    stationary_after = inf  # where it asks depends on the way that training took

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is taken ahead; in the first step, at the weights.

        Raises:
            ValueError: No course is given.
        """
        known = require_progress(progress, self)

        def flat_closure() -> Tensor:
            params = {name: p for name, p in model.named_parameters() if p.requires_grad}
            sums = known.load_state(STATE_NAMESPACE, params)
            moved = [params[name] for name in sums]
            ahead = momentum_perturbation(list(sums.values()), self.rho) if sums else None
            with nullcontext() if ahead is None else perturb(moved, ahead.directions, ahead.scale):
                loss = closure()
            grads = {name: p.grad for name, p in params.items() if p.grad is not None}
            new = {name: sums[name] if name in sums else torch.zeros_like(g) for name, g in grads.items()}
            accumulate_gradients(list(new.values()), list(grads.values()), self.momentum)
            known.store_state(STATE_NAMESPACE, new)
            return loss

        return flat_closure


def accumulate_gradients(velocities: Sequence[Tensor], grads: Sequence[Tensor], momentum: float) -> None:
    """Another gradient for the sum, v <- momentum v + g, in place; none of it if it is not finite.

    On an accelerator, where seeing whether it is would mean to wait for it, its numbers that are not finite are
    left out.
    """
    if not grads:
        return
    if all(g.is_cpu for g in grads):
        if not bool(global_norm(grads).isfinite()):
            return
    else:
        grads = [torch.nan_to_num(g, 0.0, 0.0, 0.0) for g in grads]
    torch._foreach_mul_(list(velocities), momentum)
    torch._foreach_add_(list(velocities), list(grads))


def momentum_perturbation(velocities: Sequence[Tensor], rho: float) -> Perturbation:
    """The displacement -rho v / ||v||, the norm over all tensors jointly; zero for a zero sum."""
    return Perturbation(list(velocities), global_norm(velocities), -rho)
