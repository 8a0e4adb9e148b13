"""Sharpness measures of a network: increase of the loss in a ball around its weights.

Foret et al. (ICLR 2021) define the Euclidean ball and the one-step ascent, Kwon et al. (ICML 2021) the adaptive ball.
The exact maximum over a ball cannot be computed for a network: `worst_gap` and `adaptive_gap` are lower bounds, the
best of several gradient ascents. Nothing is modified: weights, buffers, modes and random state are restored.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flatbayes.core.norms import global_norm
from flatbayes.core.randomness import Stream, make_generator
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.flatness.asam import adaptive_perturbation
from flatbayes.flatness.ascent import Perturbation, check_radius
from flatbayes.flatness.sam import euclidean_perturbation

PerturbationRule = Callable[[Sequence[Tensor]], Perturbation]
"""Gradient -> perturbation on the boundary of the ball."""


@dataclass(frozen=True)
class SharpnessConfig:
    """Radii and computational effort of the sharpness measures; use the same for all networks that are compared.

    Attributes:
        rho: Radius of the Euclidean ball; the norm is over all trainable weights together.
        adaptive_rho: Radius of the adaptive ball, relative to the weights.
        ascent_steps: Gradient steps of each ascent.
        num_random_starts: Ascents from random points of the sphere, in addition to the one from the weights.
        num_directions: Random directions for the average, each used with both signs.
        num_eigenvalues: Number of largest eigenvalues of the Hessian.
        num_trace_probes: Random vectors for the estimate of its trace.
        seed: Seed of directions and starts.

    Examples:
        >>> settings = SharpnessConfig(rho=0.1, ascent_steps=2, num_random_starts=0)
        >>> sharpness = measure_posterior_sharpness(
        ...     fitted, inputs[:50], labels[:50], settings, num_draws=2
        ... )
        >>> sharpness.config.rho
        0.1
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
        for name, minimum in (
            ("ascent_steps", 1),
            ("num_random_starts", 0),
            ("num_directions", 2),
            ("num_eigenvalues", 1),
            ("num_trace_probes", 2),
        ):
            if getattr(self, name) < minimum:
                raise ValueError(f"{name} must be at least {minimum}, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Sharpness:
    """Loss at the weights, and its increase around them.

    Attributes:
        loss: L(w), the mean over all examples.
        gradient_norm: ||grad L(w)||. Away from a minimum, rho times this value dominates the gaps.
        one_step: L(w + e) - L(w) at SAM's perturbation e = rho g / ||g||; negative if the step overshoots.
        worst: Largest increase found by ascents in the ball, at least `one_step` and at least 0: a lower bound of
            max L(w + e) - L(w) over ||e|| <= rho.
        average: Mean of L(w + e) - L(w) over the sphere ||e|| = rho.
        average_error: Standard error of `average`, over directions.
        adaptive: Largest increase found by ascents in ||e / |w||| <= adaptive_rho: also a lower bound.

    Examples:
        >>> sharpness = measure_sharpness(surface, SharpnessConfig(rho=0.1))
        >>> sharpness.worst >= sharpness.one_step > 0
        True
    """

    loss: float
    gradient_norm: float
    one_step: float
    worst: float
    average: float
    average_error: float
    adaptive: float


def measure_sharpness(surface: LossSurface, sharpness_config: SharpnessConfig = SharpnessConfig()) -> Sharpness:
    """Compute all sharpness measures at the weights of a network.

    Args:
        surface: Loss of the network.
        sharpness_config: Radii and computational effort.

    Raises:
        ValueError: The loss at the weights is not finite.

    Examples:
        >>> sharpness = measure_sharpness(surface, SharpnessConfig(rho=0.1))
        >>> sharpness.worst >= sharpness.one_step
        True
    """
    loss, grads = surface.gradient()
    if not math.isfinite(loss):
        raise ValueError(f"The loss is {loss} at the weights, so its increase around them is undefined.")
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
        worst=max(worst, one_step),  # passes with and without gradients may round differently
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
    """L(w + e) - L(w) at SAM's perturbation e = rho g / ||g|| (Foret et al., equation 2).

    Args:
        surface: Loss of the network.
        rho: Radius of the ball.

    Returns:
        The gap; NaN if the gradient is not finite.

    Examples:
        >>> one_step_gap(surface, rho=0.1) > 0
        True
    """
    check_radius(rho)
    loss, grads = surface.gradient()
    perturbation = euclidean_perturbation(grads, rho)
    return surface.loss(perturbation.to_tensors()) - loss if perturbation.norm.isfinite() else math.nan


def worst_gap(
    surface: LossSurface, rho: float, ascent_steps: int = 10, num_random_starts: int = 2, seed: int = 0
) -> float:
    """Largest L(w + e) - L(w) found by gradient ascents in ||e|| <= rho: a lower bound of the maximum.

    Each ascent repeats e <- rho g(w + e) / ||g(w + e)||, along which a convex loss increases monotonically. The
    result is at least 0, since e = 0 is in the ball.

    Args:
        surface: Loss of the network.
        rho: Radius of the ball.
        ascent_steps: Steps of each ascent; the first step from the weights gives `one_step_gap`.
        num_random_starts: Further ascents, from random points of the sphere.
        seed: Seed of these points.

    Examples:
        >>> worst_gap(surface, rho=0.1) >= one_step_gap(surface, rho=0.1)
        True
    """
    check_radius(rho)
    starts = (sample_sphere(surface, rho, seed, k) for k in range(num_random_starts))
    return _largest_gap(surface, lambda grads: euclidean_perturbation(grads, rho), [None, *starts], ascent_steps)


def adaptive_gap(
    surface: LossSurface, rho: float, ascent_steps: int = 10, num_random_starts: int = 2, seed: int = 0
) -> float:
    """Largest L(w + e) - L(w) found by gradient ascents in ||e / T|| <= rho with T = |w|: a lower bound.

    Weights that are zero are not perturbed. Unlike the Euclidean gap, the adaptive one is invariant under rescalings
    of layers that leave the function unchanged, as ReLU and normalisation layers allow (Kwon et al., theorem 2).

    Args:
        surface: Loss of the network.
        rho: Radius, relative to the weights.
        ascent_steps: Steps of each ascent.
        num_random_starts: Further ascents, from random points of the ellipsoid.
        seed: Seed of these points.

    Examples:
        >>> adaptive_gap(surface, rho=0.5) >= 0
        True
    """
    check_radius(rho)
    scale = [param.detach().abs() for param in surface.params]
    starts = (list(torch._foreach_mul(sample_sphere(surface, rho, seed, k), scale)) for k in range(num_random_starts))
    return _largest_gap(
        surface, lambda grads: adaptive_perturbation(grads, scale, rho), [None, *starts], ascent_steps
    )


def average_gap(surface: LossSurface, rho: float, num_directions: int = 10, seed: int = 0) -> tuple[float, float]:
    """Mean of L(w + e) - L(w) over the sphere ||e|| = rho, and its standard error.

    Each direction is used with both signs, (L(w + e) + L(w - e)) / 2 - L(w), so that the gradient term cancels. To
    second order the mean is rho² / (2 P) tr H, with P weights.

    Args:
        surface: Loss of the network.
        rho: Radius of the sphere.
        num_directions: Number of pairs, at least 2.
        seed: Seed of the directions.

    Returns:
        Mean and standard error over directions.

    Examples:
        >>> mean, standard_error = average_gap(surface, rho=0.1, num_directions=20)
        >>> mean > 0
        True
    """
    check_radius(rho)
    loss, gaps = surface.loss(), []
    for k in range(num_directions):
        direction = sample_sphere(surface, rho, seed, k)
        opposite = list(torch._foreach_neg(direction))
        gaps.append((surface.loss(direction) + surface.loss(opposite)) / 2 - loss)
    return mean_and_standard_error(gaps)


def mean_and_standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, sd / sqrt(n); the error is NaN for a single value."""
    sample = torch.tensor(values, dtype=torch.float64)
    error = float(sample.std()) / math.sqrt(len(sample)) if len(sample) > 1 else math.nan
    return float(sample.mean()), error


def sample_sphere(surface: LossSurface, rho: float, seed: int, index: int) -> list[Tensor]:
    """A uniformly random point of the sphere ||e|| = rho, equal for networks of equal shapes on any device.

    `index` is the number of the point in the sequence of the seed.
    """
    noise = sample_normal_like(surface.params, seed, index)
    return Perturbation(noise, global_norm(noise), rho).to_tensors()


def sample_normal_like(params: Sequence[Tensor], seed: int, index: int) -> list[Tensor]:
    """Standard normal tensors of the shapes of parameters, a pure function of seed and index."""
    generator = make_generator(Stream.SPHERE, seed, index)
    noise = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in params]
    return [z.to(p) for z, p in zip(noise, params, strict=True)]


def _largest_gap(
    surface: LossSurface,
    perturbation_rule: PerturbationRule,
    starts: Sequence[list[Tensor] | None],
    ascent_steps: int,
) -> float:
    """Largest loss along all ascents, minus the loss at the weights; a loss that is NaN counts as infinite."""
    base, gaps = surface.loss(), [0.0]
    for start in starts:
        gaps += [loss - base for loss in run_ascent(surface, perturbation_rule, start, ascent_steps)]
    return max(math.inf if math.isnan(gap) else gap for gap in gaps)


def run_ascent(
    surface: LossSurface, perturbation_rule: PerturbationRule, start: list[Tensor] | None, ascent_steps: int
) -> list[float]:
    """Losses at each point of a gradient ascent, including the start.

    The ascent stops early at a gradient that is zero or not finite.

    `perturbation_rule` makes the next perturbation of the original weights from a gradient; `start` is the first one,
    and None starts at the weights.
    """
    tensors, losses = start, []
    for _ in range(ascent_steps):
        loss, grads = surface.gradient(tensors)
        losses.append(loss)
        perturbation = perturbation_rule(grads)
        if not 0 < float(perturbation.norm) < math.inf:
            return losses
        tensors = perturbation.to_tensors()
    return [*losses, surface.loss(tensors)]
