"""Variational inference for a quadratic loss: the best Gaussian under three objectives, in closed form.

A maximum outside the expectation over the Gaussian leaves its standard deviation unchanged; a maximum inside shrinks
it. The functions are oracles for tests of the variational posteriors; nothing else in flatbayes calls them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flatbayes.theory.numerics import check_positive, check_radius, find_increasing_root

Objective = Literal["plain", "worst_loss_expectation", "worst_expected_loss"]
"""E[L(μ + σε)], E[max over e of L(μ + σε + e)], or max over e of E[L(μ + e + σε)]."""


def worst_loss_expectation(mean: float, std: float, curvature: float, rho: float) -> float:
    """(W), E[max over |e| <= ρ of L(μ + σε + e)] = (a / 2) (μ² + σ² + 2 ρ E|μ + σε| + ρ²), for L = a θ² / 2.

    E|μ + σε| = 2 σ φ(μ / σ) + μ (2 Φ(μ / σ) - 1). This is the loss in the objective of Theorem A.

    Args:
        mean: μ, measured from the minimum of L.
        std: σ, positive.
        curvature: a, positive.
        rho: Radius ρ of the ball.

    Examples:
        >>> setting = {"mean": 1.0, "std": 0.5, "curvature": 2.0, "rho": 0.1}
        >>> round(worst_loss_expectation(**setting), 4), round(worst_expected_loss(**setting), 4)
        (1.4617, 1.46)
    """
    check_positive(std=std, curvature=curvature)
    check_radius(rho)
    mean_abs = 2 * std * _normal_density(mean / std) + mean * _central_probability(mean / std)
    return curvature / 2 * (mean**2 + std**2 + 2 * rho * mean_abs + rho**2)


def worst_loss_expectation_gradient(mean: float, std: float, curvature: float, rho: float) -> tuple[float, float]:
    """The gradient of (W) in μ and σ: a (μ + ρ (2 Φ(μ / σ) - 1)) and a (σ + 2 ρ φ(μ / σ)).

    Args:
        mean: μ, measured from the minimum of L.
        std: σ, positive.
        curvature: a, positive.
        rho: Radius ρ of the ball.

    Examples:
        >>> [round(slope, 4) for slope in worst_loss_expectation_gradient(1.0, 0.5, 2.0, rho=0.1)]
        [2.1909, 1.0216]
    """
    check_positive(std=std, curvature=curvature)
    check_radius(rho)
    return (
        curvature * (mean + rho * _central_probability(mean / std)),
        curvature * (std + 2 * rho * _normal_density(mean / std)),
    )


def worst_expected_loss(mean: float, std: float, curvature: float, rho: float) -> float:
    """(M), max over |e| <= ρ of E[L(μ + e + σε)] = (a / 2) ((|μ| + ρ)² + σ²), for L = a θ² / 2; never above (W).

    Args:
        mean: μ, measured from the minimum of L.
        std: σ, positive.
        curvature: a, positive.
        rho: Radius ρ of the ball.

    Examples:
        >>> round(worst_expected_loss(mean=1.0, std=0.5, curvature=2.0, rho=0.1), 4)
        1.46
    """
    check_positive(std=std, curvature=curvature)
    check_radius(rho)
    return curvature / 2 * ((abs(mean) + rho) ** 2 + std**2)


def worst_expected_loss_gradient(mean: float, std: float, curvature: float, rho: float) -> tuple[float, float]:
    """The gradient of (M) in μ and σ: a (μ + ρ sign μ), with 0 at the kink, and a σ.

    Args:
        mean: μ, measured from the minimum of L.
        std: σ, positive.
        curvature: a, positive.
        rho: Radius ρ of the ball.

    Examples:
        >>> worst_expected_loss_gradient(mean=1.0, std=0.5, curvature=2.0, rho=0.5)
        (3.0, 1.0)
    """
    check_positive(std=std, curvature=curvature)
    check_radius(rho)
    sign = (mean > 0) - (mean < 0)
    return curvature * (mean + rho * sign), curvature * std


@dataclass(frozen=True)
class BestGaussian:
    """A Gaussian that minimises a variational objective.

    Attributes:
        mean: μ.
        std: σ.
        objective: λ V(μ, σ) + KL(N(μ, σ²) || N(0, s²)) there, the prior normalised.

    Examples:
        >>> gaussian = best_gaussian(1.0, 2.0, 3.0, rho=0.0, prior_std=1.0, objective="plain")
        >>> gaussian.mean, gaussian.std
        (1.5, 0.5)
    """

    mean: float
    std: float
    objective: float


def best_gaussian(
    curvature: float, centre: float, inverse_temperature: float, rho: float, prior_std: float, objective: Objective
) -> BestGaussian:
    """The best N(μ, σ²) for L(θ) = a (θ - m)² / 2 under a prior N(0, s²).

    Plain variational inference gives the Gibbs posterior, σ² = 1 / (λ a + 1 / s²). (M) moves μ towards m, at most
    onto it, and does not change σ. (W) also moves μ and shrinks σ: the sharpness-aware posterior is narrower within
    a basin. So σ tells which of the two objectives an algorithm minimizes.

    Args:
        curvature: a, positive.
        centre: m.
        inverse_temperature: λ, positive.
        rho: Radius ρ of the ball; not used by "plain".
        prior_std: s.
        objective: No maximum, a maximum inside the expectation (W), or a maximum outside of it (M).

    Examples:
        >>> for objective in ("plain", "worst_loss_expectation"):
        ...     print(round(best_gaussian(1.0, 2.0, 3.0, 0.5, 1.0, objective).std, 3))
        0.5
        0.399
    """
    check_positive(curvature=curvature, inverse_temperature=inverse_temperature, prior_std=prior_std)
    check_radius(rho)
    if not math.isfinite(centre):
        raise ValueError(f"centre must be finite, got {centre}.")
    stiffness, side, far = inverse_temperature * curvature, math.copysign(1.0, centre), abs(centre)
    c = stiffness + 1 / prior_std**2
    std = 1 / math.sqrt(c)
    loss_fn: Callable[[float, float, float, float], float]
    match objective:
        case "plain":
            mean, rho, loss_fn = stiffness * far / c, 0.0, worst_expected_loss
        case "worst_expected_loss":
            mean, loss_fn = min(far, stiffness * (far + rho) / c), worst_expected_loss
        case "worst_loss_expectation":
            mean, std = _minimize_worst_loss_expectation(curvature, far, inverse_temperature, rho, prior_std)
            loss_fn = worst_loss_expectation
        case _:
            raise ValueError(
                f"objective must be 'plain', 'worst_loss_expectation' or 'worst_expected_loss', got {objective!r}."
            )
    divergence = ((std**2 + mean**2) / prior_std**2 - 1) / 2 - math.log(std / prior_std)
    value = inverse_temperature * loss_fn(mean - far, std, curvature, rho) + divergence
    return BestGaussian(side * mean, std, value)


def _minimize_worst_loss_expectation(
    curvature: float, centre: float, inverse_temperature: float, rho: float, prior_std: float
) -> tuple[float, float]:
    """The minimum of (W) + KL, convex in (μ, σ): bisection in σ, with the best μ found by bisection for every σ."""

    def objective_gradient(mean: float, std: float) -> tuple[float, float]:
        by_mean, by_std = worst_loss_expectation_gradient(mean - centre, std, curvature, rho)
        by_mean = inverse_temperature * by_mean + mean / prior_std**2
        return by_mean, inverse_temperature * by_std + std / prior_std**2 - 1 / std

    def best_mean(std: float) -> float:
        return find_increasing_root(lambda mean: objective_gradient(mean, std)[0], 0.0, centre)

    # φ lies between 0 and 1 / √(2π), so σ lies between the roots of the two extreme slopes in σ
    c = inverse_temperature * curvature + 1 / prior_std**2
    pull = inverse_temperature * curvature * rho * math.sqrt(2 / math.pi)
    lowest = 2 / (pull + math.sqrt(pull**2 + 4 * c))
    std = find_increasing_root(lambda std: objective_gradient(best_mean(std), std)[1], lowest, 1 / math.sqrt(c))
    return best_mean(std), std


def _normal_density(x: float) -> float:
    return math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def _central_probability(x: float) -> float:
    return math.erf(x / math.sqrt(2))  # 2 Φ(x) - 1
