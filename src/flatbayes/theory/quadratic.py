"""Closed forms for quadratic losses: the worst perturbation in a ball, and the sharpness-aware posterior.

Near a minimum every smooth loss is close to a quadratic, for which worst loss and posterior are known exactly. The
functions are oracles for tests of flatness and diagnostics; nothing else in flatbayes calls them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.theory.numerics import check_positive, check_radius


def isotropic_worst_loss(weights: Float[Tensor, "... params"], curvature: float, rho: float) -> Float[Tensor, "..."]:
    """L^ρ(w) = a (||w|| + ρ)² / 2 for L(w) = a ||w||² / 2; one step of SAM is exact here.

    Args:
        weights: w, one vector in the last dimension.
        curvature: a, at least 0.
        rho: Radius ρ of the ball.

    Examples:
        >>> isotropic_worst_loss(torch.tensor([3.0, 4.0]), curvature=2.0, rho=1.0)
        tensor(36., dtype=torch.float64)
    """
    check_radius(rho)
    if not 0 <= curvature < math.inf:
        raise ValueError(
            f"curvature must be finite and at least 0, got {curvature}; for a maximum use quadratic_worst_loss."
        )
    norm: Tensor = torch.linalg.vector_norm(weights.double(), dim=-1)
    return curvature * (norm + rho) ** 2 / 2


def quadratic_worst_loss(
    weights: Float[Tensor, " params"], hessian: Float[Tensor, "params params"], rho: float
) -> float:
    """L^ρ(w) = (w + e)ᵀ A (w + e) / 2 at the exact worst e, for L(w) = wᵀ A w / 2.

    Args:
        weights: w.
        hessian: A, symmetric; it may be indefinite.
        rho: Radius ρ of the ball.

    Examples:
        >>> hessian = torch.diag(torch.tensor([1.0, 10.0]))
        >>> round(quadratic_worst_loss(torch.tensor([1.0, 0.0]), hessian, rho=0.5), 3)
        1.806
    """
    weights, hessian = weights.double(), hessian.double()
    worst = weights + worst_perturbation(hessian @ weights, hessian, rho)
    return float(worst @ hessian @ worst) / 2


def worst_perturbation(
    gradient: Float[Tensor, "..."], hessian: Float[Tensor, "..."], rho: float
) -> Float[Tensor, "..."]:
    """The maximiser of g·e + eᵀ A e / 2 over ||e|| <= ρ, a trust-region problem.

    It solves (ν I - A) e = g with ν >= max(0, largest eigenvalue of A), and ||e|| = ρ unless ν = 0. In the
    eigenbasis, where A has values w_i and g components b_i, ν is the root of the secular equation
    Σ (b_i / (ν - w_i))² = ρ². In the hard case, g has no component along the top eigenvectors and the sum stays
    below ρ²: ν is the top eigenvalue, and a top eigenvector (of either sign) fills e up to length ρ. Where g and A
    are zero, every point is a maximiser, and zero is returned.

    Args:
        gradient: g, of shape `params`.
        hessian: A, of shape `params x params`, symmetric; it may be indefinite or negative definite.
        rho: Radius ρ of the ball.

    Raises:
        ValueError: A is not symmetric, shapes do not match, an entry is not finite, or ρ is negative or not finite.

    Examples:
        >>> gradient, hessian = torch.tensor([1.0, 0.0]), torch.diag(torch.tensor([1.0, 10.0]))
        >>> worst_perturbation(gradient, hessian, rho=0.5).norm()
        tensor(0.5000, dtype=torch.float64)
    """
    check_radius(rho)
    gradient, hessian = gradient.double(), hessian.double()
    _check_quadratic(gradient, hessian)
    unit = max(float(gradient.abs().max()), rho * float(hessian.abs().max()))
    if rho == 0 or unit == 0:  # an empty ball, or a constant function
        return torch.zeros_like(gradient)
    values, vectors = torch.linalg.eigh(hessian * rho / unit)  # from here on, ρ = 1 and so is the larger of g and A
    b = torch.mv(vectors.T, gradient / unit)
    b = torch.where(b.abs() > 1e-30, b, 0.0)  # smaller components change no digit of the maximum
    floor = max(0.0, float(values[-1]))
    distance = floor - values  # ν - w_i = shift + distance, exact even for a shift that ν would round away
    shift = float(b[distance == 0].norm())
    if shift == 0:  # the hard case, or a strict maximum inside the ball
        unit_perturbation = torch.where(b != 0, b / distance, 0.0)
        rest = 1 - float(unit_perturbation @ unit_perturbation)
        if rest >= 0:
            if floor == values[-1]:
                unit_perturbation[-1] = math.sqrt(rest)
            return torch.mv(vectors, rho * unit_perturbation)
    return torch.mv(vectors, rho * _solve_secular_equation(b, distance, shift))


def soft_worst_loss(mean: float, curvature: float, variance: float) -> tuple[float, float]:
    """The soft maximum of bSAM, max over d of a (m + d)² / 2 - d² / (2 s) = a m² / (2 (1 - a s)).

    The ball is replaced by a Gaussian's quadratic penalty (Möllenhoff & Khan, ICLR 2023).

    Args:
        mean: m.
        curvature: a.
        variance: s, positive, with a s < 1; otherwise there is no maximum.

    Returns:
        The maximum, and the d that attains it.

    Examples:
        >>> soft_worst_loss(mean=1.0, curvature=2.0, variance=0.25)
        (2.0, 1.0)
    """
    if not (variance > 0 and curvature * variance < 1):
        raise ValueError(
            f"variance must be positive with curvature * variance < 1, got {variance} and a product of "
            f"{curvature * variance}; otherwise the loss grows faster than its penalty."
        )
    left = 1 - curvature * variance
    return curvature * mean**2 / (2 * left), curvature * variance * mean / left


@dataclass(frozen=True)
class CuspPosterior:
    """The density proportional to exp(-c θ² / 2 - b |θ|): a Gaussian with a cusp at its centre.

    Attributes:
        precision: c.
        slope: b.
        log_evidence: log Z.
        mean_abs: E|θ|.
        mean_square: E θ², the variance.

    Examples:
        >>> posterior = quadratic_posterior(1.0, 10.0, rho=0.5, prior_std=1.0)
        >>> posterior.log_density(torch.tensor([-0.5, 0.0, 0.5])).round(decimals=2)
        tensor([-2.7000,  1.1700, -2.7000], dtype=torch.float64)
    """

    precision: float
    slope: float
    log_evidence: float
    mean_abs: float
    mean_square: float

    def log_density(self, points: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Normalised log density at points θ."""
        points = points.double()
        alpha = self.slope / math.sqrt(self.precision)
        log_total = math.log(_scaled_erfc(alpha / math.sqrt(2))) + math.log(2 * math.pi / self.precision) / 2
        return -self.precision * points**2 / 2 - self.slope * points.abs() - log_total


def quadratic_posterior(curvature: float, inverse_temperature: float, rho: float, prior_std: float) -> CuspPosterior:
    """The sharpness-aware posterior of L(θ) = a θ² / 2 under a prior N(0, s²), in one dimension.

    With c = λ a + 1 / s², b = λ a ρ, α = b / √c and h = φ(α) / Q(α), the inverse Mills ratio (Q the upper tail):
    E|θ| = (h - α) / √c; E θ² = (1 + α² - α h) / c; log Z = -λ a ρ² / 2 + α² / 2 + log 2 + log(2π / c) / 2 +
    log Q(α), for the unnormalised prior exp(-θ² / (2 s²)). The differences are computed without cancellation, so
    that large α are as accurate as small ones.

    Args:
        curvature: a, positive.
        inverse_temperature: λ, positive.
        rho: Radius ρ of the ball; 0 gives the Gibbs posterior.
        prior_std: s.

    Examples:
        >>> [round(quadratic_posterior(1.0, 10.0, rho, 1.0).mean_square, 4) for rho in (0.0, 0.5)]
        [0.0909, 0.0309]
    """
    check_positive(curvature=curvature, inverse_temperature=inverse_temperature, prior_std=prior_std)
    check_radius(rho)
    stiffness = inverse_temperature * curvature
    c, b = stiffness + 1 / prior_std**2, stiffness * rho
    alpha = b / math.sqrt(c)
    excess_mean, excess_variance = _tail_excess_moments(alpha)
    # α² / 2 + log(2 Q(α)) = log erfcx(α / √2)
    log_evidence = (
        -stiffness * rho**2 / 2 + math.log(_scaled_erfc(alpha / math.sqrt(2))) + math.log(2 * math.pi / c) / 2
    )
    return CuspPosterior(c, b, log_evidence, excess_mean / math.sqrt(c), excess_variance / c)


def well_odds(first_curvature: float, second_curvature: float, inverse_temperature: float, rho: float) -> float:
    """Odds Z(a₁) / Z(a₂) of two equally deep quadratic wells, far apart, under a flat prior.

    Z(a) = 2 √(2π / (λ a)) Q(√(λ a) ρ): the mass of the sharp well decreases exponentially in ρ².

    Args:
        first_curvature: Curvature a₁ of the well in the numerator.
        second_curvature: Curvature a₂ of the well in the denominator.
        inverse_temperature: λ, positive.
        rho: Radius ρ of the ball; 0 gives the Gibbs posterior.

    Examples:
        >>> [f"{well_odds(100.0, 1.0, 10.0, rho):.0e}" for rho in (0.0, 0.3)]
        ['1e-01', '7e-22']
    """
    check_positive(
        first_curvature=first_curvature, second_curvature=second_curvature, inverse_temperature=inverse_temperature
    )
    check_radius(rho)

    def log_mass(curvature: float) -> float:
        stiffness = inverse_temperature * curvature
        return -math.log(stiffness) / 2 + _log_upper_tail(math.sqrt(stiffness) * rho)

    return math.exp(log_mass(first_curvature) - log_mass(second_curvature))


def _check_quadratic(gradient: Tensor, hessian: Tensor) -> None:
    if gradient.dim() != 1 or hessian.shape != (len(gradient), len(gradient)):
        raise ValueError(
            f"hessian must be square, with a row per entry of gradient; "
            f"got shapes {tuple(hessian.shape)} and {tuple(gradient.shape)}."
        )
    if not bool(gradient.isfinite().all() and hessian.isfinite().all()):
        raise ValueError("gradient and hessian must be finite, got NaN or infinity in them.")
    scale = float(hessian.abs().max())
    if not torch.allclose(hessian, hessian.T, rtol=0, atol=1e-12 * scale):
        raise ValueError(
            f"hessian must be symmetric, got entries that differ by up to {float((hessian - hessian.T).abs().max())} "
            "from their transpose; pass (A + Aᵀ) / 2."
        )


def _solve_secular_equation(b: Tensor, distance: Tensor, shift: float) -> Tensor:
    """The unit vector b / (shift + distance), with the shift from Newton's method started below the root.

    1 / ||e(shift)|| is increasing and concave, so Newton's iterates grow towards the root and never pass it.
    """
    e = b
    for _ in range(200):
        e = torch.where(b != 0, b / (shift + distance), 0.0)
        norm = float(e.norm())
        slope = float(torch.where(b != 0, e**2 / (shift + distance), 0.0).sum()) / norm**2
        step = (norm - 1) / slope
        if not shift + step > shift:
            break
        shift += step
    return e / float(e.norm())


def _tail_excess_moments(alpha: float) -> tuple[float, float]:
    """The differences h - α and 1 + α² - α h for α >= 0, h the inverse Mills ratio, without cancellation.

    Laplace's continued fraction, h = α + 1 / (α + 2 / (α + 3 / ...)), converges fast unless α is small.
    """
    if alpha < 2:
        h = math.sqrt(2 / math.pi) / _scaled_erfc(alpha / math.sqrt(2))
        return h - alpha, 1 + alpha**2 - alpha * h
    tail = 0.0
    for k in range(200, 1, -1):
        tail = k / (alpha + tail)
    return 1 / (alpha + tail), tail / (alpha + tail)


def _scaled_erfc(x: float) -> float:
    return float(torch.special.erfcx(torch.tensor(x, dtype=torch.float64)))


def _log_upper_tail(x: float) -> float:
    return float(torch.special.log_ndtr(torch.tensor(-x, dtype=torch.float64)))
