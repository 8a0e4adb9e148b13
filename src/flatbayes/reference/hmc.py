"""Hamiltonian Monte Carlo (HMC) with a Metropolis test: trajectories, and the tuning of their step size.

Neal, Handbook of MCMC, 2011; dual averaging: Hoffman & Gelman, JMLR 2014, section 3.2. The chain samples exp(-U)
exactly, at any step size:

    p ~ N(0, I)
    repeat num_steps times:  p = p - eps / 2 grad U(x);  x = x + eps p;  p = p - eps / 2 grad U(x)
    accept the new x with probability min(1, exp(-dE)), dE the change of U(x) + ||p||^2 / 2

The Metropolis test needs a potential whose gradient is the force. One step of SAM has no such potential in more than
one dimension, so that the sharpness-aware posterior is sampled by MCLMC.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flatbayes.reference.mclmc import Potential, Vector


@dataclass(frozen=True)
class HMCPoint:
    """Position of a chain, with the potential there."""

    position: Vector
    potential: float
    gradient: Vector


def integrate_leapfrog(
    point: HMCPoint, momentum: Vector, potential: Potential, step_size: float, num_steps: int
) -> tuple[HMCPoint, Vector]:
    """The end of a trajectory, with its momentum. It ends early where the potential is not finite."""
    position, value, gradient = point.position, point.potential, point.gradient
    for _ in range(num_steps):
        momentum = momentum - 0.5 * step_size * gradient
        position = position + step_size * momentum
        value, gradient = potential(position)
        momentum = momentum - 0.5 * step_size * gradient
        if not math.isfinite(value):
            break
    return HMCPoint(position, value, gradient), momentum


def hmc_step(
    point: HMCPoint, potential: Potential, step_size: float, num_steps: int, generator: torch.Generator
) -> tuple[HMCPoint, float]:
    """One trajectory with a Metropolis test; returns the next point, and the probability of acceptance."""
    momentum: Tensor = torch.randn(point.position.shape, dtype=point.position.dtype, generator=generator)
    end, end_momentum = integrate_leapfrog(point, momentum, potential, step_size, num_steps)
    error = end.potential - point.potential + (_kinetic_energy(end_momentum) - _kinetic_energy(momentum))
    acceptance = math.exp(-max(0.0, error)) if math.isfinite(error) else 0.0
    uniform = float(torch.rand((), dtype=torch.float64, generator=generator))
    return (end if uniform < acceptance else point), acceptance


@dataclass(frozen=True)
class DualAveraging:
    """Step size at which the mean probability of acceptance has a given value.

    Attributes:
        step_size: eps of the next trajectory.
        center: Logarithm that step sizes shrink towards: that of ten times the initial one.
        target: Mean probability of acceptance.
        log_average: Logarithm of the averaged step size, to use after the tuning.
        error_average: Weighted mean of target - acceptance.
        count: Number of updates.
    """

    step_size: float
    center: float
    target: float = 0.8
    log_average: float = 0.0
    error_average: float = 0.0
    count: int = 0

    @staticmethod
    def start(step_size: float, target: float = 0.8) -> "DualAveraging":
        """Begin at a step size, with a wanted mean probability of acceptance."""
        return DualAveraging(step_size, math.log(10 * step_size), target)

    @property
    def final_step_size(self) -> float:
        """The averaged step size."""
        return math.exp(self.log_average) if self.count else self.step_size

    def update(self, acceptance: float) -> "DualAveraging":
        """The state after a trajectory."""
        count = self.count + 1
        weight = 1 / (count + 10)
        error_average = (1 - weight) * self.error_average + weight * (self.target - acceptance)
        log_step = self.center - math.sqrt(count) / 0.05 * error_average
        power = count**-0.75
        return replace(
            self,
            step_size=math.exp(log_step),
            log_average=power * log_step + (1 - power) * self.log_average,
            error_average=error_average,
            count=count,
        )


def _kinetic_energy(momentum: Vector) -> float:
    return 0.5 * float(momentum.double() @ momentum.double())
