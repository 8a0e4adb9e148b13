"""Loss-equated SAM (LE-SAM, ICML 2026, arXiv 2605.10183): a budget for the rise of the loss in place of a radius.

To first order the loss rises by radius times ||g||. With a fixed radius that is much where the gradient is large, and
next to nothing near a minimum, where flatness is decided. Here the rise is fixed and the radius follows from it:
radius = min(loss / ||g||, rho_max).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import MIN_NORM, Perturbation, check_radius, gradient_at_perturbation
from flatbayes.flatness.flatness import Flatness, require_training_fraction


@dataclass(frozen=True)
class LESAM(Flatness):
    """Asks where the loss has risen by a given amount, to first order.

    The amount is in units of the loss, so gradients must not be scaled: it is not for precision `16-mixed`.

    Attributes:
        loss_budget: The rise; that of SAM is its radius times the norm of the gradient.
        rho_max: Largest radius, the norm taken over all trainable weights together.
        anneal: Share of training, at its end, over which the rise goes down to 0 on half a cosine wave.
        resample_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
    """

    loss_budget: float = 0.05
    rho_max: float = 0.5
    anneal: float = 0.0
    resample_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho_max)
        if not 0 <= self.loss_budget < math.inf:
            raise ValueError(
                f"loss_budget is a rise of the loss: it must be finite and at least 0, got {self.loss_budget}."
            )
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal is a share of training, from 0 to 1; got {self.anneal}.")

    gradients_per_step = 2  # one to aim with, and the final one

    @property
    def stationary_after(self) -> float:
        """From the beginning; never if the rise changes to the end."""
        return math.inf if self.anneal > 0 else 0.0

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is taken where the loss has risen.

        Raises:
            ValueError: The rise is annealed, and no course says how far training has come.
        """
        left = cosine_decay(require_training_fraction(progress, self), self.anneal) if self.anneal > 0 else 1.0
        return gradient_at_perturbation(
            lambda _, grads: loss_equated_perturbation(grads, self.loss_budget * left, self.rho_max),
            closure,
            model,
            resample_noise=self.resample_noise,
        )


def loss_equated_perturbation(grads: Sequence[Tensor], loss_budget: float, rho_max: float) -> Perturbation:
    """The displacement radius g / ||g|| with radius = min(loss / ||g||, rho_max), norms over all tensors jointly.

    Args:
        grads: One gradient per tensor.
        loss_budget: What <g, e> is to be.
        rho_max: Largest radius.

    Returns:
        One displacement per tensor, zero for a zero gradient.
    """
    norm = global_norm(grads)
    return Perturbation(list(grads), norm, (loss_budget / norm.clamp(min=MIN_NORM)).clamp(max=rho_max))


def cosine_decay(fraction_done: float, decay_fraction: float) -> float:
    """1 until the last share of training begins, then (1 + cos(pi t)) / 2 with t the part of that share done.

    >>> [round(annealed(done, 0.5), 3) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    t = (fraction_done - (1 - decay_fraction)) / decay_fraction
    return (1 + math.cos(math.pi * min(max(t, 0.0), 1.0))) / 2
