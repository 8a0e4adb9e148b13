"""SAM in the geometry of a Gaussian posterior: the worst point of a ball that is wide where weights are uncertain.

A shift e of the mean of N(mean, Σ) has the length sqrt(eᵀ Σ⁻¹ e) in the Fisher metric of the Gaussian: a shift of
length rho has the divergence KL(shifted || unshifted) = rho² / 2 in any units. The worst shift of a linear loss needs
products with Σ, and no inverse. In their code the authors of the sharpness-aware posterior (Nguyen et al., NeurIPS
2023) scale by T = |mean| / std instead.

    Σ = covariance of the distribution that the posterior has for the weights, or diag(T²)
    g = gradient at w
    repeat ascent_steps times:
        e = rho * Σ g / sqrt(gᵀ Σ g)
        g = gradient at w + e
    .grad = g

    posterior, flat = SGVB(), PosteriorSAM(rho=3.0)
    loss = posterior.step(state, flat(closure, state.model))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.context import DiagonalGaussian, WeightDistribution, get_distribution
from flatbayes.core.names import check_choice
from flatbayes.flatness.asam import scaled_perturbation
from flatbayes.flatness.ascent import Perturbation, check_radius
from flatbayes.flatness.flatness import AscentFlatness, Radius, require_radius

Geometry = Literal["std", "mean_over_std"]
"""What the axes of the ball are proportional to."""


@dataclass(frozen=True)
class PosteriorSAM(AscentFlatness):
    """Gradient at the worst point of a ball scaled by the posterior.

    Use it with a Gaussian posterior whose covariance should set the ball.

    For posteriors with a Gaussian during training: `SGVB`, `LRT`, `IVON`, `SWAG`, `BLoB`, and ensembles of them. The
    second gradient treats the ball as fixed, so standard deviations are not rewarded for making it small. `SWAG` has
    a covariance from its second snapshot on, that of its snapshots so far; before, the gradient is that of `SAM`
    with radius `initial_rho`.

    Attributes:
        rho: Radius. With `std` it has no unit: a shift by one standard deviation of one weight has length 1, and if
            all standard deviations are s the ball is that of `SAM` with radius rho s. With `mean_over_std` start at
            a thousandth of the default; the authors' code divides by standard deviations before the softplus, about
            -5 in place of 0.007, so its rho (0.0005) does not carry over.
        geometry: `std`: the norm is sqrt(eᵀ Σ⁻¹ e) with the covariance Σ of the posterior, ||e / std|| for
            independent weights; weights without a distribution are not perturbed.
            `mean_over_std`: the norm is ||e / T|| with T = |mean| / std, T = |w| for weights without a
            distribution, and T = |mean| where the standard deviation is 0, as for snapshots that do not change.
        initial_rho: Radius of `SAM` while the posterior has no distribution yet.
        ascent_steps: Number of ascent steps; each costs one gradient.
        resample_noise: Draw new random numbers in the second pass instead of replaying those of the first.
        nuisance: Name patterns of nuisance parameters, such as `*.raw_scale` for a learnt noise scale: they are not
            perturbed, and their gradient is taken at the unperturbed weights.

    Examples:
        >>> fitted = fit(MLP, data, SGVB(temperature=0.1), PosteriorSAM(rho=1.0), config)
        >>> fitted.predict(inputs, num_draws=30).mean.shape
        torch.Size([100, 10])
    """

    rho: Radius = 3.0
    geometry: Geometry = "std"
    initial_rho: float = 0.05
    ascent_steps: int = 1
    resample_noise: bool = False
    nuisance: list[str] | None = None

    radius_field = "rho"

    @property
    def reference_radius(self) -> float:
        """A thousandth with `mean_over_std`."""
        return super().reference_radius * (1 if self.geometry == "std" else 1e-3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.initial_rho, "initial_rho is a radius")
        check_choice("geometry", self.geometry, Geometry)

    needs_weight_distribution = True

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """Make the closure whose gradient is that of the worst loss in the ball.

        Raises:
            ValueError: When the closure is called, and the weights have no distribution.
        """
        rho = require_radius(self)

        def compute_perturbation(weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
            params, distribution = list(weights.values()), require_distribution()
            if self.geometry == "std" or not distribution.is_estimated:
                directions, norm, is_new = distribution.multiply_covariance(params, grads)
                radius = rho if distribution.is_estimated or rho == 0 else self.initial_rho
                return Perturbation(directions, norm, radius, owns_directions=is_new)
            marginals = [distribution.get_marginal(param) for param in params]
            return scaled_perturbation(
                grads,
                lambda group: mean_over_std_scale([params[k] for k in group], [marginals[k] for k in group]),
                rho,
            )

        return self.make_closure(compute_perturbation, closure, model, progress)


def require_distribution() -> WeightDistribution:
    """The distribution of the weights in the current closure context.

    Raises:
        ValueError: There is none.
    """
    distribution = get_distribution()
    if distribution is None:
        raise ValueError(
            "PosteriorSAM takes its geometry from the Gaussian that a posterior has for the weights during training, "
            "and this one has none. Use it with SGVB, LRT, IVON, SWAG, BLoB, or an Ensemble of them; with others use "
            "SAM, ASAM or FisherSAM."
        )
    return distribution


def mean_over_std_scale(params: Sequence[Tensor], distributions: Sequence[DiagonalGaussian | None]) -> list[Tensor]:
    """T: `|mean| / std`, `|w|` for weights without a distribution, and `|mean|` where the standard deviation is 0."""
    pairs = list(zip(params, distributions, strict=True))
    scales = list(torch._foreach_abs([param.detach() if d is None else d.mean for param, d in pairs]))
    random = [k for k, d in enumerate(distributions) if d is not None]
    stds = [d.std.masked_fill(d.std == 0, 1.0) for d in distributions if d is not None]
    if random:
        torch._foreach_div_([scales[k] for k in random], stds)
    return [scale.to(param.dtype) for scale, param in zip(scales, params, strict=True)]
