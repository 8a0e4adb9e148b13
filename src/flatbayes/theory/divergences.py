"""KL divergences between Bernoulli and between Gaussian distributions, and selection of the prior scale."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.theory.numerics import check_probability, find_increasing_root


def binary_kl(q: float, p: float) -> float:
    """kl(q || p) = q log(q/p) + (1 - q) log((1 - q)/(1 - p)), of Bernoulli distributions, in nats.

    Args:
        q: Success probability of the first distribution.
        p: Success probability of the second one; the divergence is infinite where p is 0 or 1 and q is not.

    Examples:
        >>> round(binary_kl(0.1, 0.2), 4), binary_kl(0.1, 0.0)
        (0.0367, inf)
    """
    check_probability("q", q)
    check_probability("p", p)
    if abs(p - q) < min(q, 1 - q) / 2:
        return _kl_from_shift(q, p, p - q)  # the two terms of the formula nearly cancel here
    return _relative_entropy_term(q, p) + _relative_entropy_term(1 - q, 1 - p)


def inverse_kl(q: float, budget: float) -> float:
    """The largest p with kl(q || p) <= budget: an upper bound on a mean whose empirical value is q.

    Bisection over p - q, to rounding.

    Args:
        q: Empirical mean, in [0, 1].
        budget: Largest divergence, in nats.

    Examples:
        >>> round(inverse_kl(0.1, budget=0.05), 4)
        0.2201
    """
    check_probability("q", q)
    if not budget >= 0:
        raise ValueError(f"budget is a divergence: it must be at least 0, got {budget}.")
    largest = min(1 - q, math.sqrt(budget / 2))  # Pinsker: 2 (p - q)² <= kl(q || p)
    shift = find_increasing_root(lambda shift: _kl_from_shift(q, q + shift, shift), 0.0, largest, target=budget)
    return min(1.0, q + shift)


def gaussian_kl(
    mean: Float[Tensor, "..."],
    std: Float[Tensor, "..."],
    prior_mean: Float[Tensor, "..."] | float,
    prior_std: Float[Tensor, "..."] | float,
) -> float:
    """KL(N(μ, σ²) || N(μ₀, σ₀²)) = Σ [(σ²/σ₀² + (μ - μ₀)²/σ₀² - 1) / 2 - log(σ/σ₀)], diagonal covariances, in nats.

    Args:
        mean: μ, one entry a weight.
        std: σ, of the same shape, positive.
        prior_mean: μ₀, of the same shape or one for all.
        prior_std: σ₀, likewise, positive.

    Examples:
        >>> round(
        ...     gaussian_kl(
        ...         torch.tensor([1.0]), torch.tensor([0.5]), prior_mean=0.0, prior_std=1.0
        ...     ),
        ...     4,
        ... )
        0.8181
    """
    mean, std, prior_mean, prior_std = _check_gaussians(mean, std, prior_mean, prior_std)
    ratio = (std / prior_std) ** 2
    terms = ratio - 1 - ratio.log() + ((mean - prior_mean) / prior_std) ** 2
    return float((terms / 2).sum().clamp(min=0))


@dataclass(frozen=True)
class PriorScale:
    """The best scale on a grid of isotropic Gaussian priors, and the cost of selecting it on the training data.

    Attributes:
        scale: Standard deviation σ₀ of the selected prior.
        kl: KL(Q || N(μ₀, σ₀² I)), in nats.
        cost: log K for a grid of K scales.

    Examples:
        >>> prior = select_prior_scale(
        ...     torch.zeros(100), torch.full((100,), 0.1), 0.0, scales=[0.01, 0.1, 1.0]
        ... )
        >>> prior.scale, round(prior.kl, 3), round(prior.complexity, 3)
        (0.1, 0.0, 1.099)
    """

    scale: float
    kl: float
    cost: float

    @property
    def complexity(self) -> float:
        """`kl + cost`, the divergence from the prior that a bound takes."""
        return self.kl + self.cost


def prior_scale_grid(smallest: float, largest: float, num_scales: int) -> list[float]:
    """A geometric grid of K standard deviations, smallest (largest/smallest)^{k/(K-1)} for k = 0 .. K-1.

    The grid must be fixed before the data are seen.

    Args:
        smallest: First scale, positive.
        largest: Last scale.
        num_scales: K; one scale is a grid only if it is both smallest and largest.

    Examples:
        >>> [round(scale, 3) for scale in prior_scale_grid(0.01, 1.0, num_scales=3)]
        [0.01, 0.1, 1.0]
    """
    if not 0 < smallest <= largest < math.inf:
        raise ValueError(f"scales must satisfy 0 < smallest <= largest < inf, got {smallest} and {largest}.")
    if num_scales < 1 or (num_scales == 1) != (smallest == largest):
        raise ValueError(
            f"num_scales must be 1 for a single scale and at least 2 from one scale to another, "
            f"got {num_scales} from {smallest} to {largest}."
        )
    if num_scales == 1:
        return [smallest]
    step = math.log(largest / smallest) / (num_scales - 1)
    return [smallest * math.exp(k * step) for k in range(num_scales - 1)] + [largest]


def select_prior_scale(
    mean: Float[Tensor, "..."],
    std: Float[Tensor, "..."],
    prior_mean: Float[Tensor, "..."] | float,
    scales: Sequence[float],
) -> PriorScale:
    """The prior N(μ₀, σ₀² I) nearest to N(μ, diag σ²), with σ₀ from a grid, and the cost of the selection.

    The prior is the uniform mixture over the K scales of the grid, from which KL(Q || mixture) <=
    KL(Q || component) + log K for every component. This equals a union bound that gives each scale δ/K; log K nats
    are the cost of selecting the scale on the data.

    Args:
        mean: μ, one entry a weight.
        std: σ, of the same shape, positive.
        prior_mean: μ₀, of the same shape or one for all; independent of the data of the bound.
        scales: The grid, for example from `prior_scale_grid`; also independent of these data.

    Examples:
        >>> scales = prior_scale_grid(0.01, 1.0, num_scales=3)
        >>> prior = select_prior_scale(torch.zeros(100), torch.full((100,), 0.1), 0.0, scales)
        >>> round(prior.scale, 3), round(prior.cost, 3)
        (0.1, 1.099)
    """
    if not scales or not all(0 < scale < math.inf for scale in scales):
        raise ValueError(f"scales must be at least one positive, finite standard deviation, got {list(scales)}.")
    mean, std, prior_mean, _ = _check_gaussians(mean, std, prior_mean, 1.0)
    squares = float((std**2 + (mean - prior_mean) ** 2).sum())
    # KL up to a constant: P log σ₀ + Σ (σ² + (μ - μ₀)²) / (2 σ₀²)
    scale = min(scales, key=lambda s: mean.numel() * math.log(s) + squares / (2 * s**2))
    return PriorScale(scale, gaussian_kl(mean, std, prior_mean, scale), math.log(len(scales)))


def _relative_entropy_term(q: float, p: float) -> float:
    if q == 0:
        return 0.0
    return q * math.log(q / p) if p > 0 else math.inf


def _kl_from_shift(q: float, p: float, shift: float) -> float:
    """The divergence kl(q || p) for p = q + shift, with a rounding error relative to the shift."""
    total = 0.0
    for weight, other, change in ((q, p, shift), (1 - q, 1 - q - shift, -shift)):
        if weight > 0 and other <= 0:
            return math.inf
        if abs(change) < weight / 2:
            total -= weight * math.log1p(change / weight)
        elif weight > 0:
            total += weight * math.log(weight / other)
    return max(0.0, total)


def _check_gaussians(
    mean: Tensor, std: Tensor, prior_mean: Tensor | float, prior_std: Tensor | float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, std = mean.double(), std.double()
    prior_mean = torch.as_tensor(prior_mean, dtype=torch.float64, device=mean.device)
    prior_std = torch.as_tensor(prior_std, dtype=torch.float64, device=mean.device)
    for name, tensor in (("std", std), ("prior_mean", prior_mean), ("prior_std", prior_std)):
        if tensor.shape != mean.shape and (tensor.dim() > 0 or name == "std"):
            raise ValueError(
                f"{name} must have the shape of mean, {tuple(mean.shape)}, got {tuple(tensor.shape)}; "
                "flatten all weights in the same order."
            )
    for name, tensor in (("std", std), ("prior_std", prior_std)):
        if not bool((tensor > 0).all()):
            raise ValueError(f"{name} must be positive, got a smallest value of {float(tensor.min())}.")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got infinity in it.")
    for name, tensor in (("mean", mean), ("prior_mean", prior_mean)):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity in it.")
    return mean, std, prior_mean, prior_std
