"""Variance suppressed SAM (VaSSO): SAM whose direction is an average of the gradients of earlier steps.

Li & Giannakis, NeurIPS 2023. The gradient of a batch is a noisy direction of ascent; a moving average has less noise:

    g = gradient at w
    m = (1 - theta) * m + theta * g          (g in the first step)
    .grad = gradient at w + rho * m / ||m||

    flat, progress = VaSSO(rho=0.05, theta=0.9), TrainingProgress()
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.flatness.ascent import Perturbation
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_progress, require_radius
from flatbayes.flatness.gradient_average import update_average

STATE_KIND = "vasso"


@dataclass(frozen=True)
class VaSSO(AscentFlatness):
    """Gradient along an average of the gradients of several steps.

    Use it where small batches make the direction of the ascent noisy.

    Attributes:
        rho: Distance, in the norm over all trainable weights together.
        theta: Weight of the newest gradient in the average, above 0; 1 is `SAM`.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = VaSSO(rho=0.1, theta=0.4)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    theta: float = 0.9
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.theta <= 1:
            raise ValueError(f"theta must be above 0 and at most 1, got {self.theta}; 1 is SAM.")

    @property
    def stationary_after(self) -> float:
        """Infinity, since the direction belongs to earlier weights too; 0 if it is that of SAM."""
        return inf if self.theta < 1 else 0.0

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken along the average.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress, rho = require_progress(progress, self), require_radius(self)

        def compute_perturbation(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            averages = update_average(progress, STATE_KIND, weights, grads, decay=1 - self.theta)
            return averaged_perturbation(grads, averages, rho)

        return self.make_closure(compute_perturbation, closure, model, progress)


def averaged_perturbation(grads: Sequence[Tensor], averages: Sequence[Tensor], rho: float) -> Perturbation:
    """Rho m / ||m||, the norm over all tensors jointly; zero for a zero average.

    The gradients do not decide the direction, but one that is not finite makes the norm NaN, so that the ascent ends
    as in SAM.
    """
    return Perturbation(list(averages), global_norm(averages) + 0 * global_norm(grads), rho)
