"""Fisher SAM: the gradient at the worst point of a ball in the Fisher metric of the predictions.

Kim et al., ICML 2022. The ball is eᵀ F e <= rho², so directions in which the predictions change fast are perturbed
less. F is diagonal, from the squares of the batch's own gradient, with F⁻¹ replaced by the bounded
1 / (1 + eta g² / mean g²). The paper does not divide by the mean, so its eta depends on the size of the batch.

    g = gradient at w
    repeat ascent_steps times:
        e = rho * F⁻¹ g / sqrt(gᵀ F⁻¹ g)
        g = gradient at w + e
    .grad = g

    flat = FisherSAM(rho=0.05)
    loss = flat(closure, model)()
    optimizer.step()
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.context import num_vectorized
from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.flatness.ascent import Perturbation, check_ascent_steps, check_radius, gradient_at_perturbation
from flatbayes.flatness.flatness import Flatness


@dataclass(frozen=True)
class FisherSAM(Flatness):
    """Takes the gradient at the worst point of an ellipsoid that is short where the squared gradient is large.

    Attributes:
        rho: Radius in the Fisher metric.
        eta: Weight of the squared gradient, relative to its mean over all weights, in the metric; 0 is `SAM`.
        ascent_steps: Number of ascent steps; each costs one gradient.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
    """

    rho: float = 0.05
    eta: float = 1.0
    ascent_steps: int = 1
    resample_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_ascent_steps(self.ascent_steps)
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta weighs the squared gradient: it must be finite and at least 0, got {self.eta}.")

    @property
    def gradients_per_step(self) -> int:
        """One for each ascent step, and the final one."""
        return 1 + self.ascent_steps

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the worst loss in the ellipsoid."""
        return gradient_at_perturbation(
            lambda _, grads: fisher_perturbation(grads, inverse_fisher(grads, self.eta), self.rho),
            closure,
            model,
            ascent_steps=self.ascent_steps,
            resample_noise=self.resample_noise,
            progress=progress,
        )


def inverse_fisher(grads: Sequence[Tensor], eta: float) -> list[Tensor]:
    """1 / (1 + eta g² / mean g²), elementwise, the mean over all tensors together.

    Args:
        grads: One gradient per tensor.
        eta: Weight of the squared gradient.
    """
    squared_norm = global_norm(grads).square()
    mean = squared_norm / (sum(g.numel() for g in grads) // max(1, num_vectorized()))
    relative = torch.where(mean > 0, eta / mean, 0.0)
    return [1 / (1 + (broadcast_per_network(relative, g) * g.to(relative.dtype).square()).to(g.dtype)) for g in grads]


def fisher_perturbation(grads: Sequence[Tensor], inverse_diagonal: Sequence[Tensor], rho: float) -> Perturbation:
    """Maximiser of <g, e> over eᵀ F e <= rho² for a diagonal F: e = rho F⁻¹ g / sqrt(gᵀ F⁻¹ g).

    Args:
        grads: One gradient per tensor.
        inverse_diagonal: Diagonal of F⁻¹, positive, of the gradients' shapes.
        rho: Radius of the ellipsoid.

    Returns:
        One perturbation per tensor, zero for a zero gradient.
    """
    half = torch._foreach_mul(list(grads), [i.sqrt() for i in inverse_diagonal])
    return Perturbation(list(torch._foreach_mul(list(grads), list(inverse_diagonal))), global_norm(half), rho)
