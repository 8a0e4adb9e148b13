"""Regression metrics: RMSE, CRPS, NLL and interval coverage of mixtures of normal distributions.

A prediction is an equal mixture of normal distributions, one for each network, and is evaluated as that mixture,
without moment matching. With several targets, all metrics but the NLL, which is that of all targets together, are
averages of the metric of each target, each in its own unit; `metrics_per_target` gives the values of each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.devices import iter_row_blocks
from flatbayes.core.display import format_fields
from flatbayes.core.names import format_count
from flatbayes.metrics.checks import require_tensors

INTERVAL_LEVEL = 0.95
"""Probability of the interval of `coverage_95` and `width_95`."""
COVERAGE_LEVELS = tuple(k / 20 for k in range(1, 20))
"""Probabilities of the intervals of a coverage curve: .05, .10, ..., .95."""


@dataclass(frozen=True)
class CoverageCurve:
    """Fraction of targets inside the central interval of each level.

    Attributes:
        levels: Predicted probability of each interval.
        coverage: Fraction of the targets inside each interval, the mean over several targets.
        count: Number of targets.
        target_coverage: For several targets of an example, the coverage of each; empty for one.

    Examples:
        >>> curve = coverage_curve(torch.tensor([0.1, 0.4, 0.55, 0.98]), levels=(0.5, 0.9))
        >>> curve.coverage
        (0.5, 0.75)
    """

    levels: tuple[float, ...]
    coverage: tuple[float, ...]
    count: int
    target_coverage: tuple[tuple[float, ...], ...] = ()

    __repr__ = format_fields

    def to_dict(self) -> dict[str, Any]:
        """Lists by field name, ready for JSON."""
        lists: dict[str, Any] = {"levels": list(self.levels), "coverage": list(self.coverage), "count": self.count}
        if self.target_coverage:
            lists["target_coverage"] = [list(coverage) for coverage in self.target_coverage]
        return lists


def regression_metrics(
    targets: Float[Tensor, "examples ..."],
    *,
    means: Float[Tensor, "draws examples ..."],
    stds: Float[Tensor, "draws examples ..."],
    log_density: Float[Tensor, " examples"],
    pit: Float[Tensor, "examples ..."],
    interval: tuple[Float[Tensor, "examples ..."], Float[Tensor, "examples ..."]],
    mean: Float[Tensor, "examples ..."] | None = None,
    crps_values: Float[Tensor, "examples ..."] | None = None,
) -> dict[str, float]:
    """Compute all metrics of `REGRESSION_METRICS`.

    Args:
        targets: Observed targets.
        means: Predicted mean of each network.
        stds: Predicted standard deviation of each network.
        log_density: Log density of the mixture at the targets.
        pit: Probability integral transform: distribution function of the mixture at the targets.
        interval: Lower and upper ends of the central 95 % interval of the mixture.
        mean: Expected targets; None for those of the mixture.
        crps_values: CRPS of each target; None computes that of the mixture.

    Returns:
        Values by name.

    Raises:
        ValueError: Predictions or targets are not finite, or their shapes do not match.

    Examples:
        >>> predictive = Gaussian().predictive([torch.zeros(5, 2), torch.ones(5, 2)])
        >>> targets = torch.zeros(5)
        >>> metrics = regression_metrics(
        ...     targets,
        ...     means=predictive.member_means,
        ...     stds=predictive.member_stds,
        ...     log_density=predictive.log_prob(targets),
        ...     pit=predictive.cdf(targets),
        ...     interval=predictive.interval(0.95),
        ... )
        >>> metrics["rmse"]
        0.5
    """
    # The error comes first, because its messages are about the targets.
    error = rmse(means.mean(0) if mean is None else mean, targets)
    return {
        "nll": _mean_nll(log_density),
        "rmse": error,
        "crps": crps(means, stds, targets) if crps_values is None else float(crps_values.double().mean()),
        "miscalibration": miscalibration(pit),
        "coverage_95": coverage_curve(pit, (INTERVAL_LEVEL,)).coverage[0],
        "width_95": interval_width(*interval),
    }


def metrics_per_target(
    targets: Float[Tensor, "examples targets"],
    *,
    means: Float[Tensor, "draws examples targets"],
    stds: Float[Tensor, "draws examples targets"],
    pit: Float[Tensor, "examples targets"],
    interval: tuple[Float[Tensor, "examples targets"], Float[Tensor, "examples targets"]],
    mean: Float[Tensor, "examples targets"] | None = None,
    crps_values: Float[Tensor, "examples targets"] | None = None,
) -> dict[str, tuple[float, ...]]:
    """The metrics of each of several targets, in the target's unit; their means are those of `regression_metrics`.

    The arguments are those of `regression_metrics`. The NLL is left out, since it is that of all targets together.

    Examples:
        >>> predictive = Gaussian(num_targets=2).predictive([torch.zeros(5, 4), torch.ones(5, 4)])
        >>> targets = torch.zeros(5, 2)
        >>> metrics = metrics_per_target(
        ...     targets,
        ...     means=predictive.member_means,
        ...     stds=predictive.member_stds,
        ...     pit=predictive.cdf(targets),
        ...     interval=predictive.interval(0.95),
        ... )
        >>> metrics["rmse"]
        (0.5, 0.5)
    """
    columns = [
        regression_metrics(
            targets[:, k],
            means=means[..., k],
            stds=stds[..., k],
            log_density=targets.new_zeros(len(targets)),
            pit=pit[:, k],
            interval=(interval[0][:, k], interval[1][:, k]),
            mean=None if mean is None else mean[:, k],
            crps_values=None if crps_values is None else crps_values[:, k],
        )
        for k in range(targets.shape[1])
    ]
    return {name: tuple(column[name] for column in columns) for name in columns[0] if name != "nll"}


def rmse(mean: Float[Tensor, "examples ..."], targets: Float[Tensor, "examples ..."]) -> float:
    """Root mean squared error sqrt(mean_i (y_i - m_i)^2), computed without overflow.

    Args:
        mean: Predicted means.
        targets: Observed targets. With several targets of an example, the result is the mean of the root mean squared
            errors of the targets, each in its own unit.

    Raises:
        ValueError: Predictions or targets are not finite, or their shapes do not match.

    Examples:
        >>> round(rmse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])), 3)
        1.414
    """
    mean, targets = _check_finite(mean, "predicted means"), _check_finite(targets, "targets")
    _check_same_shape(mean, targets)
    errors = (mean - targets).abs().reshape(len(targets), -1)
    largest = errors.max(0).values
    relative = errors / torch.where(largest > 0, largest, 1.0)
    return float((largest * relative.square().mean(0).sqrt()).mean())


def crps(
    means: Float[Tensor, "draws examples ..."],
    stds: Float[Tensor, "draws examples ..."],
    targets: Float[Tensor, "examples ..."],
) -> float:
    """Continuous ranked probability score of equal mixtures of T normal distributions: E|X - y| - E|X - X'| / 2.

    With A(m, s) = E|N(m, s^2)| = m (2 Phi(m/s) - 1) + 2 s phi(m/s) it is, for each target,
    mean_t A(y - mean_t, std_t) - mean_tu A(mean_t - mean_u, sqrt(std_t^2 + std_u^2)) / 2
    (Grimit et al., Q. J. R. Meteorol. Soc. 2006). It has the target's unit, and equals the absolute error if all
    standard deviations are 0 and the means agree.

    Args:
        means: Predicted mean of each network.
        stds: Predicted standard deviation of each network.
        targets: Observed targets.

    Raises:
        ValueError: Predictions or targets are not finite, or their shapes do not match.

    Examples:
        >>> means, stds, targets = (
        ...     torch.tensor([[0.0], [2.0]]),
        ...     torch.ones(2, 1),
        ...     torch.tensor([1.0]),
        ... )
        >>> round(crps(means, stds, targets), 3)  # of a mixture of N(0, 1) and N(2, 1)
        0.359
    """
    means, stds = _check_finite(means, "predicted means"), _check_finite(stds, "predicted standard deviations")
    targets = _check_finite(targets, "targets")
    _check_same_shape(means[0], targets)
    _check_same_shape(means, stds)
    if (stds < 0).any():
        raise ValueError(f"Standard deviations must not be negative, got {float(stds.min()):g}.")
    scores, num_networks = torch.empty_like(targets), len(means)
    for rows in iter_row_blocks(means.transpose(0, 1)):
        mean, std = means[:, rows], stds[:, rows]
        spread = folded_normal_mean(torch.zeros_like(std), math.sqrt(2) * std).sum(0)
        for t in range(num_networks - 1):  # every pair once
            spread += 2 * folded_normal_mean(mean[t] - mean[t + 1 :], torch.hypot(std[t], std[t + 1 :])).sum(0)
        scores[rows] = folded_normal_mean(targets[rows] - mean, std).mean(0) - spread / (2 * num_networks**2)
    return float(scores.mean())


def folded_normal_mean(mean: Tensor, std: Tensor) -> Tensor:
    """E|X| of X ~ N(mean, std^2); |mean| where the standard deviation is 0."""
    z = mean / torch.where(std > 0, std, 1.0)
    folded = mean * torch.erf(z / math.sqrt(2)) + std * math.sqrt(2 / math.pi) * (-0.5 * z.square()).exp()
    return torch.where(std > 0, folded, mean.abs())


def coverage_curve(pit: Float[Tensor, "examples ..."], levels: Sequence[float] = COVERAGE_LEVELS) -> CoverageCurve:
    """Fraction of targets inside central intervals, |2 F_i(y_i) - 1| <= level, for each level.

    Args:
        pit: Probability integral transform F_i(y_i): distribution function of each prediction at its target; uniform
            if the predictions are calibrated.
        levels: Predicted probability of each interval.

    Raises:
        ValueError: A value or a level is not a probability.

    Examples:
        >>> pit = torch.tensor([0.1, 0.4, 0.55, 0.98])  # of four predictions
        >>> coverage_curve(pit, levels=(0.5, 0.9)).coverage  # of the 50 % and the 90 % intervals
        (0.5, 0.75)
    """
    pit = _check_finite(pit, "values of the distribution function")
    if pit.min() < 0 or pit.max() > 1:
        raise ValueError(
            f"Values of a distribution function lie between 0 and 1, got {float(pit.min()):g} to "
            f"{float(pit.max()):g}. Pass predictive.cdf(targets)."
        )
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"Levels lie strictly between 0 and 1, got {list(levels)}.")
    distances = (2 * pit - 1).abs().reshape(len(pit), -1)
    by_target = torch.stack([(distances <= level).double().mean(0) for level in levels], 1)
    several = tuple(tuple(row) for row in by_target.tolist()) if len(by_target) > 1 else ()
    return CoverageCurve(tuple(levels), tuple(by_target.mean(0).tolist()), pit.numel(), several)


def miscalibration(pit: Float[Tensor, "examples ..."]) -> float:
    """Mean of |coverage - level| over the levels .05, .10, ..., .95, for several targets the mean of that of each.

    For perfectly calibrated predictions its expectation is about a third of 1 / sqrt(examples), so compare only
    values for equal sample sizes.

    Args:
        pit: Probability integral transform, as in `coverage_curve`.

    Raises:
        ValueError: A value is not a probability.

    Examples:
        >>> (
        ...     round(miscalibration(torch.linspace(0, 1, 1001)), 3),
        ...     miscalibration(torch.full((10,), 0.5)),
        ... )
        (0.001, 0.5)
    """
    curve = coverage_curve(pit)
    rows = curve.target_coverage or (curve.coverage,)
    gaps = [abs(value - level) for row in rows for value, level in zip(row, curve.levels, strict=True)]
    return math.fsum(gaps) / len(gaps)


def interval_width(lower: Float[Tensor, "examples ..."], upper: Float[Tensor, "examples ..."]) -> float:
    """Mean width of intervals, to be read together with their coverage.

    Args:
        lower: Lower ends.
        upper: Upper ends.

    Raises:
        ValueError: The ends are not finite, or their shapes do not match.

    Examples:
        >>> interval_width(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0]))
        2.0
    """
    lower, upper = _check_finite(lower, "lower ends"), _check_finite(upper, "upper ends")
    _check_same_shape(lower, upper)
    return float((upper - lower).mean())


def _mean_nll(log_density: Tensor) -> float:
    if log_density.isnan().any():
        raise ValueError(
            f"{format_count(int(log_density.isnan().sum()), 'log density is', 'log densities are')} NaN. Check "
            "whether the training diverged."
        )
    return -float(log_density.detach().cpu().double().mean())


def _check_finite(values: Tensor, name: str) -> Tensor:
    require_tensors(values)
    if not values.numel() or not values.is_floating_point():
        raise ValueError(
            f"Expected {name} as floating-point numbers, at least one, got {values.dtype} of shape "
            f"{tuple(values.shape)}."
        )
    if not values.isfinite().all():
        num_invalid = int((~values.isfinite()).sum())
        raise ValueError(
            f"{num_invalid} of the {name} {'is' if num_invalid == 1 else 'are'} missing or not finite. Leave such "
            "examples out; if they are predictions, check whether the training diverged."
        )
    return values.detach().cpu().double()


def _check_same_shape(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise ValueError(
            f"Predictions and targets must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}: "
            "other shapes would be broadcast against each other. Reshape the targets."
        )
