"""Probability densities on a regular grid in one or two parameters: expectations, divergences and draws."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from flatbayes.core.display import format_fields
from flatbayes.theory.numerics import check_positive


@dataclass(frozen=True)
class GridPosterior:
    """A probability density on a grid, constant within a cell.

    Attributes:
        log_density: Log density at every grid point, of shape `grid` or `grid x grid`; -inf where the density is 0.
        cell_volume: Length (one parameter) or area (two) of a cell; Σ exp(log_density) cell_volume = 1.
        log_evidence: Logarithm of the normalising constant. For a posterior it is log Z, with the prior normalised
            on the same grid.

    Examples:
        >>> points = grid_points(1, half_width=4.0, cells_per_side=800)[:, 0]
        >>> posterior = normalize_density(-(points**2) / 2, cell_volume=0.01)
        >>> (
        ...     round(posterior.expect(points**2), 2),
        ...     round(posterior.region_probability(points > 0), 2),
        ... )
        (1.0, 0.5)
    """

    log_density: Float[Tensor, "..."]
    cell_volume: float
    log_evidence: float

    __repr__ = format_fields

    @property
    def cell_probabilities(self) -> Float[Tensor, "..."]:
        """Probability of every cell."""
        return self.log_density.exp() * self.cell_volume

    def expect(self, values: Float[Tensor, "..."]) -> float:
        """E[values] = Σ p_i values_i; cells of probability 0 are left out, even where the value is infinite."""
        probabilities = self.cell_probabilities
        check_same_shape("values", values, "the density", probabilities)
        return float(torch.where(probabilities > 0, probabilities * values.double(), 0.0).sum())

    def region_probability(self, region: Bool[Tensor, "..."]) -> float:
        """Probability of the cells where `region` is true."""
        check_same_shape("region", region, "the density", self.log_density)
        return float(self.cell_probabilities[region].sum())


def grid_points(num_params: int, half_width: float, cells_per_side: int) -> Float[Tensor, "... params"]:
    """Centres of the cells of a regular grid on [-half_width, half_width], in float64.

    Args:
        num_params: Dimensions of the grid, 1 or 2.
        half_width: Half the length of a side.
        cells_per_side: Number of cells on a side.

    Returns:
        Points of shape `cells x 1` or `cells x cells x 2`, the first coordinate along the first dimension.

    Examples:
        >>> grid_points(1, half_width=1.0, cells_per_side=4)[:, 0]
        tensor([-0.7500, -0.2500,  0.2500,  0.7500], dtype=torch.float64)
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

    Examples:
        >>> density = normalize_density(torch.tensor([0.0, 0.0, 0.0, 0.0]), cell_volume=0.5)
        >>> density.cell_probabilities
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
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


def grid_kl(q: GridPosterior, p: GridPosterior) -> float:
    """KL(q || p) = E_q[log q - log p]; infinite where q is positive and p is 0.

    Raises:
        ValueError: The two are on different grids.

    Examples:
        >>> points = grid_points(1, half_width=6.0, cells_per_side=600)[:, 0]
        >>> q, p = (normalize_density(-((points - m) ** 2) / 2, 0.02) for m in (1.0, 0.0))
        >>> round(grid_kl(q, p), 4)
        0.5
    """
    check_same_shape("q", q.log_density, "p", p.log_density)
    if not math.isclose(q.cell_volume, p.cell_volume, rel_tol=1e-12):
        raise ValueError(f"q and p must be on the same grid, got cells of size {q.cell_volume} and {p.cell_volume}.")
    return q.expect(q.log_density - p.log_density)


def jeffreys_divergence(p: GridPosterior, q: GridPosterior) -> float:
    """Jeffreys' divergence KL(p || q) + KL(q || p).

    Examples:
        >>> points = grid_points(1, half_width=6.0, cells_per_side=600)[:, 0]
        >>> q, p = (normalize_density(-((points - m) ** 2) / 2, 0.02) for m in (1.0, 0.0))
        >>> round(jeffreys_divergence(q, p), 4)
        1.0
    """
    return grid_kl(p, q) + grid_kl(q, p)


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

    Examples:
        >>> points = grid_points(1, half_width=4.0, cells_per_side=800)[:, 0]
        >>> posterior = normalize_density(-(points**2) / 2, cell_volume=0.01)
        >>> cells = sample_cells(posterior, 1000, torch.Generator().manual_seed(0))
        >>> points[cells[:, 0]].std().round(decimals=1)
        tensor(1., dtype=torch.float64)
    """
    if num_draws < 0:
        raise ValueError(f"num_draws must be at least 0, got {num_draws}.")
    cumulative = posterior.cell_probabilities.flatten().cumsum(0)
    uniform = torch.rand(num_draws, generator=generator, dtype=torch.float64) * cumulative[-1]
    cells = torch.searchsorted(cumulative, uniform, right=True).clamp(max=len(cumulative) - 1)
    return torch.stack(torch.unravel_index(cells, posterior.log_density.shape), dim=1)


def check_same_shape(name: str, tensor: Tensor, expected_name: str, expected: Tensor) -> None:
    """Refuse tensors of different shapes."""
    if tensor.shape != expected.shape:
        raise ValueError(
            f"{name} and {expected_name} must be on the same grid, "
            f"got shapes {tuple(tensor.shape)} and {tuple(expected.shape)}."
        )
