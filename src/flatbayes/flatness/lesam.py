"""Loss-equated SAM (LE-SAM): the gradient where the loss has risen by a given budget, to first order.

ICML 2026, arXiv 2605.10183. To first order the loss rises by radius times ||g||. With a fixed radius the rise is
large where the gradient is large, and near 0 at a minimum. Here the rise is fixed and the radius follows from it:

    g = gradient at w
    radius = min(loss_budget / ||g||, rho_max)
    e = radius * g / ||g||
    .grad = gradient at w + e

    flat = LESAM(loss_budget=0.05, rho_max=0.5)
    loss = flat(closure, model)()
    optimizer.step()
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import MIN_NORM, Perturbation, check_radius, check_radius_or_auto
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_radius, require_training_fraction


@dataclass(frozen=True)
class LESAM(AscentFlatness):
    """Gradient where the loss has risen by a given amount.

    Use it to give the rise of the loss in place of a radius.

    The amount is in units of the loss, so gradients must not be scaled: precision `16-mixed` cannot be used.

    Attributes:
        loss_budget: The rise of the loss; that of SAM is its radius times the norm of the gradient.
        rho_max: Largest radius, in the norm over all trainable weights together.
        anneal: Fraction of training, at its end, over which the budget decreases to 0 along half a cosine wave.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = LESAM(loss_budget=0.05)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    loss_budget: Radius = 0.05
    rho_max: float = 0.5
    anneal: float = 0.0
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "loss_budget"
    depends_on_loss_scale = True

    def __post_init__(self) -> None:
        check_radius(self.rho_max, "rho_max is a radius")
        check_radius_or_auto(self.loss_budget, "loss_budget is a rise of the loss")
        super().__post_init__()
        if not 0 <= self.anneal <= 1:
            raise ValueError(f"anneal is a fraction of training, from 0 to 1; got {self.anneal}.")

    @property
    def stationary_after(self) -> float:
        """0; infinity if the budget changes until the end."""
        return math.inf if self.anneal > 0 else 0.0

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken where the loss has risen.

        Raises:
            ValueError: The budget is annealed, and the progress of training is not given or has no total_steps.
        """
        loss_budget = require_radius(self)
        decay = cosine_decay(require_training_fraction(progress, self), self.anneal) if self.anneal > 0 else 1.0
        return self.make_closure(
            lambda _, grads: loss_equated_perturbation(grads, loss_budget * decay, self.rho_max),
            closure,
            model,
            progress,
        )


def loss_equated_perturbation(grads: Sequence[Tensor], loss_budget: float, rho_max: float) -> Perturbation:
    """Radius g / ||g||, radius = min(loss_budget / ||g||, rho_max), norms over all tensors jointly; zero if g is."""
    norm = global_norm(grads)
    return Perturbation(list(grads), norm, (loss_budget / norm.clamp(min=MIN_NORM)).clamp(max=rho_max))


def cosine_decay(fraction_done: float, decay_fraction: float) -> float:
    """1 until the last `decay_fraction` of training, then (1 + cos(pi t)) / 2 with t the fraction of that part done.

    >>> [round(cosine_decay(done, 0.5), 3) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    t = (fraction_done - (1 - decay_fraction)) / decay_fraction
    return (1 + math.cos(math.pi * min(max(t, 0.0), 1.0))) / 2
