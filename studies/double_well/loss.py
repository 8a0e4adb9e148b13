"""Multi-well loss with the worst loss in closed form: a sharp deep and a flat shallow well.

The wells are radially symmetric, do not overlap, and lie in a plateau that is the maximum of the loss. The worst
point
of a ball therefore lies in the direction away from the centre of the well, or on the plateau. One ascent step reaches
it if the radius of the ball is at most the width of the plateau between two wells.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flatbayes.theory.numerics import check_positive, check_radius


@dataclass(frozen=True)
class MultiWellLoss:
    """L(w) = 1 - Σ_k d_k (1 - ||w - c_k||² / R_k²)², each term within its radius only.

    The curvature at the bottom of a well is 4 d_k / R_k².

    Attributes:
        centres: c_k, a row of coordinates for each well.
        radii: R_k.
        depths: d_k, at most 1.
    """

    centres: tuple[tuple[float, ...], ...]
    radii: tuple[float, ...]
    depths: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.centres) == len(self.radii) == len(self.depths) > 0:
            raise ValueError(
                "Wells need a centre, a radius and a depth each, "
                f"got {len(self.centres)}, {len(self.radii)} and {len(self.depths)} of them."
            )
        if len({len(centre) for centre in self.centres}) > 1:
            raise ValueError(f"centres must have the same number of coordinates, got {self.centres}.")
        for radius, depth in zip(self.radii, self.depths, strict=True):
            check_positive(radius=radius, depth=depth)
            if depth > 1:
                raise ValueError(f"depths must be at most 1, so that the loss is not negative, got {depth}.")
        if self.plateau_width < 0:
            raise ValueError(
                f"Wells must not overlap, got two that do by {-self.plateau_width:g}; move their centres apart."
            )

    @property
    def num_params(self) -> int:
        """Coordinates of a weight vector."""
        return len(self.centres[0])

    @property
    def plateau_width(self) -> float:
        """Width of the plateau between the two closest wells; infinite for a single well.

        Up to this radius, one step of steepest ascent reaches the worst point of the ball from every start.
        """
        pairs = itertools.combinations(zip(self.centres, self.radii, strict=True), 2)
        return min((math.dist(c, d) - r - s for (c, r), (d, s) in pairs), default=math.inf)

    def loss(self, points: Float[Tensor, "... params"]) -> Float[Tensor, "..."]:
        """The loss L at points, whose last dimension holds the coordinates."""
        return self.worst_loss(points, 0.0)

    def gradient(self, points: Float[Tensor, "... params"]) -> Float[Tensor, "... params"]:
        """The gradient of L: Σ_k 4 d_k (1 - ||w - c_k||² / R_k²) (w - c_k) / R_k² within the radii."""
        total = torch.zeros_like(points)
        for centre, radius, depth in zip(self.centres, self.radii, self.depths, strict=True):
            offset = points - points.new_tensor(centre)
            factor = (1 - offset.square().sum(-1, keepdim=True) / radius**2).clamp_(min=0)
            total += offset.mul_(factor).mul_(4 * depth / radius**2)
        return total

    def worst_loss(self, points: Float[Tensor, "... params"], rho: float) -> Float[Tensor, "..."]:
        """L^ρ(w) = max over ||e|| <= ρ of L(w + e): each well with ||w - c_k|| + ρ in place of the distance."""
        check_radius(rho)
        total = torch.ones_like(points[..., 0])
        for centre, radius, depth in zip(self.centres, self.radii, self.depths, strict=True):
            distance = torch.linalg.vector_norm(points - points.new_tensor(centre), dim=-1) + rho
            total -= depth * (1 - distance.square() / radius**2).clamp(min=0).square()
        return total

    def is_inside_well(self, points: Float[Tensor, "... params"], well_index: int) -> Bool[Tensor, "..."]:
        """True for points within the radius of a well."""
        distance: Tensor = torch.linalg.vector_norm(points - points.new_tensor(self.centres[well_index]), dim=-1)
        return distance < self.radii[well_index]


def make_sharp_and_flat_wells(num_params: int) -> MultiWellLoss:
    """A sharp deep well (the first) and a flat shallow one, 0.3 apart.

    With λ = 7 and a prior N(0, I) the Gibbs posterior prefers the first, and the sharpness-aware one with ρ = 0.3
    the second.
    """
    if num_params == 1:
        return MultiWellLoss(centres=((-1.25,), (1.25,)), radii=(0.6, 1.6), depths=(0.8, 0.56))
    if num_params == 2:
        return MultiWellLoss(centres=((-1.45, 0.0), (1.45, 0.0)), radii=(0.8, 1.8), depths=(1.0, 0.6))
    raise ValueError(f"num_params must be 1 or 2, got {num_params}.")
