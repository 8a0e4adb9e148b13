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

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.gradients import check_trainable, compute_some_gradients, dense_gradient
from flatbayes.core.norms import global_norm
from flatbayes.core.tensor_lists import fill_with_zeros
from flatbayes.core.traversal import trainable_by_name
from flatbayes.core.weights import perturb
from flatbayes.flatness.ascent import Perturbation, check_radius_or_auto
from flatbayes.flatness.flatness import Flatness, Radius, require_progress, require_radius
from flatbayes.flatness.gradient_average import accumulate_gradients

STATE_KIND = "msam"


@dataclass(frozen=True)
class MSAM(Flatness):
    """One gradient a step, ahead of the weights along earlier ones.

    Use it for flatness at one gradient a step with an optimizer.

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
        check_radius_or_auto(self.rho)
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


def momentum_perturbation(velocities: Sequence[Tensor], rho: float) -> Perturbation:
    """-rho v / ||v||, the norm over all tensors jointly; zero for a zero sum."""
    return Perturbation(list(velocities), global_norm(velocities), -rho)
