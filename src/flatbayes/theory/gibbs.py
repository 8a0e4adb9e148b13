"""Exact Gibbs posteriors and sharpness-aware posteriors on a regular grid in one or two parameters.

On a grid the Gibbs posterior p(w) exp(-λ L(w)) and the sharpness-aware one, p(w) exp(-λ max over ||e|| <= ρ of
L(w + e)), are finite sums, so that every statement about them holds to rounding. Samplers and approximations are
tested against them.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flatbayes.core.names import format_count
from flatbayes.theory.grid import GridPosterior, check_same_shape, grid_kl, jeffreys_divergence, normalize_density


def gibbs_posterior(
    loss: Float[Tensor, "..."], log_prior: Float[Tensor, "..."], inverse_temperature: float, cell_volume: float
) -> GridPosterior:
    """The Gibbs posterior q(w) = p(w) exp(-λ L(w)) / Z.

    λ = n with L the mean negative log likelihood of n examples is Bayes' rule; λ = 0 gives the prior.

    Args:
        loss: L at every grid point; +inf excludes a point.
        log_prior: Log prior density at every grid point, up to a constant; it is renormalised on the grid.
        inverse_temperature: λ, on the mean loss.
        cell_volume: Length or area of a cell.

    Raises:
        ValueError: Loss and prior differ in shape, the loss has NaN or -inf, or λ is negative or not finite.

    Examples:
        >>> points = grid_points(1, half_width=4.0, cells_per_side=800)[:, 0]
        >>> posterior = gibbs_posterior((points - 1) ** 2 / 2, -(points**2) / 2, 3.0, 0.01)
        >>> round(posterior.expect(points), 3)  # of N(3 / 4, 1 / 4)
        0.75
    """
    check_same_shape("loss", loss, "log_prior", log_prior)
    _check_loss(loss)
    _check_inverse_temperature(inverse_temperature)
    prior = normalize_density(log_prior, cell_volume)
    if inverse_temperature == 0:  # 0 * inf is not 0
        return GridPosterior(prior.log_density, cell_volume, 0.0)
    return normalize_density(prior.log_density - inverse_temperature * loss.double(), cell_volume)


def sharpness_aware_posterior(
    loss: Float[Tensor, "..."],
    log_prior: Float[Tensor, "..."],
    inverse_temperature: float,
    cell_volume: float,
    radius_in_cells: float,
) -> GridPosterior:
    """The sharpness-aware posterior p(w) exp(-λ L^ρ(w)) / Z^ρ: the Gibbs posterior of the worst loss.

    Args:
        loss: L at every grid point.
        log_prior: Log prior density at every grid point, up to a constant; not part of the maximum.
        inverse_temperature: λ, on the mean loss.
        cell_volume: Length or area of a cell.
        radius_in_cells: ρ in units of the grid spacing.

    Examples:
        >>> points = grid_points(1, half_width=4.0, cells_per_side=800)[:, 0]
        >>> loss, log_prior = points**2 / 2, torch.zeros(800)
        >>> flat = sharpness_aware_posterior(loss, log_prior, 10.0, 0.01, radius_in_cells=50.0)
        >>> flat.expect(points**2) < gibbs_posterior(loss, log_prior, 10.0, 0.01).expect(points**2)
        True
    """
    return gibbs_posterior(worst_loss(loss, radius_in_cells), log_prior, inverse_temperature, cell_volume)


def worst_loss(loss: Float[Tensor, "..."], radius_in_cells: float) -> Float[Tensor, "..."]:
    """L^ρ(w) = max over ||w' - w|| <= ρ of L(w'), the maximum over the grid points in the ball.

    The ball is an interval for one parameter, where radii add exactly, (L^a)^b = L^{a+b}; and a Euclidean disc for
    two, where they add up to the grid's spacing. Beyond the grid the loss is that of the nearest edge.

    Args:
        loss: L at every grid point, of shape `grid` or `grid x grid`, with the same spacing in both directions.
        radius_in_cells: ρ in units of the spacing; points on the boundary belong to the ball.

    Raises:
        ValueError: The radius is negative or not finite, or the loss is not a grid or has NaN or -inf.

    Examples:
        >>> worst_loss(torch.tensor([0.0, 1.0, 5.0, 2.0, 0.0]), radius_in_cells=1.0)
        tensor([1., 5., 5., 5., 2.], dtype=torch.float64)
    """
    if not 0 <= radius_in_cells < math.inf:
        raise ValueError(f"radius_in_cells must be finite and at least 0, got {radius_in_cells}.")
    if loss.dim() not in (1, 2):
        raise ValueError(
            f"loss must be a grid of one or two parameters, got shape {tuple(loss.shape)}; "
            "reshape it to one dimension per parameter."
        )
    _check_loss(loss)
    loss = loss.double()
    squared = radius_in_cells**2 * (1 + 1e-9)  # 0.7 / 0.1 is below 7 in floating point
    reach = math.floor(math.sqrt(squared))
    if loss.dim() == 1:
        return _sliding_max(loss, reach)
    worst = _sliding_max(loss, reach)
    for up in range(1, min(reach, len(loss) - 1) + 1):
        rows = _sliding_max(loss, math.floor(math.sqrt(squared - up**2)))
        worst[up:] = torch.maximum(worst[up:], rows[:-up])
        worst[:-up] = torch.maximum(worst[:-up], rows[up:])
    return worst


def variational_objective(
    q: GridPosterior, values: Float[Tensor, "..."], prior: GridPosterior, inverse_temperature: float
) -> float:
    """Theorem A's objective, J_V(Q) = λ E_Q[V] + KL(Q || P) = -log Z_V + KL(Q || q_V).

    The unique minimiser is q_V = p exp(-λ V) / Z_V, with minimum -log Z_V: the Gibbs posterior for V = L, the
    sharpness-aware one for V = L^ρ.

    Args:
        q: Any distribution on the grid.
        values: V at every grid point.
        prior: P, as made by `normalize_density(log_prior, cell_volume)`.
        inverse_temperature: λ.

    Examples:
        >>> points = grid_points(1, half_width=4.0, cells_per_side=800)[:, 0]
        >>> prior, loss = normalize_density(-(points**2) / 2, 0.01), (points - 1) ** 2 / 2
        >>> posterior = gibbs_posterior(loss, -(points**2) / 2, 3.0, cell_volume=0.01)
        >>> [round(variational_objective(q, loss, prior, 3.0), 2) for q in (posterior, prior)]
        [1.07, 3.0]
    """
    _check_inverse_temperature(inverse_temperature)
    energy = inverse_temperature * q.expect(values) if inverse_temperature > 0 else 0.0
    return energy + grid_kl(q, prior)


def mean_sharpness(q: GridPosterior, loss: Float[Tensor, "..."], radius_in_cells: float) -> float:
    """Expected sharpness E_q[L^ρ - L], which is never negative.

    Args:
        q: A distribution on the grid.
        loss: L at every grid point, finite.
        radius_in_cells: ρ in units of the grid spacing.

    Examples:
        >>> points = grid_points(1, half_width=6.0, cells_per_side=600)[:, 0]
        >>> q = normalize_density(-(points**2) / 2, cell_volume=0.02)
        >>> round(mean_sharpness(q, points**2 / 2, radius_in_cells=25.0), 3)
        0.524
    """
    return q.expect(worst_loss(loss, radius_in_cells) - loss.double())


def flatness_identity(
    loss: Float[Tensor, "..."],
    log_prior: Float[Tensor, "..."],
    inverse_temperature: float,
    cell_volume: float,
    radius_in_cells: float,
) -> tuple[float, float]:
    """Both sides of Theorem C, λ (E_R[L^ρ - L] - E_A[L^ρ - L]) = KL(A || R) + KL(R || A) >= 0.

    R is the Gibbs posterior and A the sharpness-aware one, for the same prior and λ, so A is never sharper than R.

    Args:
        loss: L at every grid point, finite.
        log_prior: Log prior density at every grid point, up to a constant.
        inverse_temperature: λ, on the mean loss.
        cell_volume: Length or area of a cell.
        radius_in_cells: ρ in units of the grid spacing.

    Returns:
        The left side, from expectations, and the right side, from divergences.

    Examples:
        >>> points = grid_points(1, half_width=3.0, cells_per_side=300)[:, 0]
        >>> left, right = flatness_identity(points**2, -(points**2) / 2, 5.0, 0.02, 20.0)
        >>> round(left - right, 9), left > 0
        (0.0, True)
    """
    plain = gibbs_posterior(loss, log_prior, inverse_temperature, cell_volume)
    flat = sharpness_aware_posterior(loss, log_prior, inverse_temperature, cell_volume, radius_in_cells)
    gap = worst_loss(loss, radius_in_cells) - loss.double()
    return inverse_temperature * (plain.expect(gap) - flat.expect(gap)), jeffreys_divergence(flat, plain)


def _sliding_max(values: Tensor, half_width: int) -> Tensor:
    """Maximum over 2 half_width + 1 neighbours in the last dimension, by doubling windows."""
    half_width = min(half_width, values.shape[-1] - 1)
    window, covered = 2 * half_width + 1, 1
    maxima = F.pad(values, (half_width, half_width), value=-math.inf)
    while 2 * covered <= window:
        maxima = torch.maximum(maxima[..., :-covered], maxima[..., covered:])
        covered *= 2
    rest = window - covered
    return torch.maximum(maxima[..., : maxima.shape[-1] - rest], maxima[..., rest:])


def _check_loss(loss: Tensor) -> None:
    bad = loss.isnan() | loss.isneginf()
    if bool(bad.any()):
        raise ValueError(
            f"loss must not be NaN or -inf, got {format_count(int(bad.sum()), 'such point')}; use +inf to exclude a "
            "point."
        )


def _check_inverse_temperature(inverse_temperature: float) -> None:
    if not 0 <= inverse_temperature < math.inf:
        raise ValueError(f"inverse_temperature must be finite and at least 0, got {inverse_temperature}.")
