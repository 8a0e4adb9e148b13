"""The metrics of a regression, all at once, and what they mean.

A prediction is an equal mixture of normal distributions, one for each network, and is judged as that mixture: nothing
is moment-matched. With several targets, all but the NLL are averages over them, each in its own unit.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

INTERVAL_LEVEL = 0.95
COVERAGE_LEVELS = tuple(k / 20 for k in range(1, 20))

REGRESSION_HIGHER_IS_BETTER: Mapping[str, bool] = MappingProxyType(
    {"nll": False, "rmse": False, "crps": False, "miscalibration": False}
)
"""Direction of each metric that has one: an interval is not better for being wide, or narrow, by itself."""

REGRESSION_DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "nll": "NLL: mean negative log density of the target under the mixture, in nats, in the target's unit",
        "rmse": "RMSE: root mean squared error of the predicted mean, in the target's unit",
        "crps": "CRPS: continuous ranked probability score of the mixture, in the target's unit",
        "miscalibration": "Miscalibration: mean |coverage - level| of central intervals, levels .05 to .95",
        "coverage_95": "Coverage: fraction of targets inside the central 95 % interval",
        "width_95": "Width: mean width of the central 95 % interval, in the target's unit",
    }
)
"""One line on each metric, for reports."""


@dataclass(frozen=True)
class CoverageCurve:
    """How many targets lie inside the central interval of each level.

    Attributes:
        levels: Probability that the predictions give to the interval.
        coverage: Fraction of the targets that are inside.
        count: Targets in all.
    """

    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    count: int

    def to_dict(self) -> dict[str, Any]:
        """Lists by name, ready for JSON."""
        return {"levels": list(self.levels), "coverage": list(self.coverage), "count": self.count}


def regression_metrics(
    targets: Float[Tensor, "examples ..."],
    *,
    means: Float[Tensor, "draws examples ..."],
    stds: Float[Tensor, "draws examples ..."],
    log_density: Float[Tensor, " examples"],
    pit: Float[Tensor, "examples ..."],
    interval: tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]],
) -> dict[str, float]:
    """All metrics of `DEFINITIONS` by name.

    Args:
        targets: What came true.
        means: Mean that each network predicts.
        stds: Standard deviation that each network predicts.
        log_density: Log density of the mixture at the targets.
        pit: Distribution function of the mixture at the targets.
        interval: Ends of the central 95 % interval of the mixture.

    Raises:
        ValueError: Predictions or targets are not finite, or do not match.
    """
    error = rmse(means.mean(0), targets)  # first, since its complaints are about the targets
    return {
        "nll": _mean_nll(log_density),
        "rmse": error,
        "crps": crps(means, stds, targets),
        "miscalibration": miscalibration(pit),
        "coverage_95": coverage_curve(pit, (INTERVAL_LEVEL,)).coverage[0],
        "width_95": interval_width(*interval),
    }


def rmse(mean: Float[Tensor, "examples ..."], targets: Float[Tensor, "examples ..."]) -> float:
    """Root mean squared error: sqrt(mean_i (y_i - m_i)^2), without overflow.

    Raises:
        ValueError: Predictions or targets are not finite, or do not match.
    """
    mean, targets = _check_finite(mean, "predicted means"), _check_finite(targets, "targets")
    _check_same_shape(mean, targets)
    errors = (mean - targets).abs()
    largest = float(errors.max())
    return 0.0 if largest == 0 else largest * math.sqrt(float((errors / largest).square().mean()))


def crps(
    means: Float[Tensor, "draws examples ..."],
    stds: Float[Tensor, "draws examples ..."],
    targets: Float[Tensor, "examples ..."],
) -> float:
    """Continuous ranked probability score of equal mixtures of T normal distributions: E|X - y| - E|X - X'| / 2.

    With A(m, s) = E|N(m, s^2)| = m (2 Phi(m/s) - 1) + 2 s phi(m/s) it is, for each target,
    mean_t A(y - mean_t, std_t) - mean_tu A(mean_t - mean_u, sqrt(std_t^2 + std_u^2)) / 2
    (Grimit et al., Q. J. R. Meteorol. Soc. 2006). It has the target's unit, and is the absolute error of a prediction
    without spread.

    Raises:
        ValueError: Predictions or targets are not finite, or do not match.
    """
    means, stds = _check_finite(means, "predicted means"), _check_finite(stds, "predicted standard deviations")
    targets = _check_finite(targets, "targets")
    _check_same_shape(means[0], targets)
    _check_same_shape(means, stds)
    if (stds < 0).any():
        raise ValueError(f"Standard deviations must not be negative, got {float(stds.min()):g}.")
    scores = folded_normal_mean(targets - means, stds).mean(0)
    for mean, std in zip(means, stds, strict=True):
        scores = scores - folded_normal_mean(mean - means, torch.hypot(std, stds)).mean(0) / (2 * len(means))
    return float(scores.mean())


def folded_normal_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E|X| of X ~ N(mean, std^2); |mean| where the standard deviation is 0."""
    z = mean / torch.where(std > 0, std, 1.0)
    folded = mean * torch.erf(z / math.sqrt(2)) + std * math.sqrt(2 / math.pi) * (-0.5 * z.square()).exp()
    return torch.where(std > 0, folded, mean.abs())


def coverage_curve(pit: Float[Tensor, "examples ..."], levels: Sequence[float] = COVERAGE_LEVELS) -> CoverageCurve:
    """How many targets lie inside central intervals: |2 F_i(y_i) - 1| <= level.

    Args:
        pit: Distribution function of each prediction at its target, F_i(y_i); uniform if the predictions are
            calibrated.
        levels: Probability that the predictions give to the interval.

    Raises:
        ValueError: A value or a level is not a probability.
    """
    pit = _check_finite(pit, "values of the distribution function")
    if pit.min() < 0 or pit.max() > 1:
        raise ValueError(
            f"Values of a distribution function lie between 0 and 1, got {float(pit.min()):g} to "
            f"{float(pit.max()):g}. Pass predictive.cdf(targets)."
        )
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"Levels lie strictly between 0 and 1, got {list(levels)}.")
    inside = [float(((2 * pit - 1).abs() <= level).double().mean()) for level in levels]
    return CoverageCurve(tuple(levels), tuple(inside), pit.numel())


def miscalibration(pit: Float[Tensor, "examples ..."]) -> float:
    """Mean of |coverage - level| over the levels .05, .10, ..., .95.

    Even of perfect predictions it is about a third of 1 / sqrt(examples): compare only values of one sample size.

    Raises:
        ValueError: A value is not a probability.
    """
    curve = coverage_curve(pit)
    gaps = [abs(found - level) for found, level in zip(curve.coverage, curve.levels, strict=True)]
    return math.fsum(gaps) / len(gaps)


def interval_width(lower: Float[Tensor, "examples ..."], upper: Float[Tensor, "examples ..."]) -> float:
    """Mean width of intervals. It means something only beside their coverage.

    Raises:
        ValueError: The ends are not finite, or do not match.
    """
    lower, upper = _check_finite(lower, "lower ends"), _check_finite(upper, "upper ends")
    _check_same_shape(lower, upper)
    return float((upper - lower).mean())


def _mean_nll(log_density: Tensor) -> float:
    if log_density.isnan().any():
        raise ValueError(f"{int(log_density.isnan().sum())} log densities are NaN. Look for networks that diverged.")
    return -float(log_density.detach().cpu().double().mean())


def _check_finite(values: Tensor, name: str) -> Tensor:
    if not values.numel() or not values.is_floating_point():
        raise ValueError(
            f"Expected {name} as floating-point numbers, at least one, got {values.dtype} of shape "
            f"{tuple(values.shape)}."
        )
    if not values.isfinite().all():
        raise ValueError(
            f"{int((~values.isfinite()).sum())} {name} are missing or not finite. Leave such examples out; if they "
            "are predictions, look for networks that diverged."
        )
    return values.detach().cpu().double()


def _check_same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"Predictions and targets must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}: "
            "anything else would compare each with all. Reshape the targets."
        )
