"""What can be concluded from twins over seeds: paired differences with an interval."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, Literal

Verdict = Literal["flat", "plain", "tie"]


@dataclass(frozen=True)
class Paired:
    """Flat minus plain, over the seeds that both twins have.

    Attributes:
        plain: Mean of the plain twin's metric.
        plain_sd: Its standard deviation over seeds (divisor n - 1); NaN for one seed.
        flat: Mean of the flat twin's metric.
        flat_sd: Its standard deviation over seeds.
        n: Number of seeds.
        difference: Mean of flat - plain.
        interval: Its confidence interval; None for fewer than two seeds.
        wins: Which twin is better, if the interval excludes zero.
    """

    plain: float
    plain_sd: float
    flat: float
    flat_sd: float
    n: int
    difference: float
    interval: tuple[float, float] | None
    wins: Verdict


def paired(plain: Sequence[float], flat: Sequence[float], *, higher_is_better: bool, level: float = 0.95) -> Paired:
    """Compare twins by their differences; Student's t gives the interval.

    It speaks of the mean over further seeds, and supposes that differences are about normal.

    Args:
        plain: The plain twin's metric, one value a seed.
        flat: The flat twin's, for the same seeds in the same order.
        higher_is_better: Direction of the metric.
        level: Confidence of the interval.
    """
    differences = [b - a for a, b in zip(plain, flat, strict=True)]
    n, mean = len(differences), fmean(differences)
    interval: tuple[float, float] | None = None
    wins: Verdict = "tie"
    if n > 1:
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, n - 1)) * stdev(differences) / math.sqrt(n)
        interval = (mean - half, mean + half)
        if interval[0] > 0 or interval[1] < 0:
            wins = "flat" if (mean > 0) == higher_is_better else "plain"
    return Paired(fmean(plain), _sd(plain), fmean(flat), _sd(flat), n, mean, interval, wins)


def summarise(
    runs: Sequence[Mapping[str, Any]], baseline: str, directions: Mapping[str, bool]
) -> list[dict[str, Any]]:
    """One row for every posterior, flatness and metric.

    Args:
        runs: Results of single runs; `posterior`, `flatness`, `seed` and `metrics` are read.
        baseline: Label of the plain flatness.
        directions: Metric name to whether higher is better; decides order and choice of metrics.
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
                    (values[posterior, baseline, s][metric], values[posterior, flatness, s][metric]) for s in seeds
                ]
                twins = [(a, b) for a, b in twins if _known(a) and _known(b)]
                if twins:
                    plain, flat = zip(*twins, strict=True)
                    row = asdict(paired(plain, flat, higher_is_better=higher))
                    rows.append({"posterior": posterior, "flatness": flatness, "metric": metric, **row})
    return rows


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _sd(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else math.nan
