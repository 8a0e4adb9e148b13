"""Loss along lines and over planes in weight space, as plain data for figures.

Filter-normalised random directions are those of Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape
of neural nets", NeurIPS 2018: a network whose layers were rescaled has the same slices. The plane through three
solutions is that of Garipov et al., NeurIPS 2018. Both show one or two directions of very many.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics, swap_buffers
from flatbayes.core.devices import to_double
from flatbayes.core.display import format_fields
from flatbayes.core.names import format_count
from flatbayes.core.tensor_lists import flatten, unflatten
from flatbayes.core.weights import swap_values
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.sharpness import sample_normal_like
from flatbayes.plotting import theme
from flatbayes.plotting.landscape import draw_plane, draw_slices

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False)
class Plane:
    """The points origin + x first + y second of weight space.

    Attributes:
        origin: Point at x = y = 0, all trainable weights in one vector.
        first: Direction of x.
        second: Direction of y.

    Examples:
        >>> origin, first, second = torch.zeros(3), torch.eye(3)[0], torch.eye(3)[1]
        >>> plane = Plane(origin, first, second)
        >>> plane.point_at(2.0, 1.0), plane.project(torch.tensor([2.0, 1.0, 3.0]))
        (tensor([2., 1., 0.]), (2.0, 1.0, 3.0))
    """

    origin: Float[Tensor, " params"]
    first: Float[Tensor, " params"]
    second: Float[Tensor, " params"]

    __repr__ = format_fields

    def point_at(self, x: float, y: float) -> Float[Tensor, " params"]:
        """The weights at these coordinates."""
        return self.origin + x * self.first + y * self.second

    def project(self, weights: Float[Tensor, " params"]) -> tuple[float, float, float]:
        """Orthogonal projection onto the plane.

        Args:
            weights: A point of weight space.

        Returns:
            Coordinates x and y of the nearest point of the plane, and the Euclidean distance to it.
        """
        basis = to_double(torch.stack([self.first, self.second]))
        offset = weights.to(basis) - self.origin.to(basis)
        coordinates = torch.linalg.solve(basis @ basis.T, basis @ offset)
        residual = offset - coordinates @ basis
        return float(coordinates[0]), float(coordinates[1]), float(residual.norm())


def plane_through(
    point_a: Float[Tensor, " params"], point_b: Float[Tensor, " params"], point_c: Float[Tensor, " params"]
) -> Plane:
    """The plane through three points: the first at (0, 0), the second at (d, 0), the third with y > 0.

    Directions are orthonormal (Gram-Schmidt), so that distances in the plane are distances between weights.

    Args:
        point_a: The origin.
        point_b: Point in the direction of x.
        point_c: Point off the line through the other two.

    Raises:
        ValueError: The points lie on one line.

    Examples:
        >>> plane = plane_through(torch.zeros(3), 2 * torch.eye(3)[0], torch.ones(3))
        >>> plane.project(2 * torch.eye(3)[0])
        (2.0, 0.0, 0.0)
    """
    plane = span_plane(point_a, point_b, point_c)
    if plane is None:
        raise ValueError("Three points on one line do not span a plane: choose three different solutions.")
    return plane


def span_plane(
    point_a: Float[Tensor, " params"], point_b: Float[Tensor, " params"], point_c: Float[Tensor, " params"]
) -> Plane | None:
    """`plane_through`, but None if the points lie on one line."""
    origin = to_double(point_a)
    first, second = to_double(point_b) - origin, to_double(point_c) - origin
    scale = max(float(first.norm()), float(second.norm()))
    first_length = float(first.norm())
    if first_length > 0:
        first = first / first_length
        for _ in range(2):  # the second pass removes rounding errors
            second = second - (second @ first) * first
    if not (first_length > 1e-9 * scale and float(second.norm()) > 1e-9 * scale):
        return None
    return Plane(origin, first, second / second.norm())


def normalize_filters(noise: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Rescale each filter of a random direction to the norm of the filter of the weights (Li et al., section 4).

    A filter is a slice along the first dimension: the weights of one output channel of a convolution, or of one unit
    of a linear layer. Tensors of one dimension (biases, scales of normalisation) get direction 0.
    """
    return [
        _rescale_filters(z, w.detach()) if w.ndim > 1 else torch.zeros_like(z)
        for z, w in zip(noise, weights, strict=True)
    ]


def random_direction(surface: LossSurface, seed: int = 0, index: int = 0) -> Float[Tensor, " params"]:
    """A filter-normalised random direction; networks of equal shapes get the same one before normalisation.

    Args:
        surface: Loss of the network.
        seed: Seed of the sequence of directions.
        index: Number of the direction in the sequence.

    Examples:
        >>> random_direction(surface, seed=0).shape
        torch.Size([15])
    """
    return flatten(normalize_filters(sample_normal_like(surface.params, seed, index), surface.params))


def loss_at(surface: LossSurface, weights: Float[Tensor, " params"], norm_batches: Sequence[Tensor] = ()) -> float:
    """Loss of the network at other weights; its own weights are restored afterwards.

    Args:
        surface: Loss of the network.
        weights: Point of weight space, all trainable weights in one vector.
        norm_batches: Batches of inputs on which BatchNorm statistics are re-estimated at these weights; if empty, the
            statistics of the network are used, which belong to its own weights.

    Examples:
        >>> round(loss_at(surface, torch.zeros(surface.num_params)), 4)  # log 3
        1.0986
    """
    with swap_values(surface.params, unflatten(weights, surface.params)):
        reestimate = norm_batches and norm_layers(surface.model, surface.updated_buffers)
        with (
            swap_buffers(
                surface.model, reestimate_norm_statistics(surface.model, norm_batches, surface.updated_buffers)
            )
            if reestimate
            else nullcontext()
        ):
            return surface.loss()


@dataclass(frozen=True)
class LossSlice:
    """Loss along a line.

    Attributes:
        distances: Positions, in units of the direction.
        losses: Loss at each position.

    Examples:
        >>> loss_slice = loss_along(surface, random_direction(surface), [-1.0, 0.0, 1.0])
        >>> axes = loss_slice.plot()
    """

    distances: tuple[float, ...]
    losses: tuple[float, ...]

    def __repr__(self) -> str:
        span = f"from {min(self.losses):.4g} to {max(self.losses):.4g}"
        return f"<LossSlice: {format_count(len(self.losses), 'loss', 'losses')} {span}>"

    def plot(self, *, name: str = "loss", flat: bool = True, ax: "Axes | None" = None) -> "Axes":
        """Draw the loss along the line.

        Args:
            name: Name in the legend.
            flat: Whether to draw in the style of flat runs.
            ax: Where to draw; by default new axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        with theme.use_axes(ax, 5.6, 3.6) as axes:
            draw_slices(axes, {name: [(self.distances, self.losses)]}, {name: flat})
            return axes


@dataclass(frozen=True)
class LossGrid:
    """Loss over a plane, and points projected onto it.

    Attributes:
        xs: Coordinates of the columns.
        ys: Coordinates of the rows.
        losses: One row for each y.
        points: Named points: x, y and the distance from the plane.
        draws: Draws of each posterior by its name, each as x, y and the distance from the plane.

    Examples:
        >>> grid = compute_solution_plane({"SWAG": fitted}, inputs[:50], labels[:50], 2, num_steps=3)
        >>> axes = grid.plot()
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    points: dict[str, tuple[float, float, float]]
    draws: dict[str, tuple[tuple[float, float, float], ...]]

    def __repr__(self) -> str:
        finite = [loss for row in self.losses for loss in row if math.isfinite(loss)]
        span = f"losses from {min(finite):.4g} to {max(finite):.4g}" if finite else "no finite loss"
        return f"<LossGrid: {len(self.ys)} x {len(self.xs)} points, {span}; solutions {', '.join(self.points)}>"

    def plot(self, *, flat: Mapping[str, bool] = MappingProxyType({}), ax: "Axes | None" = None) -> "Axes":
        """Draw contours of the loss, marks of the solutions, and dots of the draws.

        Args:
            flat: Whether a posterior was trained flat, by its name.
            ax: Where to draw; by default new axes.

        Raises:
            ValueError: No loss is finite.
            ImportError: matplotlib is not installed.
        """
        with theme.use_axes(ax, 5.6, 5.0) as axes:
            draw_plane(axes, self.xs, self.ys, self.losses, self.points, self.draws, flat)
            return axes

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "xs": list(self.xs),
            "ys": list(self.ys),
            "losses": [list(row) for row in self.losses],
            "points": {name: list(point) for name, point in self.points.items()},
            "draws": {name: [list(point) for point in points] for name, points in self.draws.items()},
        }


def loss_along(
    surface: LossSurface,
    direction: Float[Tensor, " params"],
    distances: Sequence[float],
    norm_batches: Sequence[Tensor] = (),
) -> LossSlice:
    """Loss at w + t direction, for each t.

    Args:
        surface: Loss of the network.
        direction: Direction in weight space; at t = 1 along a `random_direction` each filter is perturbed by noise of
            its own norm.
        distances: Values of t.
        norm_batches: As in `loss_at`.

    Examples:
        >>> len(loss_along(surface, random_direction(surface), [-1.0, 0.0, 1.0]).losses)
        3
    """
    weights = flatten(surface.params)
    return LossSlice(
        tuple(float(t) for t in distances),
        tuple(loss_at(surface, weights + float(t) * direction.to(weights), norm_batches) for t in distances),
    )


def loss_over(
    surface: LossSurface,
    plane: Plane,
    xs: Sequence[float],
    ys: Sequence[float],
    norm_batches: Sequence[Tensor] = (),
) -> LossGrid:
    """Loss at every pair of coordinates; the grid has no points or draws.

    Args:
        surface: Loss of the network.
        plane: The plane.
        xs: Coordinates of the columns.
        ys: Coordinates of the rows.
        norm_batches: As in `loss_at`; needed for a plane through several networks with BatchNorm, since the running
            statistics of one network are wrong for the others.

    Examples:
        >>> plane = Plane(
        ...     torch.zeros(15), random_direction(surface), random_direction(surface, index=1)
        ... )
        >>> grid = loss_over(surface, plane, xs=[-1.0, 0.0, 1.0], ys=[0.0, 1.0])
        >>> len(grid.losses), len(grid.losses[0])
        (2, 3)
    """
    losses = tuple(tuple(loss_at(surface, plane.point_at(float(x), float(y)), norm_batches) for x in xs) for y in ys)
    return LossGrid(tuple(float(x) for x in xs), tuple(float(y) for y in ys), losses, {}, {})


def compute_axes(
    points: Sequence[tuple[float, float, float]], num_steps: int, margin: float = 0.4
) -> list[tuple[float, ...]]:
    """Evenly spaced xs and ys whose range contains all points, with a margin.

    `points` are x, y and distance from the plane; the margin is relative to the larger extent.
    """
    check_steps(num_steps)
    spans = [(min(point[axis] for point in points), max(point[axis] for point in points)) for axis in (0, 1)]
    padding = margin * max(high - low for low, high in spans)
    return [tuple(torch.linspace(low - padding, high + padding, num_steps).tolist()) for low, high in spans]


def check_steps(num_steps: int) -> None:
    """Check that a grid has at least two points on each side."""
    if num_steps < 2:
        raise ValueError(f"A landscape needs at least 2 points on each side, got {num_steps}.")


def _rescale_filters(noise: Tensor, weights: Tensor) -> Tensor:
    filters = noise.reshape(len(noise), -1)
    norms = filters.norm(dim=1, keepdim=True)
    target_norms = weights.reshape(len(weights), -1).norm(dim=1, keepdim=True)
    return (filters * torch.where(norms > 0, target_norms / norms, 0.0)).view_as(noise)
