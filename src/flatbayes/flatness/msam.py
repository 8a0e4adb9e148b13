"""Momentum-SAM (MSAM): the one gradient of a step, taken at weights perturbed along the momentum of the steps before.

Becker et al., 2024. The weighted sum v of earlier gradients replaces the gradient of the ascent, so the direction has
no cost. The perturbed point lies ahead, where the optimiser is going; the gradients there oppose the sharp
directions, along which successive gradients disagree:

    g = gradient at w - rho * v / ||v||        (at w in the first step)
    v = momentum * v + g
    .grad = g

    flat, progress = MSAM(rho=0.5), TrainingProgress()
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()

The paper takes v from the optimiser and leaves the perturbed weights in place between steps. Here v is separate
state, so any optimiser can be used and weight decay does not enter v; weights are perturbed for the gradient only.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.devices import any_on_accelerator
from flatbayes.core.gradients import check_trainable, compute_some_gradients, dense_gradient
from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.core.tensor_lists import fill_with_zeros, flatten, group_tensors, unflatten
from flatbayes.core.traversal import trainable_by_name
from flatbayes.core.weights import perturb
from flatbayes.flatness.ascent import Perturbation, check_radius
from flatbayes.flatness.flatness import Flatness, Radius, require_progress, require_radius

STATE_KIND = "msam"


@dataclass(frozen=True)
class MSAM(Flatness):
    """Takes the one gradient of a step at a distance from the weights, against the sum of earlier gradients.

    Attributes:
        rho: Distance, in the norm over all trainable weights together; ten times the radius of SAM is usual.
        momentum: Fraction of the sum of gradients that is left after a step; that of the optimiser is usual.

    Examples:
        >>> flatness = MSAM(rho=0.5)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        1
    """

    rho: Radius = 0.5
    momentum: float = 0.9

    radius_field = "rho"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")

    gradients_per_step = 1
    stationary_after = inf  # the perturbation depends on earlier steps

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken ahead of the weights; in the first step, at the weights.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress, rho = require_progress(progress, self), require_radius(self)

        def flat_closure() -> Tensor:
            params = trainable_by_name(model)
            check_trainable(params, model)
            velocities = progress.load_state(STATE_KIND, params)
            perturbed = [params[name] for name in velocities]
            ahead = momentum_perturbation(list(velocities.values()), rho) if velocities else None
            with (
                nullcontext()
                if ahead is None
                else perturb(perturbed, ahead.directions, ahead.scale, memory=progress.memory)
            ):
                fresh = compute_some_gradients(closure, model, progress, params)
            grads = {name: dense_gradient(param) for name, param in fresh.params.items()}
            updated = dict(zip(grads, fill_with_zeros(velocities, grads), strict=True))
            accumulate_gradients(list(updated.values()), list(grads.values()), self.momentum)
            progress.store_state(STATE_KIND, updated)
            return fresh.loss

        return flat_closure


def accumulate_gradients(velocities: Sequence[Tensor], grads: Sequence[Tensor], momentum: float) -> None:
    """Update the sum v <- momentum v + g in place, and leave it unchanged if the gradient is not finite.

    Args:
        velocities: v, one per tensor.
        grads: g, one per tensor.
        momentum: Fraction of v that is left.
    """
    if not grads:
        return
    is_finite = global_norm(grads).isfinite()
    if not is_finite.ndim and any_on_accelerator(grads):  # reading it would wait
        _accumulate_if(is_finite, velocities, grads, momentum)
    elif is_finite.ndim:  # of each network
        conditions = [broadcast_per_network(is_finite, g) for g in grads]
        sums = torch._foreach_add(torch._foreach_mul(list(velocities), momentum), list(grads))
        pairs = zip(conditions, sums, velocities, strict=True)
        torch._foreach_copy_(list(velocities), [torch.where(condition, new, old) for condition, new, old in pairs])
    elif bool(is_finite):
        torch._foreach_mul_(list(velocities), momentum)
        torch._foreach_add_(list(velocities), list(grads))


def _accumulate_if(condition: Tensor, velocities: Sequence[Tensor], grads: Sequence[Tensor], momentum: float) -> None:
    """`accumulate_gradients` without reading the condition, in few kernels."""
    for group in group_tensors(grads):
        members, sums = [grads[k] for k in group], [velocities[k] for k in group]
        accepted = flatten(members).masked_fill_(condition.logical_not(), 0.0)
        torch._foreach_mul_(sums, members[0].new_ones(()).masked_fill_(condition, momentum))
        torch._foreach_add_(sums, unflatten(accepted, members))


def momentum_perturbation(velocities: Sequence[Tensor], rho: float) -> Perturbation:
    """-rho v / ||v||, the norm over all tensors jointly; zero for a zero sum.

    Args:
        velocities: v, one per tensor.
        rho: Length of the perturbation.
    """
    return Perturbation(list(velocities), global_norm(velocities), -rho)
