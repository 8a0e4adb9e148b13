"""Paired statistics over seeds: t and bootstrap intervals of flat minus plain, Holm's correction of p-values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from flatbayes.core.display import format_fields
from flatbayes.core.randomness import Stream, spawn_seed

Winner = Literal["flat", "plain", "tie"]
MIN_BOOTSTRAP_SEEDS, NUM_BOOTSTRAP_RESAMPLES = 10, 9999
MIN_VERDICT_SEEDS = 3
"""With two seeds on 100 examples, equal differences are so frequent that 12 % of equal methods got a verdict."""
MIN_RELATIVE_SPREAD = 1e-6
"""Standard deviation of the differences, as a fraction of the largest value of the metric, below which it is one of
rounding: a few steps of float32, in which networks compute."""


@dataclass(frozen=True)
class PairedComparison:
    """Flat minus plain, over the seeds that both variants have.

    Attributes:
        plain: Mean of the metric of the plain runs.
        plain_sd: Standard deviation over seeds (divisor n - 1); None for one seed.
        flat: Mean of the metric of the flat runs.
        flat_sd: Standard deviation over seeds (divisor n - 1); None for one seed.
        num_seeds: Number of seeds.
        difference: Mean of flat - plain.
        interval: Confidence interval of the difference by Student's t; None for fewer than three seeds, and where all
            differences are equal, or up to rounding, but not 0: their spread says nothing about further seeds.
        bootstrap_interval: The same by bootstrap (BCa), which does not assume a normal distribution; None for fewer
            than ten seeds, with which it is too narrow.
        p_value: p-value of the two-sided paired t-test; None where there is no interval, 1 without any difference.
        effect_size: Cohen's d of the paired differences: their mean divided by their standard deviation, positive
            where flat is better; None where there is no interval or no difference.
        num_flat_better: Number of seeds with which flat is better.
        num_plain_better: Number of seeds with which plain is better.
        winner: The better variant if there is an interval and it excludes zero, else `tie`.

    Examples:
        >>> comparison = compare_pairs(
        ...     [0.31, 0.30, 0.33], [0.28, 0.28, 0.29], higher_is_better=False
        ... )
        >>> comparison.winner, comparison.num_flat_better, round(comparison.difference, 3)
        ('flat', 3, -0.03)
    """

    plain: float
    plain_sd: float | None
    flat: float
    flat_sd: float | None
    num_seeds: int
    difference: float
    interval: tuple[float, float] | None
    bootstrap_interval: tuple[float, float] | None
    p_value: float | None
    effect_size: float | None
    num_flat_better: int
    num_plain_better: int
    winner: Winner

    __repr__ = format_fields


def compare_pairs(
    plain: Sequence[float], flat: Sequence[float], *, higher_is_better: bool, confidence_level: float = 0.95
) -> PairedComparison:
    """Compare plain and flat runs by their paired differences.

    The interval is for the mean over further seeds and assumes that differences are about normal.

    Args:
        plain: Metric of the plain runs, one value per seed.
        flat: Metric of the flat runs, for the same seeds in the same order.
        higher_is_better: Direction of the metric.
        confidence_level: Confidence level of the intervals.

    Raises:
        ValueError: There are no values, not as many plain as flat ones, or one is not finite.

    Examples:
        >>> comparison = compare_pairs(
        ...     [0.31, 0.30, 0.33], [0.28, 0.28, 0.29], higher_is_better=False
        ... )
        >>> round(comparison.difference, 3), comparison.winner
        (-0.03, 'flat')
    """
    if not 0 < len(plain) == len(flat) or not all(map(math.isfinite, (*plain, *flat))):
        raise ValueError(
            f"A comparison needs a finite value of plain and of flat training for each seed, got {list(plain)} and "
            f"{list(flat)}. Leave out the seeds where one of them is missing."
        )
    differences = [b - a for a, b in zip(plain, flat, strict=True)]
    mean, sign = fmean(differences), 1 if higher_is_better else -1
    rounding = MIN_RELATIVE_SPREAD * max(map(abs, (*plain, *flat)))
    interval, p_value, effect_size = _run_paired_t_test(differences, confidence_level, rounding)
    winner: Winner = "tie"
    if interval is not None and (interval[0] > 0 or interval[1] < 0):
        winner = "flat" if sign * mean > 0 else "plain"
    return PairedComparison(
        plain=fmean(plain),
        plain_sd=sample_std(plain),
        flat=fmean(flat),
        flat_sd=sample_std(flat),
        num_seeds=len(differences),
        difference=mean,
        interval=interval,
        bootstrap_interval=None if effect_size is None else bootstrap_interval(differences, confidence_level),
        p_value=p_value,
        effect_size=None if effect_size is None else sign * effect_size,
        num_flat_better=sum(sign * difference > 0 for difference in differences),
        num_plain_better=sum(sign * difference < 0 for difference in differences),
        winner=winner,
    )


def _run_paired_t_test(
    differences: Sequence[float], confidence_level: float, rounding: float
) -> tuple[tuple[float, float] | None, float | None, float | None]:
    """Interval of the mean, p-value, and mean divided by standard deviation; None where they are not defined."""
    num_seeds, mean, sd = len(differences), fmean(differences), sample_std(differences)
    if sd is None or num_seeds < MIN_VERDICT_SEEDS:
        return None, None, None
    if not any(differences):
        return (0.0, 0.0), 1.0, None
    if sd <= rounding:
        return None, None, None
    from scipy.stats import t  # here, since it is slow to import

    error = sd / math.sqrt(num_seeds)
    half_width = float(t.ppf((1 + confidence_level) / 2, num_seeds - 1)) * error
    interval = (mean - half_width, mean + half_width)
    return interval, 2 * float(t.sf(abs(mean) / error, num_seeds - 1)), mean / sd


def bootstrap_interval(differences: Sequence[float], confidence_level: float = 0.95) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron, 1987), with a fixed random seed.

    Returns:
        Lower and upper end; None for fewer than ten values or where all are equal.
    """
    if len(differences) < MIN_BOOTSTRAP_SEEDS or len(set(differences)) == 1:
        return None
    import numpy as np
    from scipy.stats import bootstrap  # here, since it is slow to import

    interval = bootstrap(
        (differences,),
        np.mean,
        confidence_level=confidence_level,
        n_resamples=NUM_BOOTSTRAP_RESAMPLES,
        rng=spawn_seed(Stream.BOOTSTRAP),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def adjust_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that bound the probability of any false rejection in the family (Holm, 1979).

    With m p-values in ascending order, p'_k = max over j <= k of min(1, (m - j + 1) p_j).

    >>> adjust_p_values([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]

    A p-value is None where there is none.
    """
    ranked = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        adjusted[index] = largest
    return adjusted


def sample_std(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divisor n - 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None
