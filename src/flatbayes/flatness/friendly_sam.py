"""Friendly SAM (F-SAM): SAM along what is new in the gradient of the batch.

Li et al., CVPR 2024, Algorithm 1. Of the direction of SAM, the part along the gradient of all examples makes
generalisation worse, and that along the noise of the batch makes it better. The first one is estimated by an average
of the gradients of earlier steps, and subtracted:

    g = gradient at w
    d = g - sigma * m                       (g in the first step)
    m = momentum * m + (1 - momentum) * g   (g in the first step)
    .grad = gradient at w + rho * d / ||d||

    flat, progress = FriendlySAM(rho=0.05), TrainingProgress()
    loss = flat(closure, model, progress)()
    optimizer.step(); progress.advance()

If the gradients of all steps are equal, d is rounding noise, which must not be scaled up to the radius: its norm
counts as at least `MIN_RELATIVE_NORM` resolutions of the dtype times that of g.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.core.tensor_lists import fill_with_zeros
from flatbayes.flatness.ascent import Perturbation
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_progress, require_radius
from flatbayes.flatness.gradient_average import update_average

STATE_KIND = "friendly_sam"
MIN_RELATIVE_NORM = 10.0
"""Smallest norm of a difference that is more than rounding noise, in resolutions of the dtype."""


@dataclass(frozen=True)
class FriendlySAM(AscentFlatness):
    """Gradient along what is new in the gradient of the batch.

    Use it where batches are small, and the direction of the whole data set should not be perturbed.

    Attributes:
        rho: Distance, in the norm over all trainable weights together.
        sigma: Factor on the average that is subtracted; 0 is `SAM`.
        momentum: Fraction of the average that is left after a step.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = FriendlySAM(rho=0.1)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> progress = TrainingProgress(total_steps=100)  # of a loop of your own
        >>> loss = flatness(closure, network, progress)()
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    sigma: float = 1.0
    momentum: float = 0.9
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.sigma < inf:
            raise ValueError(f"sigma must be finite and at least 0, got {self.sigma}; 0 is SAM.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}.")

    @property
    def stationary_after(self) -> float:
        """Infinity, since the direction depends on earlier steps; 0 if it is that of SAM."""
        return inf if self.sigma > 0 else 0.0

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken along the difference.

        Raises:
            ValueError: The progress of training is not given.
        """
        progress, rho = require_progress(progress, self), require_radius(self)

        def compute_perturbation(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            averages = fill_with_zeros(progress.load_state(STATE_KIND, weights), weights)
            perturbation = friendly_perturbation(grads, averages, self.sigma, rho)
            update_average(progress, STATE_KIND, weights, grads, self.momentum)
            return perturbation

        return self.make_closure(compute_perturbation, closure, model, progress)


def friendly_perturbation(
    grads: Sequence[Tensor], averages: Sequence[Tensor], sigma: float, rho: float
) -> Perturbation:
    """Rho d / ||d||, d = grads - sigma averages, norms over all jointly; shorter where d is rounding noise."""
    differences = list(torch._foreach_sub(list(grads), list(averages), alpha=sigma))
    resolution = max(torch.finfo(grad.dtype).eps for grad in grads)
    norm = torch.maximum(global_norm(differences), MIN_RELATIVE_NORM * resolution * global_norm(grads))
    return Perturbation(differences, norm, rho, owns_directions=True)
