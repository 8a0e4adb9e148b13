"""The loss along lines and over planes in weight space: plain data, to be drawn by the reports.

Li, Xu, Taylor, Studer & Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS 2018, for random
directions rescaled filter by filter, so that a network whose layers were rescaled shows the same picture; Garipov et
al., NeurIPS 2018, for the plane through three solutions. Both show two of very many directions: what is not in them
is not seen.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.buffers import norm_layers, reestimate_norm_statistics, swap_buffers
from flatbayes.core.weights import flatten, swap_values, unflatten
from flatbayes.diagnostics.loss_surface import LossSurface
from flatbayes.diagnostics.sharpness import sample_normal_like


@dataclass(frozen=True, eq=False)
class Plane:
    """The points origin + x first + y second of weight space.

    Attributes:
        origin: Where x = y = 0.
        first: Direction of x.
        second: Direction of y.
    """

    origin: Float[Tensor, " params"]
    first: Float[Tensor, " params"]
    second: Float[Tensor, " params"]

    def point_at(self, x: float, y: float) -> Float[Tensor, " params"]:
        """The weights at these coordinates."""
        return self.origin + x * self.first + y * self.second

    def project(self, weights: Float[Tensor, " params"]) -> tuple[float, float, float]:
        """Coordinates of the nearest point of the plane, and the Euclidean distance to it.

        Args:
            weights: Any point of weight space, near the plane or not.
        """
        basis = torch.stack([self.first, self.second]).double()
        offset = weights.to(basis) - self.origin.to(basis)
        found = torch.linalg.solve(basis @ basis.T, basis @ offset)
        rest = offset - found @ basis
        return float(found[0]), float(found[1]), float(rest.norm())


def plane_through(
    point_a: Float[Tensor, " params"], point_b: Float[Tensor, " params"], point_c: Float[Tensor, " params"]
) -> Plane:
    """The plane through three points: the first at (0, 0), the second at (d, 0), the third with y > 0.

    Directions are orthonormal, by Gram-Schmidt, so distances in the plane are distances between weights.

    Args:
        point_a: The origin.
        point_b: In the direction of x.
        point_c: Anywhere else.

    Raises:
        ValueError: The points lie on one line.
    """
    origin, first, second = point_a.double(), point_b.double() - point_a.double(), point_c.double() - point_a.double()
    scale = max(float(first.norm()), float(second.norm()))
    first_length = float(first.norm())
    if first_length > 0:
        first = first / first_length
        for _ in range(2):  # a second time, against rounding
            second = second - (second @ first) * first
    if not (first_length > 1e-9 * scale and float(second.norm()) > 1e-9 * scale):
        raise ValueError("Three points on one line make no plane: choose three different solutions.")
    return Plane(origin, first, second / second.norm())


def normalize_filters(noise: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Each filter of a random direction rescaled to the norm of that filter of the weights (Li et al., section 4).

    A filter is a slice along the first dimension: what feeds one channel of a convolution, or one unit of a linear
    layer. Tensors of one dimension (biases, scales of normalisation) do not move.

    Args:
        noise: The direction, a tensor for each tensor of weights.
        weights: These.
    """
    return [
        _rescale_filters(z, w.detach()) if w.ndim > 1 else torch.zeros_like(z)
        for z, w in zip(noise, weights, strict=True)
    ]


def random_direction(surface: LossSurface, seed: int = 0, index: int = 0) -> Float[Tensor, " params"]:
    """A filter-normalised random direction; networks of equal shapes get the same one before it is rescaled.

    Args:
        surface: The network.
        seed: Decides the direction.
        index: Another number, another direction.
    """
    return flatten(normalize_filters(sample_normal_like(surface.params, seed, index), surface.params))


def random_plane(surface: LossSurface, seed: int = 0) -> Plane:
    """The plane through the weights of a network along two filter-normalised random directions.

    Args:
        surface: The network.
        seed: Decides the directions.
    """
    weights = flatten(surface.params)
    return Plane(weights, random_direction(surface, seed, 0), random_direction(surface, seed, 1))


def loss_at(surface: LossSurface, weights: Float[Tensor, " params"], norm_batches: Sequence[Tensor] = ()) -> float:
    """The loss of the network with other weights, which are taken away again.

    Args:
        surface: The network's loss.
        weights: Those to measure.
        norm_batches: Batches of inputs on which running statistics are re-estimated for these weights; without any,
            the network's own are used, which were right for its own weights.
    """
    with swap_values(surface.params, unflatten(weights, surface.params)):
        there = norm_batches and norm_layers(surface.model)
        with (
            swap_buffers(surface.model, reestimate_norm_statistics(surface.model, norm_batches))
            if there
            else nullcontext()
        ):
            return surface.loss()


@dataclass(frozen=True)
class LossSlice:
    """The loss along a line.

    Attributes:
        distances: Places, in units of the direction.
        losses: The loss at each.
    """

    distances: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class LossGrid:
    """The loss over a plane, and where things lie in it.

    Attributes:
        xs: Coordinates of the columns.
        ys: Coordinates of the rows.
        losses: A row for each y.
        points: Named points: x, y and the distance from the plane.
        draws: Further points, such as draws of a posterior, by the name of what they were drawn from.
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]
    losses: tuple[tuple[float, ...], ...]
    points: dict[str, tuple[float, float, float]]
    draws: dict[str, tuple[tuple[float, float, float], ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "xs": list(self.xs),
            "ys": list(self.ys),
            "losses": [list(row) for row in self.losses],
            "points": {name: list(place) for name, place in self.points.items()},
            "draws": {name: [list(place) for place in places] for name, places in self.draws.items()},
        }


def loss_along(
    surface: LossSurface,
    direction: Float[Tensor, " params"],
    distances: Sequence[float],
    norm_batches: Sequence[Tensor] = (),
) -> LossSlice:
    """The loss at w + t direction, for each t.

    Args:
        surface: The network's loss.
        direction: Where to go; of `random_direction`, a distance of 1 replaces weights by noise as large as they are.
        distances: The ts.
        norm_batches: As in `loss_at`.
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
    """The loss at every pair of coordinates, without points.

    Args:
        surface: The network's loss.
        plane: Where.
        xs: Coordinates of the columns.
        ys: Coordinates of the rows.
        norm_batches: As in `loss_at`; a plane through several networks needs them where there is BatchNorm, since
            running statistics of one are wrong for the others.
    """
    losses = tuple(tuple(loss_at(surface, plane.point_at(float(x), float(y)), norm_batches) for x in xs) for y in ys)
    return LossGrid(tuple(float(x) for x in xs), tuple(float(y) for y in ys), losses, {}, {})


def compute_axes(
    points: Sequence[tuple[float, float, float]], num_steps: int, margin: float = 0.4
) -> list[tuple[float, ...]]:
    """Evenly spaced xs and ys that have all these places inside, with a margin relative to their extent.

    Args:
        points: x, y and distance of each point.
        num_steps: Number of xs and of ys.
        margin: Room on each side, in units of the larger extent.
    """
    check_steps(num_steps)
    spans = [(min(place[axis] for place in points), max(place[axis] for place in points)) for axis in (0, 1)]
    room = margin * max(high - low for low, high in spans)
    return [tuple(torch.linspace(low - room, high + room, num_steps).tolist()) for low, high in spans]


def check_steps(num_steps: int) -> None:
    """Refuse a grid that is a point.

    Raises:
        ValueError: `steps` is below 2.
    """
    if num_steps < 2:
        raise ValueError(f"A landscape has at least 2 steps a side, got {num_steps}.")


def _rescale_filters(noise: Tensor, weights: Tensor) -> Tensor:
    filters = noise.reshape(len(noise), -1)
    norms = filters.norm(dim=1, keepdim=True)
    wanted = weights.reshape(len(weights), -1).norm(dim=1, keepdim=True)
    return (filters * torch.where(norms > 0, wanted / norms, 0.0)).view_as(noise)
