"""Weighted SAM (WSAM), in its coupled form: the sharpness as a regulariser with a weight of its own.

Yue et al., KDD 2023. With L the loss and L^rho the worst loss in the ball of `SAM`, the objective is
L + gamma / (1 - gamma) (L^rho - L): gamma = 1/2 is SAM, and above it the sharpness L^rho - L has more weight than in
SAM.

    g = gradient at w
    f = gradient at w + rho * g / ||g||
    .grad = g + gamma / (1 - gamma) * (f - g)

    flat = WSAM(rho=0.05, gamma=0.9)
    loss = flat(closure, model)()
    optimizer.step()

The decoupled form of the paper takes a step of the optimiser with g, and one of gradient descent with the difference.
It is not a map of closures, and not the gradient of one objective, on which posteriors rest.
"""

from dataclasses import dataclass

from torch import nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.flatness.flatness import AscentFlatness, Radius
from flatbayes.flatness.gradient_combination import combine_gradients, extrapolate_gradient


@dataclass(frozen=True)
class WSAM(AscentFlatness):
    """Gradient of the loss plus a weighted rise of the loss in a ball.

    Use it to weight the sharpness against the loss.

    Attributes:
        rho: Radius of the ball, in the norm over all trainable weights together.
        gamma: The weight of the sharpness is gamma / (1 - gamma): 0 is plain training and 0.5 `SAM`.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = WSAM(rho=0.05, gamma=0.8)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    gamma: float = 0.9
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma < 1:
            raise ValueError(f"gamma must be at least 0 and below 1, got {self.gamma}; 0.5 is SAM.")

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the loss plus the weighted sharpness."""
        weight = self.gamma / (1 - self.gamma)
        return combine_gradients(
            self,
            lambda plain, flat: extrapolate_gradient(list(plain.values()), flat, weight),
            closure,
            model,
            progress,
        )
