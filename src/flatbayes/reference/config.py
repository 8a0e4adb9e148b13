"""Options of a reference posterior: the density, and the sampler."""

import math
from dataclasses import dataclass
from typing import Literal

from flatbayes.core.display import format_fields
from flatbayes.flatness.ascent import check_radius

SamplerName = Literal["mclmc", "hmc"]


@dataclass(frozen=True)
class ReferenceConfig:
    """Density p(w) exp(-n / T L^rho(w)) of all n training examples, and how it is sampled.

    L^rho is the largest mean negative log likelihood in a ball around w; with `rho=0` it is the likelihood itself.

    Attributes:
        prior_precision: Precision of the Gaussian prior over all trainable weights. A weight decay `wd` of a training
            is a prior precision of `wd * n / T`.
        temperature: T.
        rho: Radius of the ball; 0 for the plain posterior.
        ascent_steps: Ascent steps to the maximum in the ball, each of one gradient.
        sampler: `mclmc`, or `hmc` with a Metropolis test, for the plain posterior only.
        num_chains: Chains, each from initial weights of its own.
        num_steps: Steps of the integrator in each chain after tuning: of two gradients each for `mclmc`, of one for
            `hmc`; times `ascent_steps + 1` with a radius.
        num_draws: Networks that are kept of each chain, evenly spaced.
        num_tuning_steps: Steps before, in which step size and decoherence length are tuned.
        num_descent_steps: Steps of Adam before, from initial weights to a mode.
        energy_variance: Variance of the energy error for each weight to which the step size of `mclmc` is tuned.
        target_acceptance: Mean probability of acceptance to which the step size of `hmc` is tuned.
        num_leapfrog_steps: Steps of a trajectory of `hmc`.

    Examples:
        >>> ReferenceConfig(prior_precision=10.0, rho=0.1).num_chains
        4
    """

    prior_precision: float = 1.0
    temperature: float = 1.0
    rho: float = 0.0
    ascent_steps: int = 3
    sampler: SamplerName = "mclmc"
    num_chains: int = 4
    num_steps: int = 10_000
    num_draws: int = 100
    num_tuning_steps: int = 2000
    num_descent_steps: int = 500
    energy_variance: float = 1e-4
    target_acceptance: float = 0.8
    num_leapfrog_steps: int = 20

    __repr__ = format_fields

    def __post_init__(self) -> None:
        check_radius(self.rho)
        for name in ("prior_precision", "temperature", "energy_variance"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        for name in ("ascent_steps", "num_chains", "num_leapfrog_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name, least in (("num_tuning_steps", 10), ("num_descent_steps", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.sampler not in ("mclmc", "hmc"):
            raise ValueError(f"sampler must be mclmc or hmc, got {self.sampler!r}.")
        if self.sampler == "hmc" and self.rho > 0:
            raise ValueError(
                "hmc needs a force that is the gradient of a potential, which the gradient at the point of an ascent "
                "is not exactly. Sample the sharpness-aware posterior with sampler mclmc, or set rho to 0."
            )
        if not 0 < self.target_acceptance < 1:
            raise ValueError(f"target_acceptance must be between 0 and 1, got {self.target_acceptance}.")
        if not 4 <= self.num_draws <= self.num_positions:
            raise ValueError(
                f"num_draws must be from 4, which R-hat needs, to the {self.num_positions} positions of a chain, got "
                f"{self.num_draws}. Raise num_steps for more."
            )

    @property
    def num_positions(self) -> int:
        """Positions that a chain visits after tuning."""
        return self.num_steps if self.sampler == "mclmc" else self.num_steps // self.num_leapfrog_steps

    def is_draw(self, index: int) -> bool:
        """Whether the position of this number, counted from 0, is kept."""
        count, total = self.num_draws, self.num_positions
        return (index + 1) * count // total > index * count // total
