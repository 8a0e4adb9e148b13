"""SAM in the geometry of the posterior that is being fitted: a ball that is wide where the weights are uncertain.

Where a weight has the Gaussian N(mean, std²), a shift of its mean has the length |shift| / std in the Fisher metric
of the Gaussian: a shift of length rho has the divergence KL(shifted || unshifted) = rho² / 2, whatever the units. The
authors of the sharpness-aware posterior (Nguyen et al., NeurIPS 2023) scale by |mean| / std in their code instead.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from flatbayes.core import Closure, TrainingProgress
from flatbayes.core.spread import DiagonalGaussian, get_weight_distribution
from flatbayes.flatness.asam import adaptive_perturbation
from flatbayes.flatness.ascent import Perturbation, check_ascent_steps, check_radius, gradient_at_perturbation
from flatbayes.flatness.flatness import Flatness

Geometry = Literal["std", "mean_over_std"]
"""What the axes of the ball are proportional to."""


@dataclass(frozen=True)
class PosteriorSAM(Flatness):
    """Asks at the worst point of a ball whose axes follow the posterior's own means and standard deviations.

    Goes with variational posteriors: `SGVB`, `LRT`, and ensembles of them. In the second gradient the ball is held
    fixed, so standard deviations are not rewarded for making it small.

    Attributes:
        rho: Radius. With `std` it has no unit: a shift by one standard deviation of one weight has length 1, and
            where all standard deviations are s the ball is that of `SAM` with radius rho s. With `mean_over_std`
            start at a thousandth of the default; the authors' code divides by standard deviations before the
            softplus, about -5 in place of 0.007, so its rho (0.0005) does not carry over.
        geometry: `std`: the norm is ||e / std||, and weights without a distribution stay where they are.
            `mean_over_std`: the norm is ||e / T|| with T = |mean| / std, and T = |w| for weights without a
            distribution.
        ascent_steps: Times the displacement is aimed; every one costs a gradient.
        resample_noise: Draw new random numbers for the second pass instead of replaying those of the first.
    """

    rho: float = 3.0
    geometry: Geometry = "std"
    ascent_steps: int = 1
    resample_noise: bool = False

    def __post_init__(self) -> None:
        check_radius(self.rho)
        check_ascent_steps(self.ascent_steps)
        if self.geometry not in get_args(Geometry):
            raise ValueError(f"geometry must be {' or '.join(get_args(Geometry))}, got {self.geometry!r}.")

    @property
    def gradients_per_step(self) -> int:
        """One to aim with for each ascent step, and the final one."""
        return self.ascent_steps + 1

    stationary_after = 0.0  # the worst loss in the ball, to first order

    def __call__(self, closure: Closure, model: nn.Module, progress: TrainingProgress | None = None) -> Closure:
        """The closure whose gradient is that of the worst loss in the ball.

        Raises:
            ValueError: When it is called, and no weight has a distribution.
        """
        return gradient_at_perturbation(
            self._compute_perturbation,
            closure,
            model,
            ascent_steps=self.ascent_steps,
            resample_noise=self.resample_noise,
        )

    def _compute_perturbation(self, weights: Mapping[str, Tensor], grads: Sequence[Tensor]) -> Perturbation:
        params = list(weights.values())
        spreads = require_weight_distributions(params)
        scale_fn = std_scale if self.geometry == "std" else mean_over_std_scale
        return adaptive_perturbation(grads, scale_fn(params, spreads), self.rho)


def require_weight_distributions(params: Iterable[Tensor]) -> list[DiagonalGaussian | None]:
    """What is offered for each parameter.

    Raises:
        ValueError: Nothing for any of them.
    """
    spreads = [get_weight_distribution(param) for param in params]
    if all(spread is None for spread in spreads):
        raise ValueError(
            "PosteriorSAM takes its geometry from the standard deviations that the posterior has while it is fitted, "
            "and this one has none. Use it with SGVB, LRT, or an Ensemble of them; with others use SAM, ASAM or "
            "FisherSAM."
        )
    return spreads


def std_scale(params: Sequence[Tensor], distributions: Sequence[DiagonalGaussian | None]) -> list[Tensor]:
    """T: the standard deviation; 0, so that they do not move, for parameters without one."""
    return [
        torch.zeros_like(param) if spread is None else spread.std.to(param.dtype)
        for param, spread in zip(params, distributions, strict=True)
    ]


def mean_over_std_scale(params: Sequence[Tensor], distributions: Sequence[DiagonalGaussian | None]) -> list[Tensor]:
    """T: `|mean| / std`, and `|w|` for parameters without a distribution."""
    return [
        (param.detach().abs() if spread is None else spread.mean.abs() / spread.std).to(param.dtype)
        for param, spread in zip(params, distributions, strict=True)
    ]
