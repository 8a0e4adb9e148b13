"""Sharpness-aware minimisation (Foret et al., ICLR 2021): the gradient at the worst point of a Euclidean ball.

The worst point of max over ||e|| <= rho of L(w + e) is found by first-order ascent, e = rho g / ||g|| with g the
gradient at w. Re-aiming the displacement at the gradient found there (a generalised power method) approaches the
exact maximum; one step is Foret et al.'s Algorithm 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.core.parameter_selection import ParameterSelection, check_selection
from flatbayes.flatness.aiming import check_ascent_batch_fraction, gradient_at_restricted_perturbation
from flatbayes.flatness.ascent import Perturbation, check_ascent_steps, check_radius
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class SAM(Flatness):
    """Asks at the worst point of a Euclidean ball around the weights.

    Attributes:
        rho: Radius of the ball, the norm taken over all trainable weights together.
        ascent_steps: Times the displacement is aimed; every one costs a gradient.
        resample_noise: Draw new dropout masks for the second pass, as the paper's code does, instead of replaying
            those of the first.
        ascent_batch_fraction: Share of the batch that the displacement is aimed with. It is the closure that saves
            the rest: see
            `flatbayes.core.subset_batch`. Running statistics then move at the displaced weights.
        params: Which parameters are displaced, in a ball of their own: `norms`, those of normalisation layers
            (Mueller et al., NeurIPS 2023), with a radius some ten times as large; `last_layer`, `weights`, `biases`,
            `no_biases`, `all`, or a list of name patterns. The passes that aim compute no other gradients.
    """

    rho: float = 0.05
    ascent_steps: int = 1
    resample_noise: bool = False
    ascent_batch_fraction: float = 1.0
    params: ParameterSelection = "all"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_ascent_steps(self.ascent_steps)
        check_ascent_batch_fraction(self.ascent_batch_fraction)
        check_selection(self.params, "params")

    @property
    def gradients_per_step(self) -> float:
        """One to aim with for each ascent step, or a part of one, and the final one."""
        return self.ascent_steps * self.ascent_batch_fraction + 1

    stationary_after = 0.0  # the worst loss in the ball, to first order

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is that of the worst loss in the ball."""
        return gradient_at_restricted_perturbation(
            lambda _, grads: euclidean_perturbation(grads, self.rho),
            closure,
            model,
            ascent_steps=self.ascent_steps,
            resample_noise=self.resample_noise,
            ascent_batch_fraction=self.ascent_batch_fraction,
            params=self.params,
        )


def euclidean_perturbation(grads: Sequence[Tensor], rho: float) -> Perturbation:
    """Maximiser of <g, e> over ||e|| <= rho: e = rho g / ||g||, the norm over all tensors jointly.

    Args:
        grads: One gradient per tensor.
        rho: Radius of the ball.

    Returns:
        One displacement per tensor, zero for a zero gradient.
    """
    return Perturbation(list(grads), global_norm(grads), rho)
