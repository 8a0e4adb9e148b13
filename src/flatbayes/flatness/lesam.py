"""Loss-equated SAM (LE-SAM, ICML 2026, arXiv 2605.10183): a budget for the rise of the loss in place of a radius.

To first order the loss rises by radius times ||g||. With a fixed radius that is much where the gradient is large, and
next to nothing near a minimum, where flatness is decided. Here the rise is fixed and the radius follows from it:
radius = min(loss / ||g||, rho_max).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, Course
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import TINY, Offset, asked_at, check_radius
from flatbayes.flatness.flatness import Flatness, progress


@dataclass(frozen=True)
class LESAM(Flatness):
    """Asks where the loss has risen by a given amount, to first order.

    The amount is in units of the loss, so gradients must not be scaled: it is not for precision `16-mixed`.

    Attributes:
        loss: The rise; that of SAM is its radius times the norm of the gradient.
        rho_max: Largest radius, the norm taken over all trainable weights together.
        anneal: Share of training, at its end, over which the rise goes down to 0 on half a cosine wave.
        fresh_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
    """

    loss: float = 0.05
    rho_max: float = 0.5
    anneal: float = 0.0
    fresh_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho_max)
        if not 0 <= self.loss < math.inf:
            raise ValueError(f"loss is a rise of the loss: it must be finite and at least 0, got {self.loss}.")
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal is a share of training, from 0 to 1; got {self.anneal}.")

    gradients = 2  # one to aim with, and the final one

    @property
    def one_loss_from(self) -> float:
        """From the beginning; never if the rise changes to the end."""
        return math.inf if self.anneal > 0 else 0.0

    def __call__(self, closure: Closure, model: nn.Module, course: Course | None = None) -> Closure:
        """The closure whose gradient is taken where the loss has risen.

        Raises:
            ValueError: The rise is annealed, and no course says how far training has come.
        """
        left = annealed(progress(course, self), self.anneal) if self.anneal > 0 else 1.0
        return asked_at(
            lambda _, grads: loss_equated_offset(grads, self.loss * left, self.rho_max),
            closure,
            model,
            fresh_noise=self.fresh_noise,
        )


def loss_equated_offset(grads: Sequence[Tensor], loss: float, rho_max: float) -> Offset:
    """The displacement radius g / ||g|| with radius = min(loss / ||g||, rho_max), norms over all tensors jointly.

    Args:
        grads: One gradient per tensor.
        loss: What <g, e> is to be.
        rho_max: Largest radius.

    Returns:
        One displacement per tensor, zero for a zero gradient.
    """
    norm = global_norm(grads)
    return Offset(list(grads), norm, (loss / norm.clamp(min=TINY)).clamp(max=rho_max))


def annealed(done: float, share: float) -> float:
    """1 until the last share of training begins, then (1 + cos(pi t)) / 2 with t the part of that share done.

    >>> [round(annealed(done, 0.5), 3) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    t = (done - (1 - share)) / share
    return (1 + math.cos(math.pi * min(max(t, 0.0), 1.0))) / 2
