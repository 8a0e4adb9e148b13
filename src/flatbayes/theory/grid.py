"""Exact posteriors on a regular grid in one or two parameters.

On a grid the Gibbs posterior p(w) exp(-λ L(w)) and the sharpness-aware one, p(w) exp(-λ max over ||e|| <= ρ of
L(w + e)), are finite sums, so that every statement about them holds to rounding. Samplers and approximations are
tested against them.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional as F

from flatbayes.theory.numerics import check_positive


@dataclass(frozen=True)
class GridPosterior:
    """A probability density on a grid, constant within a cell.

    Attributes:
        log_density: Log density at every grid point, of shape `grid` or `grid x grid`; -inf where the density is 0.
        cell_volume: Length (one parameter) or area (two) of a cell; Σ exp(log_density) cell_volume = 1.
        log_evidence: Logarithm of the normalising constant. For a posterior it is log Z, with the prior normalised
            on the same grid.
    """

    log_density: Float[Tensor, "..."]
    cell_volume: float
    log_evidence: float

    @property
    def cell_probabilities(self) -> Float[Tensor, "..."]:
        """Probability of every cell."""
        return self.log_density.exp() * self.cell_volume

    def expect(self, values: Float[Tensor, "..."]) -> float:
        """E[values] = Σ p_i values_i; cells of probability 0 are left out, even where the value is infinite."""
        probabilities = self.cell_probabilities
        _check_same_shape("values", values, "the density", probabilities)
        return float(torch.where(probabilities > 0, probabilities * values.double(), 0.0).sum())

    def region_probability(self, region: Bool[Tensor, "..."]) -> float:
        """Probability of the cells where `region` is true."""
        _check_same_shape("region", region, "the density", self.log_density)
        return float(self.cell_probabilities[region].sum())


def grid_points(num_params: int, half_width: float, cells_per_side: int) -> Float[Tensor, "... params"]:
    """Centres of the cells of a regular grid on [-half_width, half_width], in float64.

    Args:
        num_params: Dimensions of the grid, 1 or 2.
        half_width: Half the length of a side.
        cells_per_side: Number of cells on a side.

    Returns:
        Points of shape `cells x 1` or `cells x cells x 2`, the first coordinate along the first dimension.
    """
    if num_params not in (1, 2) or cells_per_side < 1:
        raise ValueError(
            f"A grid has 1 or 2 dimensions and at least 1 cell on a side, got {num_params} and {cells_per_side}."
        )
    check_positive(half_width=half_width)
    axis = (torch.arange(cells_per_side, dtype=torch.float64) + 0.5) * (2 * half_width / cells_per_side) - half_width
    return torch.stack(torch.meshgrid(*[axis] * num_params, indexing="ij"), dim=-1)


def normalize_density(log_density: Float[Tensor, "..."], cell_volume: float) -> GridPosterior:
    """The density proportional to exp(log_density), as for a prior or any other distribution Q.

    Args:
        log_density: Log density up to a constant, of shape `grid` or `grid x grid`.
        cell_volume: Length or area of a cell.

    Raises:
        ValueError: The grid has not one or two dimensions, its mass is 0, infinite or NaN, or a cell has no volume.
    """
    if log_density.dim() not in (1, 2):
        raise ValueError(
            f"log_density must be a grid of one or two parameters, got shape {tuple(log_density.shape)}; "
            "reshape it to one dimension per parameter."
        )
    if not 0 < cell_volume < math.inf:
        raise ValueError(
            f"cell_volume is the length or area of a grid cell: it must be positive and finite, got {cell_volume}."
        )
    log_density = log_density.double()
    peak = float(log_density.max())
    if not math.isfinite(peak):
        raise ValueError(
            f"log_density must have finite, positive mass, got a maximum of {peak}; "
            "look for NaN or +inf, or a density that is zero on the whole grid."
        )
    relative = log_density - peak  # probabilities then sum to 1 to rounding, however large the exponents
    log_total = float(relative.flatten().logsumexp(0)) + math.log(cell_volume)
    return GridPosterior(relative - log_total, cell_volume, peak + log_total)


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
    """
    _check_same_shape("loss", loss, "log_prior", log_prior)
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


def grid_kl(q: GridPosterior, p: GridPosterior) -> float:
    """KL(q || p) = E_q[log q - log p]; infinite where q is positive and p is 0.

    Raises:
        ValueError: The two are on different grids.
    """
    _check_same_shape("q", q.log_density, "p", p.log_density)
    if not math.isclose(q.cell_volume, p.cell_volume, rel_tol=1e-12):
        raise ValueError(f"q and p must be on the same grid, got cells of size {q.cell_volume} and {p.cell_volume}.")
    return q.expect(q.log_density - p.log_density)


def jeffreys_divergence(p: GridPosterior, q: GridPosterior) -> float:
    """Jeffreys' divergence KL(p || q) + KL(q || p)."""
    return grid_kl(p, q) + grid_kl(q, p)


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
    """
    plain = gibbs_posterior(loss, log_prior, inverse_temperature, cell_volume)
    flat = sharpness_aware_posterior(loss, log_prior, inverse_temperature, cell_volume, radius_in_cells)
    gap = worst_loss(loss, radius_in_cells) - loss.double()
    return inverse_temperature * (plain.expect(gap) - flat.expect(gap)), jeffreys_divergence(flat, plain)


def sample_cells(posterior: GridPosterior, num_draws: int, generator: torch.Generator) -> Int64[Tensor, "draws dims"]:
    """Independent draws of grid cells, by inversion of the distribution function.

    With `cells = sample_cells(...)`, `points[cells[:, 0]]` are the parameters drawn from a grid `points` of one
    parameter, and `values[tuple(cells.T)]` what `values` has there.

    Args:
        posterior: The distribution.
        num_draws: Number of draws.
        generator: Source of randomness, on the CPU.

    Returns:
        Indices of cells, a row per draw and a column per parameter.
    """
    if num_draws < 0:
        raise ValueError(f"num_draws must be at least 0, got {num_draws}.")
    cumulative = posterior.cell_probabilities.flatten().cumsum(0)
    uniform = torch.rand(num_draws, generator=generator, dtype=torch.float64) * cumulative[-1]
    cells = torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(cumulative) - 1)
    return torch.stack(torch.unravel_index(cells, posterior.log_density.shape), dim=1)


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


def _check_same_shape(name: str, tensor: Tensor, expected_name: str, expected: Tensor) -> None:
    if tensor.shape != expected.shape:
        raise ValueError(
            f"{name} and {expected_name} must be on the same grid, "
            f"got shapes {tuple(tensor.shape)} and {tuple(expected.shape)}."
        )


def _check_loss(loss: Tensor) -> None:
    bad = loss.isnan() | loss.isneginf()
    if bool(bad.any()):
        raise ValueError(
            f"loss must not be NaN or -inf, got {int(bad.sum())} such points; use +inf to exclude a point."
        )


def _check_inverse_temperature(inverse_temperature: float) -> None:
    if not 0 <= inverse_temperature < math.inf:
        raise ValueError(f"inverse_temperature must be finite and at least 0, got {inverse_temperature}.")
