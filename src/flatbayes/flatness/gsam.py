"""Surrogate gap guided SAM (GSAM): the SAM gradient without what would raise the gap between flat and plain loss.

Zhuang et al., ICLR 2022, Algorithm 1. The worst loss L^rho in the ball may be low while the gap L^rho - L, which
measures the sharpness, is not. The part of the plain gradient that is orthogonal to the flat one lowers L and not
L^rho, so a step against it lowers the gap and leaves L^rho as it is:

    g = gradient at w
    f = gradient at w + rho * g / ||g||
    g_orthogonal = g - (g·f / f·f) f
    .grad = f - alpha * g_orthogonal

    flat = GSAM(rho=0.05, alpha=0.4)
    loss = flat(closure, model)()
    optimizer.step()

The paper lets rho follow the learning rate; here it is constant, as in all flatnesses.
"""

from dataclasses import dataclass
from math import inf

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.flatness.flatness import AscentFlatness, Radius
from flatbayes.flatness.gradient_combination import combine_gradients, subtract_orthogonal_part


@dataclass(frozen=True)
class GSAM(AscentFlatness):
    """Gradient of SAM minus the part of the plain one orthogonal to it.

    Use it to lower the sharpness without raising the loss.

    Attributes:
        rho: Radius of the ball, in the norm over all trainable weights together.
        alpha: Fraction of the orthogonal part that is subtracted; 0 is `SAM`.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = GSAM(rho=0.1, alpha=0.2)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    alpha: float = 0.4
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < inf:
            raise ValueError(f"alpha must be finite and at least 0, got {self.alpha}; 0 is SAM.")

    @property
    def stationary_after(self) -> float:
        """Infinity, since the field of vectors is not the gradient of a function; 0 if it is that of SAM."""
        return inf if self.alpha > 0 else 0.0

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of SAM without the orthogonal part."""
        return combine_gradients(
            self,
            lambda plain, flat: subtract_orthogonal_part(list(plain.values()), flat, self.alpha),
            closure,
            model,
            progress,
        )
