"""Microcanonical Langevin Monte Carlo (MCLMC): one step of the sampler, and the tuning of its step size.

Robnik et al., JMLR 2023; Robnik & Seljak, 2023. A position x and a unit velocity u move in the potential
U = -log density, in D dimensions. One step of size eps, with decoherence length L:

    O            u = (u + nu z) / ||u + nu z||,  z ~ N(0, I),  nu = sqrt((exp(eps / L) - 1) / D)
    B(c eps)     turn u towards e = -grad U / ||grad U||; the kinetic energy changes by
                 (D - 1) (delta - log 2 + log(1 + p + (1 - p) zeta^2)),
                 p = <u, e>,  delta = c eps ||grad U|| / (D - 1),  zeta = exp(-delta)
    A(c eps)     x = x + c eps u
    one step     O B(b) A(1/2) B(1 - 2 b) A(1/2) B(b) O

It takes two gradients. There is no Metropolis test: the bias is bounded by the variance of the energy error for each
dimension, Var[dE] / D, to which the step size is tuned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

MINIMAL_NORM = 0.1931833275037836
"""b, the fraction of the first and the last turn: the one with the smallest error of its order (McLachlan, 1995)."""
Vector = Float[Tensor, " params"]
Potential = Callable[[Tensor], tuple[float, Tensor]]
"""x -> U(x), the negative logarithm of a density up to a constant, and its gradient."""


@dataclass(frozen=True)
class PhasePoint:
    """Position and velocity of a chain, with the potential at the position.

    The velocity u has length 1.
    """

    position: Vector
    velocity: Vector
    potential: float
    gradient: Vector


def start_chain(position: Vector, potential: Potential, generator: torch.Generator) -> PhasePoint:
    """A point with a random direction of the velocity."""
    noise = torch.randn(position.shape, dtype=position.dtype, generator=generator)
    return PhasePoint(position, noise / noise.norm(), *potential(position))


def refresh_velocity(velocity: Vector, noise: Vector, step_size: float, decoherence_length: float) -> Vector:
    """The operator O, half of the refreshment of a step: u = (u + nu z) / ||u + nu z||.

    An infinite decoherence length L leaves the velocity u unchanged.
    """
    nu = math.sqrt(math.expm1(step_size / decoherence_length) / len(velocity))
    moved = velocity + nu * noise
    refreshed: Tensor = moved / moved.norm()
    return refreshed


def turn_velocity(velocity: Vector, gradient: Vector, step_size: float) -> tuple[Vector, float]:
    """The operator B: turn the velocity towards lower potential, and return the change of the kinetic energy.

    The velocity u has length 1; the step size is c eps.
    """
    norm, dims = float(gradient.norm()), len(velocity) - 1
    if norm == 0:
        return velocity, 0.0
    downhill = gradient / -norm
    cosine, delta = float(velocity @ downhill), step_size * norm / dims
    zeta = math.exp(-delta)
    turned = 2 * zeta * velocity + (1 - zeta) * (1 + zeta + cosine * (1 - zeta)) * downhill
    # 1 + p + (1 - p) zeta^2 is 0 for a velocity straight uphill, up to rounding, and an infinite delta.
    growth = max(1 + cosine + (1 - cosine) * zeta**2, 1e-300)
    return turned / turned.norm(), dims * (delta - math.log(2) + math.log(growth))


def mclmc_step(
    point: PhasePoint,
    potential: Potential,
    step_size: float,
    decoherence_length: float,
    generator: torch.Generator,
) -> tuple[PhasePoint, float]:
    """One step O B A B A B O, with two gradients; returns the new point and the energy error dE."""
    noise = torch.randn((2, *point.velocity.shape), dtype=point.velocity.dtype, generator=generator)
    position, value, gradient, error = point.position, point.potential, point.gradient, 0.0
    velocity = refresh_velocity(point.velocity, noise[0], step_size, decoherence_length)
    for fraction, moves in ((MINIMAL_NORM, True), (1 - 2 * MINIMAL_NORM, True), (MINIMAL_NORM, False)):
        velocity, change = turn_velocity(velocity, gradient, fraction * step_size)
        error += change
        if moves:
            position = position + 0.5 * step_size * velocity
            value, gradient = potential(position)
    velocity = refresh_velocity(velocity, noise[1], step_size, decoherence_length)
    return PhasePoint(position, velocity, value, gradient), error + value - point.potential


@dataclass(frozen=True)
class StepSizeTuner:
    """Running estimate of the step size at which Var[dE] / D has a given value.

    The variance of the energy error grows as eps^6. Every step gives an estimate of eps^-6, dE^2 / (D target eps^6),
    and the step size is their weighted mean to the power -1/6. A step whose error is far from the target counts less.

    Attributes:
        step_size: eps of the next step.
        target: Var[dE] / D.
        largest: Upper limit, which is lowered where the potential is not finite.
        weighted_sum: Discounted sum of weight times estimate.
        weight_sum: Discounted sum of the weights.
        memory: Number of steps that the mean extends over.
        trust: Width of the weight in the logarithm of the step size.
    """

    step_size: float
    target: float = 5e-4
    largest: float = math.inf
    weighted_sum: float = 0.0
    weight_sum: float = 0.0
    memory: float = 150.0
    trust: float = 1.5

    def update(self, energy_error: float, num_dims: int) -> "StepSizeTuner":
        """The tuner after a step, whose energy error is not finite where it left the support of the potential."""
        if not math.isfinite(energy_error):
            largest = 0.8 * self.step_size
            return replace(self, largest=largest, step_size=largest)
        ratio = energy_error**2 / (num_dims * self.target) + 1e-8
        weight = math.exp(-0.5 * (math.log(ratio) / (6 * self.trust)) ** 2)
        discount = (self.memory - 1) / (self.memory + 1)
        weighted_sum = discount * self.weighted_sum + weight * ratio / self.step_size**6
        weight_sum = discount * self.weight_sum + weight
        step_size = min((weighted_sum / weight_sum) ** (-1 / 6), self.largest)
        return replace(self, step_size=step_size, weighted_sum=weighted_sum, weight_sum=weight_sum)
