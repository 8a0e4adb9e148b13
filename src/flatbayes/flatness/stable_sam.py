"""Stable SAM: the direction of the SAM gradient with the length of the plain gradient.

Tan et al., 2024, arXiv 2401.07250. The gradient of SAM is longer than the plain one near a minimum, where the ball
reaches up the walls, so that SAM needs smaller learning rates. Here steps are as long as those without a flatness.

    g = gradient at w
    f = gradient at w + rho * g / ||g||
    .grad = ||g|| * f / ||f||

    flat = StableSAM(rho=0.05)
    loss = flat(closure, model)()
    optimizer.step()
"""

from dataclasses import dataclass
from math import inf

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.flatness.flatness import AscentFlatness, Radius
from flatbayes.flatness.gradient_combination import combine_gradients, match_norm


@dataclass(frozen=True)
class StableSAM(AscentFlatness):
    """Gradient of SAM at the length of the plain gradient.

    Use it at large learning rates, where SAM becomes unstable.

    Attributes:
        rho: Radius of the ball, in the norm over all trainable weights together.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = StableSAM(rho=0.1)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    stationary_after = inf  # a field of vectors that is not the gradient of a function

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient has the direction of that of SAM."""
        return combine_gradients(
            self, lambda plain, flat: match_norm(list(plain.values()), flat), closure, model, progress
        )
