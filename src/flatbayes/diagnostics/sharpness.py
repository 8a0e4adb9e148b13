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
from flatbayes.core.randomness import spawn_seeds
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.flatness.asam import adaptive_perturbation
from flatbayes.flatness.ascent import Perturbation, check_radius
from flatbayes.flatness.sam import euclidean_perturbation

PerturbationRule = Callable[[Sequence[Tensor]], Perturbation]
"""Gradient -> the point of the ball that it points at."""


@dataclass(frozen=True)
class SharpnessConfig:
    """How sharpness is measured; the same probe for everything that is compared.

    Attributes:
        rho: Radius of the Euclidean ball, the norm taken over all trainable weights together.
        adaptive_rho: Radius of the adaptive ball, relative to the weights.
        ascent_steps: Times each ascent is aimed.
        num_random_starts: Ascents from random points of the sphere, beside the one from the weights themselves.
        num_directions: Random directions of the average case, each tried forwards and backwards.
        num_eigenvalues: Largest eigenvalues of the Hessian to find, where it is asked for.
        num_trace_probes: Random vectors that its trace is estimated with.
        seed: Decides directions and starts.
    """

    rho: float = 0.05
    adaptive_rho: float = 0.5
    ascent_steps: int = 10
    num_random_starts: int = 2
    num_directions: int = 10
    num_eigenvalues: int = 5
    num_trace_probes: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for radius in (self.rho, self.adaptive_rho):
            check_radius(radius)
        for name, least in (
            ("ascent_steps", 1),
            ("num_random_starts", 0),
            ("num_directions", 2),
            ("num_eigenvalues", 1),
            ("num_trace_probes", 2),
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


def measure_sharpness(surface: LossSurface, sharpness_config: SharpnessConfig = SharpnessConfig()) -> Sharpness:
    """Every measure of how sharp the loss is at the weights of a network.

    Args:
        surface: The network's loss.
        sharpness_config: Radii and effort.

    Raises:
        ValueError: The loss at the weights is not finite.
    """
    loss, grads = surface.gradient()
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {loss} at the weights themselves, so how much it rises cannot be said.")
    one_step = one_step_gap(surface, sharpness_config.rho)
    worst = worst_gap(
        surface,
        sharpness_config.rho,
        sharpness_config.ascent_steps,
        sharpness_config.num_random_starts,
        sharpness_config.seed,
    )
    average, average_error = average_gap(
        surface, sharpness_config.rho, sharpness_config.num_directions, sharpness_config.seed
    )
    return Sharpness(
        loss=loss,
        gradient_norm=float(global_norm(grads)),
        one_step=one_step,
        worst=max(worst, one_step),  # the same point, but passes with and without gradients may round differently
        average=average,
        average_error=average_error,
        adaptive=adaptive_gap(
            surface,
            sharpness_config.adaptive_rho,
            sharpness_config.ascent_steps,
            sharpness_config.num_random_starts,
            sharpness_config.seed,
        ),
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
    offset = euclidean_perturbation(grads, rho)
    return surface.loss(offset.to_tensors()) - loss if offset.norm.isfinite() else math.nan


def worst_gap(
    surface: LossSurface, rho: float, ascent_steps: int = 10, num_random_starts: int = 2, seed: int = 0
) -> float:
    """The largest L(w + e) - L(w) that re-aimed ascents find in ||e|| <= rho.

    Each ascent repeats e <- rho g(w + e) / ||g(w + e)||, which for a convex loss rises monotonically. A lower bound
    of the true maximum, exact where an ascent ends in it; at least zero, since e = 0 is in the ball.

    Args:
        surface: The network's loss.
        rho: Radius of the ball.
        ascent_steps: Times each ascent is aimed; the first from the weights themselves gives `one_step_gap`.
        num_random_starts: Further ascents, from random points of the sphere.
        seed: Decides these.
    """
    check_radius(rho)
    starts = (sample_sphere(surface, rho, seed, k) for k in range(num_random_starts))
    return _largest_gap(surface, lambda grads: euclidean_perturbation(grads, rho), [None, *starts], ascent_steps)


def adaptive_gap(
    surface: LossSurface, rho: float, ascent_steps: int = 10, num_random_starts: int = 2, seed: int = 0
) -> float:
    """The largest L(w + e) - L(w) that re-aimed ascents find in ||e / T|| <= rho with T = |w|.

    Weights that are zero do not move. Unlike the Euclidean gap it is the same for networks that differ by a rescaling
    of layers which leaves their function alone, as ReLU and normalisation layers allow.

    Args:
        surface: The network's loss.
        rho: Radius, relative to the weights.
        ascent_steps: Times each ascent is aimed.
        num_random_starts: Further ascents, from random points of the ellipsoid.
        seed: Decides these.
    """
    check_radius(rho)
    scale = [param.detach().abs() for param in surface.params]
    starts = (list(torch._foreach_mul(sample_sphere(surface, rho, seed, k), scale)) for k in range(num_random_starts))
    return _largest_gap(
        surface, lambda grads: adaptive_perturbation(grads, scale, rho), [None, *starts], ascent_steps
    )


def average_gap(surface: LossSurface, rho: float, num_directions: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean of L(w + e) - L(w) over the sphere ||e|| = rho, and its standard error.

    Directions are tried forwards and backwards, (L(w + e) + L(w - e)) / 2 - L(w), so the slope cancels. To second
    order it is rho² / (2 P) tr H, with P weights.

    Args:
        surface: The network's loss.
        rho: Radius of the sphere.
        num_directions: Number of pairs, at least 2.
        seed: Decides the directions.
    """
    check_radius(rho)
    loss, gaps = surface.loss(), []
    for k in range(num_directions):
        offsets = sample_sphere(surface, rho, seed, k)
        backwards = list(torch._foreach_neg(offsets))
        gaps.append((surface.loss(offsets) + surface.loss(backwards)) / 2 - loss)
    return mean_and_standard_error(gaps)


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, sd / sqrt(n); the error is NaN for a single value."""
    found = torch.tensor(values, dtype=torch.float64)
    error = float(found.std()) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return float(found.mean()), error


def sample_sphere(surface: LossSurface, rho: float, seed: int, index: int) -> list[Tensor]:
    """A uniformly random point of the sphere ||e|| = rho, the same for networks of equal shapes on any device."""
    noise = sample_normal_like(surface.params, seed, index)
    return Perturbation(noise, global_norm(noise), rho).to_tensors()


def sample_normal_like(params: Sequence[Tensor], seed: int, index: int) -> list[Tensor]:
    """Standard normal tensors of these shapes, a pure function of seed and number."""
    generator = torch.Generator().manual_seed(spawn_seeds(seed, index, count=1)[0])
    noise = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return [z.to(p) for z, p in zip(noise, params, strict=True)]


def _largest_gap(
    surface: LossSurface,
    perturbation_rule: PerturbationRule,
    starts: Sequence[list[Tensor] | None],
    ascent_steps: int,
) -> float:
    """The largest loss that any ascent has seen, less that at the weights."""
    base, seen = surface.loss(), [0.0]
    for start in starts:
        seen += [value - base for value in run_ascent(surface, perturbation_rule, start, ascent_steps)]
    return max(math.inf if math.isnan(gap) else gap for gap in seen)


def run_ascent(
    surface: LossSurface, perturbation_rule: PerturbationRule, start: list[Tensor] | None, ascent_steps: int
) -> list[float]:
    """The losses at each point of a re-aimed ascent, the start included.

    It ends early where there is no way up: at a gradient that is zero or not finite.

    Args:
        surface: The network's loss.
        perturbation_rule: From a gradient to a displacement, always from the undisplaced weights.
        start: The first displacement; None for none.
        ascent_steps: Times it is aimed.
    """
    offsets, losses = start, []
    for _ in range(ascent_steps):
        loss, grads = surface.gradient(offsets)
        losses.append(loss)
        aimed = perturbation_rule(grads)
        if not 0 < float(aimed.norm) < math.inf:
            return losses
        offsets = aimed.to_tensors()
    return [*losses, surface.loss(offsets)]
