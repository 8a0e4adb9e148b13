"""What can be concluded from twins over seeds: paired differences with an interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any, Literal

Verdict = Literal["flat", "plain", "tie"]
MIN_BOOTSTRAP_SEEDS, NUM_BOOTSTRAP_RESAMPLES = 10, 9999


@dataclass(frozen=True)
class PairedComparison:
    """Flat minus plain, over the seeds that both twins have.

    Attributes:
        plain: Mean of the plain twin's metric.
        plain_sd: Its standard deviation over seeds (divisor n - 1); NaN for one seed.
        flat: Mean of the flat twin's metric.
        flat_sd: Its standard deviation over seeds.
        num_seeds: Number of seeds.
        difference: Mean of flat - plain.
        interval: Its confidence interval by Student's t; None for fewer than two seeds.
        bootstrap_interval: The same by bootstrap (BCa), which does not suppose a normal distribution; None for
            fewer than
            ten seeds, with which it is too narrow.
        p_value: Of the two-sided paired t-test; None for fewer than two seeds.
        effect_size: Cohen's d of the paired differences, their mean in units of their standard deviation, positive
            where
            flat is better; None where that is zero or there are fewer than two seeds.
        num_flat_better: Seeds with which flat is better.
        num_plain_better: Seeds with which plain is.
        winner: Which twin is better, if the interval excludes zero.
    """

    plain: float
    plain_sd: float
    flat: float
    flat_sd: float
    num_seeds: int
    difference: float
    interval: tuple[float, float] | None
    bootstrap_interval: tuple[float, float] | None
    p_value: float | None
    effect_size: float | None
    num_flat_better: int
    num_plain_better: int
    winner: Verdict


def compare_pairs(
    plain: Sequence[float], flat: Sequence[float], *, higher_is_better: bool, confidence_level: float = 0.95
) -> PairedComparison:
    """Compare twins by their differences; Student's t gives the interval.

    It speaks of the mean over further seeds, and supposes that differences are about normal.

    Args:
        plain: The plain twin's metric, one value a seed.
        flat: The flat twin's, for the same seeds in the same order.
        higher_is_better: Direction of the metric.
        confidence_level: Confidence of the interval.
    """
    differences = [b - a for a, b in zip(plain, flat, strict=True)]
    n, mean = len(differences), fmean(differences)
    sign = 1 if higher_is_better else -1
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    effect: float | None = None
    wins: Verdict = "tie"
    if n > 1:
        from scipy.stats import t

        sd = stdev(differences)
        error = sd / math.sqrt(n)
        half = float(t.ppf((1 + confidence_level) / 2, n - 1)) * error
        interval = (mean - half, mean + half)
        if sd > 0:
            p_value, effect = 2 * float(t.sf(abs(mean) / error, n - 1)), sign * mean / sd
        else:
            p_value = 1.0 if mean == 0 else 0.0
        if interval[0] > 0 or interval[1] < 0:
            wins = "flat" if sign * mean > 0 else "plain"
    return PairedComparison(
        plain=fmean(plain),
        plain_sd=_sample_std(plain),
        flat=fmean(flat),
        flat_sd=_sample_std(flat),
        num_seeds=n,
        difference=mean,
        interval=interval,
        bootstrap_interval=bootstrap_interval(differences, confidence_level),
        p_value=p_value,
        effect_size=effect,
        num_flat_better=sum(sign * d > 0 for d in differences),
        num_plain_better=sum(sign * d < 0 for d in differences),
        winner=wins,
    )


def bootstrap_interval(differences: Sequence[float], confidence_level: float = 0.95) -> tuple[float, float] | None:
    """Bias-corrected and accelerated bootstrap interval of the mean (Efron, 1987), the same at every call.

    Args:
        differences: One value a seed.
        confidence_level: Confidence of the interval.

    Returns:
        Its ends; None for fewer than ten values or where all are the same.
    """
    if len(differences) < MIN_BOOTSTRAP_SEEDS or len(set(differences)) == 1:
        return None
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (differences,), np.mean, confidence_level=confidence_level, n_resamples=NUM_BOOTSTRAP_RESAMPLES, rng=0
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def adjust_p_values(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values that bound the chance of any false verdict in the family (Holm, 1979).

    With the m known values in ascending order, p'_k = max over j <= k of min(1, (m - j + 1) p_j).

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]

    Args:
        p_values: One for each comparison; None where there is none.
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, k) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[k] = largest
    return adjusted


def summarize_runs(
    runs: Sequence[Mapping[str, Any]],
    baseline: str,
    directions: Mapping[str, bool],
    families: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """One row for every posterior, flatness and metric.

    `family` is the table that a row belongs to (empty for the usual metrics), and `p_holm` its p-value corrected for
    all comparisons in that table.

    Args:
        runs: Results of single runs; `posterior`, `flatness`, `seed` and `metrics` are read.
        baseline: Label of the plain flatness.
        directions: Metric name to whether higher is better; decides order and choice of metrics. Those that the
            runs do not have are left out.
        families: Metric name to the table it belongs to.
    """
    values = {(r["posterior"], r["flatness"], r["seed"]): r["metrics"] for r in runs}
    posteriors = list(dict.fromkeys(r["posterior"] for r in runs))
    flat_ones = list(dict.fromkeys(r["flatness"] for r in runs if r["flatness"] != baseline))
    rows = []
    for posterior in posteriors:
        for flatness in flat_ones:
            seeds = [s for (p, f, s) in values if (p, f) == (posterior, flatness) and (p, baseline, s) in values]
            for metric, higher in directions.items():
                twins = [
                    (values[posterior, baseline, s].get(metric), values[posterior, flatness, s].get(metric))
                    for s in seeds
                ]
                twins = [(a, b) for a, b in twins if _is_finite(a) and _is_finite(b)]
                if twins:
                    plain, flat = zip(*twins, strict=True)
                    row = asdict(compare_pairs(plain, flat, higher_is_better=higher))
                    names = {"posterior": posterior, "flatness": flatness, "metric": metric}
                    rows.append({**names, "family": families.get(metric, ""), **row})
    for family in {row["family"] for row in rows}:
        table = [row for row in rows if row["family"] == family]
        for row, adjusted in zip(table, adjust_p_values([row["p_value"] for row in table]), strict=True):
            row["p_holm"] = adjusted
    return rows


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _sample_std(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan
