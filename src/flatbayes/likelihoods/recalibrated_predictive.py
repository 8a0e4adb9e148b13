"""Predictive distribution of a regression whose distribution function has been recalibrated.

With F the distribution function of a mixture of normal distributions and z(y) = Phi^-1(F(y)) its normal score, the
recalibrated distribution function is Phi(g(z(y))) for an increasing function g, the same for all examples: R(F(y)) of
Kuleshov et al. (ICML 2018) with R = Phi o g o Phi^-1. g is piecewise linear between knots and goes on with one slope
beyond them, so that the distribution has a density and finite quantiles everywhere.

Quantiles, distribution function and density are exact; mean, variance, entropy and CRPS are integrated numerically.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.likelihoods import mixture
from flatbayes.likelihoods.gaussian_predictive import GaussianPredictive
from flatbayes.likelihoods.number_predictive import DEFAULT_INTERVAL_LEVEL, check_interval_level

GRID_HALF_WIDTH = 8.0
"""Normal scores of the recalibrated distribution between which integrals are computed."""
MAX_GRID_VALUES = 2**20
"""Largest number of values that an integration holds at a time."""

Curve = tuple[tuple[float, ...], tuple[float, ...]]
"""Knots and values of an increasing function, two increasing sequences of one length."""


@dataclass(frozen=True, eq=False)
class RecalibratedPredictive(GaussianPredictive):
    """Mixtures whose distribution function F was replaced by Phi(g(Phi^-1(F))).

    `member_means` and `member_stds` are those of the networks, before the recalibration; everything else is that of
    the recalibrated distribution. The mutual information of target and network is the same before and after, since
    targets of each example are transformed by one increasing function.

    Attributes:
        curves: Knots and values of g for each target.

    Examples:
        >>> raw = Gaussian().predictive([torch.zeros(2, 2)])
        >>> doubled = RecalibratedPredictive(
        ...     raw.member_means, raw.member_stds, curves=(((-2.0, 2.0), (-1.0, 1.0)),)
        ... )
        >>> torch.allclose(doubled.std, 2 * raw.std), torch.allclose(doubled.mean, raw.mean)
        (True, True)
    """

    curves: tuple[Curve, ...]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance: E[Y - a] = int (1 - F), E[(Y - a)^2] = int 2 (y - a) (1 - F), a the lowest point."""

        def integrate(grid: "_Grid") -> Tensor:
            above = grid.weights * (1 - grid.compute_cdf())
            distance = grid.points - grid.points[:1]
            first, second = above.sum(0), 2 * (above * distance).sum(0)
            return torch.stack([grid.points[0] + first, second - first.square()])

        mean, variance = self._integrate(integrate)
        return mean, variance

    @property
    def mean(self) -> Float[Tensor, "examples ..."]:
        """Expected target."""
        return self._moments[0]

    @property
    def aleatoric(self) -> Float[Tensor, "examples ..."]:
        """The part of the variance that is noise, in the proportion that it has for the networks."""
        return self._moments[1] * super().aleatoric / (super().aleatoric + super().epistemic)

    @property
    def epistemic(self) -> Float[Tensor, "examples ..."]:
        """The part of the variance that is due to the networks' means, in the proportion before the recalibration."""
        return self._moments[1] * super().epistemic / (super().aleatoric + super().epistemic)

    @property
    def entropy(self) -> Float[Tensor, " examples"]:
        """Entropy in nats, integrated numerically; for several targets, the sum, an upper bound."""

        def integrate(grid: "_Grid") -> Tensor:
            log_density = grid.compute_log_density()
            return -(grid.weights * log_density.exp() * log_density).sum(0)[None]

        values: Tensor = self._integrate(integrate)[0]
        return values if values.ndim == 1 else values.sum(-1)

    def crps(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """Continuous ranked probability score int (F(y) - 1[y >= target])^2 dy of each target, in its unit.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """

        def integrate(grid: "_Grid") -> Tensor:
            step = (grid.points >= grid.split).to(grid.points)
            return (grid.weights * (grid.compute_cdf() - step).square()).sum(0)[None]

        values: Tensor = self._integrate(integrate, self.match_targets(targets))[0]
        return values

    def interval(
        self, level: float = DEFAULT_INTERVAL_LEVEL
    ) -> tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]]:
        """Ends of the central interval: the target is below, and above it, with probability (1 - level) / 2.

        Args:
            level: Probability of the interval.

        Raises:
            ValueError: The level is not strictly between 0 and 1.
        """
        check_interval_level(level)
        score = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64))
        low, high = (self._map_columns(self._invert(end), self.member_means[0]) for end in (-score, score))
        return low, high

    def cdf(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, "examples ..."]:
        """P(Y <= target), separately for each target.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """

        def compute(values: Tensor, means: Tensor, stds: Tensor, curve: Curve) -> Tensor:
            score = mixture.mixture_score(values, means, stds)
            result: Tensor = torch.special.ndtr(evaluate_curve(score, *curve)[0])
            return result

        return self._map_columns(compute, self.match_targets(targets))

    def log_prob(self, targets: Float[Tensor, "examples ..."]) -> Float[Tensor, " examples"]:
        """Log density, jointly for all targets of an example, per unit of the targets.

        Each target is the increasing function h^-1 of the target of the mixture, so that the joint density is that
        of the mixture at h(y), times the derivatives of h.

        Args:
            targets: Of the shape of the predictions, in their unit.

        Raises:
            ValueError: The targets have another shape than the predictions.
        """
        targets = self.match_targets(targets)

        def move(values: Tensor, means: Tensor, stds: Tensor, curve: Curve) -> Tensor:
            mapped, _ = evaluate_curve(mixture.mixture_score(values, means, stds), *curve)
            return mixture.mixture_quantile_of_score(mapped, means, stds)

        def compute_marginal(values: Tensor, means: Tensor, stds: Tensor, curve: Curve) -> Tensor:
            return _recalibrated_log_density(values, means, stds, curve)

        marginal = self._map_columns(compute_marginal, targets)
        if targets.ndim == 1:
            return marginal
        moved = self._map_columns(move, targets)  # h(y)
        normal = mixture.normal_log_density(moved, self.member_means, self.member_stds)
        joint = mixture.log_mean_density(normal.sum(-1))
        return joint + (marginal - mixture.log_mean_density(normal)).sum(-1)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1].replace('Gaussian', 'Recalibrated')}, recalibrated>"

    def select(self, rows: Tensor) -> Self:
        """The predictions of some examples, by indices or a mask."""
        return replace(self, member_means=self.member_means[:, rows], member_stds=self.member_stds[:, rows])

    @classmethod
    def concatenate(cls, predictions: Sequence[Self]) -> Self:
        """Join predictions for several batches of examples, in order."""
        return cls(
            torch.cat([p.member_means for p in predictions], dim=1),
            torch.cat([p.member_stds for p in predictions], dim=1),
            predictions[0].curves,
        )

    def _invert(self, score: Tensor) -> Callable[[Tensor, Tensor, Tensor, Curve], Tensor]:
        """Function that computes the quantiles of a normal score for one target."""

        def compute(_: Tensor, means: Tensor, stds: Tensor, curve: Curve) -> Tensor:
            knots, values = curve
            inverse = evaluate_curve(score, values, knots)[0].to(means.device)
            return mixture.mixture_quantile_of_score(inverse.expand(means.shape[1:]), means, stds)

        return compute

    def _map_columns(self, compute: Callable[[Tensor, Tensor, Tensor, Curve], Tensor], values: Tensor) -> Tensor:
        """Apply a function of values, means, stds and the curve to each target."""
        if values.ndim == 1:
            return compute(values, self.member_means, self.member_stds, self.curves[0])
        columns = [
            compute(values[:, k], self.member_means[..., k], self.member_stds[..., k], curve)
            for k, curve in enumerate(self.curves)
        ]
        return torch.stack(columns, -1)

    def _integrate(self, function: Callable[["_Grid"], Tensor], split: Tensor | None = None) -> Tensor:
        """Results of a function of grids, shape (results, examples, ...)."""

        def compute(values: Tensor, means: Tensor, stds: Tensor, curve: Curve) -> Tensor:
            grids = _make_grids(means, stds, curve, None if split is None else values)
            return torch.cat([function(grid) for grid in grids], 1).T

        values = self.member_means[0] if split is None else split
        results = self._map_columns(compute, values)  # (examples, results), or (examples, results, targets)
        return results.movedim(1, 0)


def evaluate_curve(
    inputs: Tensor, knots: Sequence[float], values: Sequence[float]
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """A piecewise linear function and its derivative; beyond the knots the slope is that from the first to the last.

    With one knot the slope is 1. The inverse function is that of `values` and `knots`. Knots and values increase.
    """
    x, y = (torch.tensor(numbers, dtype=inputs.dtype, device=inputs.device) for numbers in (knots, values))
    outer = (y[-1:] - y[:1]) / (x[-1:] - x[:1]) if len(x) > 1 else torch.ones_like(x)
    slopes = torch.cat([outer, y.diff() / x.diff(), outer])
    interval = torch.searchsorted(x, inputs.contiguous())  # 0 below the first knot
    anchor = (interval - 1).clamp_min(0)
    return y[anchor] + slopes[interval] * (inputs - x[anchor]), slopes[interval]


def _recalibrated_log_density(values: Tensor, means: Tensor, stds: Tensor, curve: Curve) -> Tensor:
    """Log f + log phi(g(z)) - log phi(z) + log g'(z) of one target."""
    score = mixture.mixture_score(values, means, stds)
    mapped, slope = evaluate_curve(score, *curve)
    log_density = mixture.log_mean_density(mixture.normal_log_density(values, means, stds))
    return log_density + (score.square() - mapped.square()) / 2 + slope.log()


@dataclass(frozen=True)
class _Grid:
    """Points and weights of a quadrature for each of some examples, with their distributions."""

    points: Float[Tensor, "points examples"]
    weights: Float[Tensor, "points examples"]
    means: Float[Tensor, "draws examples"]
    stds: Float[Tensor, "draws examples"]
    curve: Curve
    split: Tensor

    def compute_cdf(self) -> Tensor:
        score = mixture.mixture_score(self.points, self.means[:, None], self.stds[:, None])
        result: Tensor = torch.special.ndtr(evaluate_curve(score, *self.curve)[0])
        return result

    def compute_log_density(self) -> Tensor:
        return _recalibrated_log_density(self.points, self.means[:, None], self.stds[:, None], self.curve)


def _make_grids(means: Tensor, stds: Tensor, curve: Curve, split: Tensor | None) -> Iterator[_Grid]:
    """Gauss-Legendre points, two between neighbours of a grid that has all normal scores around every member.

    `curve` has knots and values of g; `split` is a further node for each example, where the integrand jumps.
    """
    num_members = len(means)
    count = max(mixture.MIN_NODES_PER_MEMBER, math.ceil(mixture.NUM_GRID_NODES / num_members))
    limits = torch.linspace(-GRID_HALF_WIDTH, GRID_HALF_WIDTH, count, dtype=means.dtype, device=means.device)
    knots, values = curve
    offsets = evaluate_curve(limits, values, knots)[0]
    bends = means.new_tensor(knots)[:, None]  # normal scores where densities jump
    num_nodes = len(offsets) * num_members + len(bends)
    size = max(1, MAX_GRID_VALUES // (2 * num_nodes * num_members))
    splits = [None] * math.ceil(means.shape[1] / size) if split is None else split.split(size)
    for mean, std, extra in zip(means.split(size, 1), stds.split(size, 1), splits, strict=True):
        jumps = mixture.mixture_quantile_of_score(bends.expand(-1, mean.shape[1]), mean[:, None], std[:, None])
        nodes = torch.cat([(mean + offsets[:, None, None] * std).flatten(0, 1), jumps])
        nodes = (nodes if extra is None else torch.cat([nodes, extra[None]])).sort(0).values
        center, half = (nodes[1:] + nodes[:-1]) / 2, (nodes[1:] - nodes[:-1]) / 2
        points = torch.cat([nodes[:1], center - half / math.sqrt(3), center + half / math.sqrt(3)])
        weights = torch.cat([torch.zeros_like(nodes[:1]), half, half])
        yield _Grid(points, weights, mean, std, curve, nodes[0] if extra is None else extra)
