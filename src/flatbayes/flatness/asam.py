"""Adaptive SAM (Kwon et al., ICML 2021): a ball that grows with the weights, so that rescaling does not matter.

Networks compute the same function after one layer is scaled up and the next one down, but Euclidean sharpness
changes. In the norm ||e / T|| with T = |w| it does not. As in the authors' code, T = |w| + eta for tensors named
`weight` and 1 for the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.core.parameter_selection import ParameterSelection, check_selection
from flatbayes.flatness.aiming import check_ascent_batch_fraction, gradient_at_restricted_perturbation
from flatbayes.flatness.ascent import Perturbation, check_ascent_steps, check_radius
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class ASAM(Flatness):
    """Asks at the worst point of a ball whose axes are proportional to the weights.

    Attributes:
        rho: Radius, relative to the weights; ten times that of SAM is a usual start.
        eta: Added to |w|, so that weights at zero can move too.
        ascent_steps: Times the displacement is aimed; every one costs a gradient.
        resample_noise: Draw new dropout masks for the second pass instead of replaying those of the first.
        ascent_batch_fraction: Share of the batch that the displacement is aimed with. It is the closure that saves
            the rest: see
            `flatbayes.core.subset_batch`. Running statistics then move at the displaced weights.
        params: Which parameters are displaced, in a ball of their own: `norms`, those of normalisation layers
            (Mueller et al., NeurIPS 2023), with a radius some ten times as large; `last_layer`, `weights`, `biases`,
            `no_biases`, `all`, or a list of name patterns. The passes that aim compute no other gradients.
    """

    rho: float = 0.5
    eta: float = 0.01
    ascent_steps: int = 1
    resample_noise: bool = False
    ascent_batch_fraction: float = 1.0
    params: ParameterSelection = "all"

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_ascent_steps(self.ascent_steps)
        check_ascent_batch_fraction(self.ascent_batch_fraction)
        check_selection(self.params, "params")
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta is added to |w|: it must be finite and at least 0, got {self.eta}.")

    @property
    def gradients_per_step(self) -> float:
        """One to aim with for each ascent step, or a part of one, and the final one."""
        return self.ascent_steps * self.ascent_batch_fraction + 1

    stationary_after = 0.0  # the worst loss in the ball, to first order

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is that of the worst loss in the adaptive ball."""
        return gradient_at_restricted_perturbation(
            lambda weights, grads: adaptive_perturbation(grads, adaptive_scale(weights, self.eta), self.rho),
            closure,
            model,
            ascent_steps=self.ascent_steps,
            resample_noise=self.resample_noise,
            ascent_batch_fraction=self.ascent_batch_fraction,
            params=self.params,
        )


def adaptive_scale(weights: Mapping[str, Tensor], eta: float) -> list[Tensor]:
    """T: `|w| + eta` for tensors whose own name is `weight`, 1 for all others."""
    return [
        w.detach().abs() + eta if name.rpartition(".")[2] == "weight" else torch.ones_like(w)
        for name, w in weights.items()
    ]


def adaptive_perturbation(grads: Sequence[Tensor], scale: Sequence[Tensor], rho: float) -> Perturbation:
    """Maximiser of <g, e> over ||e / T|| <= rho: e = rho T² g / ||T g|| (Kwon et al., Algorithm 1).

    Args:
        grads: One gradient per tensor.
        scale: T, positive, of the gradients' shapes.
        rho: Radius of the ball.

    Returns:
        One displacement per tensor, zero for a zero gradient.
    """
    directions = list(torch._foreach_mul(list(grads), list(scale)))
    norm = global_norm(directions)
    torch._foreach_mul_(directions, list(scale))
    return Perturbation(directions, norm, rho)
