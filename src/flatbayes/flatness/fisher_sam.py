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

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.context import num_vectorized
from flatbayes.core.norms import broadcast_per_network, global_norm
from flatbayes.flatness.ascent import Perturbation, perturbation_in_groups
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_radius


@dataclass(frozen=True)
class FisherSAM(AscentFlatness):
    """Gradient at the worst point of a ball in the Fisher metric.

    Use it where the outputs, not the weights, should change by a bounded amount.

    Attributes:
        rho: Radius in the Fisher metric.
        eta: Weight of the squared gradient, relative to its mean over all weights, in the metric; 0 is `SAM`.
        ascent_steps: Number of ascent steps; each costs one gradient.
        resample_noise: Draw new dropout masks in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> flatness = FisherSAM(rho=0.05)
        >>> fitted = fit(MLP, data, SWAG(rank=2), flatness, config)
        >>> loss = flatness(closure, network)()  # in a loop of your own
        >>> flatness.gradients_per_step
        2.0
    """

    rho: Radius = 0.05
    eta: float = 1.0
    ascent_steps: int = 1
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta weighs the squared gradient: it must be finite and at least 0, got {self.eta}.")

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the worst loss in the ellipsoid."""
        rho = require_radius(self)
        return self.make_closure(lambda _, grads: self._compute_perturbation(grads, rho), closure, model, progress)

    def _compute_perturbation(self, grads: Sequence[Tensor], rho: float) -> Perturbation:
        weight = relative_weight(grads, self.eta)
        return fisher_perturbation(grads, lambda group: inverse_diagonal([grads[k] for k in group], weight), rho)


def relative_weight(grads: Sequence[Tensor], eta: float) -> Tensor:
    """Eta / mean g², the mean over all tensors together; 0 for a zero gradient."""
    squared_norm = global_norm(grads).square()
    mean = squared_norm / (sum(g.numel() for g in grads) // max(1, num_vectorized()))
    return torch.where(mean > 0, eta / mean, 0.0)


def inverse_diagonal(grads: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """1 / (1 + weight g²), elementwise; the weight is a number, or one per vectorized network."""
    wide = [g.to(weight.dtype) for g in grads]
    squares = list(torch._foreach_mul(wide, wide))
    if weight.ndim:
        torch._foreach_mul_(squares, [broadcast_per_network(weight, square) for square in squares])
    else:
        torch._foreach_mul_(squares, weight.to(squares[0].device))
    squares = [square.to(g.dtype) for square, g in zip(squares, grads, strict=True)]
    torch._foreach_add_(squares, 1)
    torch._foreach_reciprocal_(squares)
    return squares


def fisher_perturbation(
    grads: Sequence[Tensor], compute_inverse: Callable[[list[int]], Sequence[Tensor]], rho: float
) -> Perturbation:
    """Maximiser of <g, e> over eᵀ F e <= rho² for a diagonal F: e = rho F⁻¹ g / sqrt(gᵀ F⁻¹ g).

    `compute_inverse` gives the diagonal of F⁻¹, positive, of the tensors with the given indices. The perturbation is
    zero for a zero gradient.
    """

    def compute_group(group: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        members, inverse = [grads[k] for k in group], list(compute_inverse(group))
        half = torch._foreach_mul(members, torch._foreach_sqrt(inverse))  # its norm is that of F⁻¹ g in the metric F
        return list(torch._foreach_mul(members, inverse)), list(half)

    return perturbation_in_groups(compute_group, grads, rho)
