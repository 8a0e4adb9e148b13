"""Sharpness of a network: how much the loss rises in a ball around its weights.

Foret et al. (ICLR 2021) for the ball and the one-step ascent, Kwon et al. (ICML 2021) for the adaptive ball. The
maximum over a ball cannot be computed for a network; what ascent finds is a lower bound of it, and the best of
several re-aimed ascents is the closest that is known. All of it is read-only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatbayes.core.norms import global_norm
from flatbayes.core.randomness import spawn
from flatbayes.diagnostics.surface import LossSurface
from flatbayes.flatness.asam import adaptive_offset
from flatbayes.flatness.ascent import Offset, check_radius
from flatbayes.flatness.sam import euclidean_offset

Aim = Callable[[Sequence[Tensor]], Offset]
"""Gradient -> the point of the ball that it points at."""


@dataclass(frozen=True)
class Probe:
    """How sharpness is measured; the same probe for everything that is compared.

    Attributes:
        rho: Radius of the Euclidean ball, the norm taken over all trainable weights together.
        adaptive_rho: Radius of the adaptive ball, relative to the weights.
        ascent_steps: Times each ascent is aimed.
        random_starts: Ascents from random points of the sphere, beside the one from the weights themselves.
        directions: Random directions of the average case, each tried forwards and backwards.
        eigenvalues: Largest eigenvalues of the Hessian to find, where it is asked for.
        trace_probes: Random vectors that its trace is estimated with.
        seed: Decides directions and starts.
    """

    rho: float = 0.05
    adaptive_rho: float = 0.5
    ascent_steps: int = 10
    random_starts: int = 2
    directions: int = 10
    eigenvalues: int = 5
    trace_probes: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for radius in (self.rho, self.adaptive_rho):
            check_radius(radius)
        for name, least in (
            ("ascent_steps", 1),
            ("random_starts", 0),
            ("directions", 2),
            ("eigenvalues", 1),
            ("trace_probes", 2),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Sharpness:
    """The loss at the weights, and how much it rises around them.

    Attributes:
        loss: L(w), the mean over all examples.
        gradient_norm: ||grad L(w)||. Away from a minimum, rho times this is the larger part of the gaps.
        one_step: L(w + e) - L(w) at the point e = rho g / ||g|| that SAM asks at; negative where that overshoots.
        worst: The largest rise that ascents found in the ball, at least `one_step` and at least zero: a lower bound
            of max L(w + e) - L(w) over ||e|| <= rho.
        average: Mean of L(w + e) - L(w) over the sphere ||e|| = rho.
        average_error: Its standard error, over directions.
        adaptive: The largest rise that ascents found in ||e / |w||| <= adaptive_rho: a lower bound too.
    """

    loss: float
    gradient_norm: float
    one_step: float
    worst: float
    average: float
    average_error: float
    adaptive: float


def network_sharpness(surface: LossSurface, probe: Probe = Probe()) -> Sharpness:
    """Every measure of how sharp the loss is at the weights of a network.

    Args:
        surface: The network's loss.
        probe: Radii and effort.

    Raises:
        ValueError: The loss at the weights is not finite.
    """
    loss, grads = surface.gradient()
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {loss} at the weights themselves, so how much it rises cannot be said.")
    one_step = one_step_gap(surface, probe.rho)
    worst = worst_gap(surface, probe.rho, probe.ascent_steps, probe.random_starts, probe.seed)
    average, average_error = average_gap(surface, probe.rho, probe.directions, probe.seed)
    return Sharpness(
        loss=loss,
        gradient_norm=float(global_norm(grads)),
        one_step=one_step,
        worst=max(worst, one_step),  # the same point, but passes with and without gradients may round differently
        average=average,
        average_error=average_error,
        adaptive=adaptive_gap(surface, probe.adaptive_rho, probe.ascent_steps, probe.random_starts, probe.seed),
    )


def one_step_gap(surface: LossSurface, rho: float) -> float:
    """L(w + e) - L(w) at e = rho g / ||g||, where SAM asks (Foret et al., equation 2).

    Args:
        surface: The network's loss.
        rho: Radius of the ball.

    Returns:
        The gap; NaN where the gradient is not finite.
    """
    check_radius(rho)
    loss, grads = surface.gradient()
    offset = euclidean_offset(grads, rho)
    return surface.loss(offset.tensors()) - loss if offset.norm.isfinite() else math.nan


def worst_gap(
    surface: LossSurface, rho: float, ascent_steps: int = 10, random_starts: int = 2, seed: int = 0
) -> float:
    """The largest L(w + e) - L(w) that re-aimed ascents find in ||e|| <= rho.

    Each ascent repeats e <- rho g(w + e) / ||g(w + e)||, which for a convex loss rises monotonically. A lower bound
    of the true maximum, exact where an ascent ends in it; at least zero, since e = 0 is in the ball.

    Args:
        surface: The network's loss.
        rho: Radius of the ball.
        ascent_steps: Times each ascent is aimed; the first from the weights themselves gives `one_step_gap`.
        random_starts: Further ascents, from random points of the sphere.
        seed: Decides these.
    """
    check_radius(rho)
    starts = (sphere_point(surface, rho, seed, k) for k in range(random_starts))
    return _highest(surface, lambda grads: euclidean_offset(grads, rho), [None, *starts], ascent_steps)


def adaptive_gap(
    surface: LossSurface, rho: float, ascent_steps: int = 10, random_starts: int = 2, seed: int = 0
) -> float:
    """The largest L(w + e) - L(w) that re-aimed ascents find in ||e / T|| <= rho with T = |w|.

    Weights that are zero do not move. Unlike the Euclidean gap it is the same for networks that differ by a rescaling
    of layers which leaves their function alone, as ReLU and normalisation layers allow.

    Args:
        surface: The network's loss.
        rho: Radius, relative to the weights.
        ascent_steps: Times each ascent is aimed.
        random_starts: Further ascents, from random points of the ellipsoid.
        seed: Decides these.
    """
    check_radius(rho)
    scale = [param.detach().abs() for param in surface.params]
    starts = (list(torch._foreach_mul(sphere_point(surface, rho, seed, k), scale)) for k in range(random_starts))
    return _highest(surface, lambda grads: adaptive_offset(grads, scale, rho), [None, *starts], ascent_steps)


def average_gap(surface: LossSurface, rho: float, directions: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean of L(w + e) - L(w) over the sphere ||e|| = rho, and its standard error.

    Directions are tried forwards and backwards, (L(w + e) + L(w - e)) / 2 - L(w), so the slope cancels. To second
    order it is rho² / (2 P) tr H, with P weights.

    Args:
        surface: The network's loss.
        rho: Radius of the sphere.
        directions: Number of pairs, at least 2.
        seed: Decides the directions.
    """
    check_radius(rho)
    loss, gaps = surface.loss(), []
    for k in range(directions):
        offsets = sphere_point(surface, rho, seed, k)
        backwards = list(torch._foreach_neg(offsets))
        gaps.append((surface.loss(offsets) + surface.loss(backwards)) / 2 - loss)
    return mean_and_error(gaps)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, sd / sqrt(n); the error is NaN for a single value."""
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return float(found.mean()), error


def sphere_point(surface: LossSurface, rho: float, seed: int, number: int) -> list[Tensor]:
    """A uniformly random point of the sphere ||e|| = rho, the same for networks of equal shapes on any device."""
    noise = normal_like(surface.params, seed, number)
    return Offset(noise, global_norm(noise), rho).tensors()


def normal_like(params: Sequence[Tensor], seed: int, number: int) -> list[Tensor]:
    """Standard normal tensors of these shapes, a pure function of seed and number."""
    generator = torch.Generator().manual_seed(spawn(seed, number, count=1)[0])
    noise = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return [z.to(p) for z, p in zip(noise, params, strict=True)]


def _highest(surface: LossSurface, aim: Aim, starts: Sequence[list[Tensor] | None], ascent_steps: int) -> float:
    """The largest loss that any ascent has seen, less that at the weights."""
    base, seen = surface.loss(), [0.0]
    for start in starts:
        seen += [value - base for value in climb(surface, aim, start, ascent_steps)]
    return max(math.inf if math.isnan(gap) else gap for gap in seen)


def climb(surface: LossSurface, aim: Aim, start: list[Tensor] | None, ascent_steps: int) -> list[float]:
    """The losses at each point of a re-aimed ascent, the start included.

    It ends early where there is no way up: at a gradient that is zero or not finite.

    Args:
        surface: The network's loss.
        aim: From a gradient to a displacement, always from the undisplaced weights.
        start: The first displacement; None for none.
        ascent_steps: Times it is aimed.
    """
    offsets, losses = start, []
    for _ in range(ascent_steps):
        loss, grads = surface.gradient(offsets)
        losses.append(loss)
        aimed = aim(grads)
        if not 0 < float(aimed.norm) < math.inf:
            return losses
        offsets = aimed.tensors()
    return [*losses, surface.loss(offsets)]
