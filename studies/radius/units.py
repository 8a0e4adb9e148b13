"""Flatnesses whose radius is in another unit, and the values that are tried in each unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.norms import global_norm
from flatbayes.flatness import ASAM, LESAM, SAM, Delayed, Flatness
from flatbayes.flatness.ascent import Perturbation, gradient_at_perturbation

LATE_START = 0.625
"""Fraction of training after which the late variant perturbs: that of the pilot of `rho="auto"`."""


@dataclass(frozen=True)
class WeightSAM(Flatness):
    """SAM whose radius is a share of the norm of all weights.

    Attributes:
        rho: The share.
    """

    rho: float = 0.01

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the worst loss in the ball."""

        def perturb(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            radius = self.rho * global_norm([weight.detach() for weight in weights.values()])
            return Perturbation(list(grads), global_norm(grads), radius)

        return gradient_at_perturbation(perturb, closure, model, progress=progress)


@dataclass(frozen=True)
class GradientSAM(Flatness):
    """SAM whose radius is proportional to the norm of the gradient, late in training its noise: e = rho g.

    Attributes:
        rho: The factor.
    """

    rho: float = 0.1

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is taken one step up the gradient."""

        def perturb(_: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            norm = global_norm(grads)
            return Perturbation(list(grads), norm, self.rho * norm)

        return gradient_at_perturbation(perturb, closure, model, progress=progress)


UNITS: dict[str, list[Flatness]] = {
    "none (SAM)": [SAM(rho=rho) for rho in (0.01, 0.03, 0.1, 0.3, 1.0)],
    "none, last 3/8 of training": [Delayed(SAM(rho=rho), LATE_START) for rho in (0.01, 0.03, 0.1, 0.3, 1.0)],
    "rise of the loss (LESAM)": [LESAM(loss_budget=budget, rho_max=10.0) for budget in (0.003, 0.01, 0.03, 0.1, 0.3)],
    "norm of the weights": [WeightSAM(rho=rho) for rho in (0.001, 0.003, 0.01, 0.03, 0.1)],
    "each weight (ASAM)": [ASAM(rho=rho) for rho in (0.03, 0.1, 0.3, 1.0, 3.0)],
    "norm of the gradient": [GradientSAM(rho=rho) for rho in (0.01, 0.03, 0.1, 0.3, 1.0)],
}
"""Five values in each unit, a factor of about 3 apart."""


def get_value(flatness: Flatness) -> float:
    """The radius in its unit."""
    inner = flatness.flatness if isinstance(flatness, Delayed) else flatness
    return float(inner.loss_budget if isinstance(inner, LESAM) else inner.rho)  # type: ignore[attr-defined]
