"""Lines below the table of a comparison: miscalibration, failed self-checks, chosen radii, and a forecast."""

from dataclasses import dataclass
from math import sqrt
from statistics import fmean
from typing import Literal

from flatbayes.core.names import format_count
from flatbayes.diagnostics.flatness_forecast import forecast_from_history
from flatbayes.experiments.results import ComparisonResult
from flatbayes.experiments.run_result import RunResult
from flatbayes.metrics import CoverageCurve, ReliabilityBins
from flatbayes.reporting import queries

MIN_CONFIDENCE_GAP = 0.02
"""Smaller differences of mean confidence and accuracy are not mentioned."""
COVERAGE_RANGE = (0.90, 0.98)
"""Range of the coverage of 95 % intervals that is not mentioned."""
NUM_STANDARD_ERRORS = 2.0
"""A deviation within this many standard errors of one run may be chance: binomial ones at the predicted rate."""

Direction = Literal["overconfident", "underconfident"]


@dataclass(frozen=True)
class Calibration:
    """Calibration of the runs of one variant, in one number each.

    Attributes:
        predicted: Mean confidence of a classification; 0.95, the level of the intervals, of a regression.
        observed: Accuracy; or the fraction of targets inside the intervals. Means over the runs.
        num_examples: Number of test examples of a run; of several labels or positions of an example the number of
            independent predictions with the same standard error.
        is_coverage: Whether the numbers are those of intervals.
    """

    predicted: float
    observed: float
    num_examples: float
    is_coverage: bool

    @property
    def direction(self) -> Direction | None:
        """Whether predictions are over- or underconfident; None if the deviation is small, or may be chance."""
        gap = self.predicted - self.observed
        error = sqrt(self.predicted * (1 - self.predicted) / self.num_examples)
        low, high = COVERAGE_RANGE
        is_small = low <= self.observed <= high if self.is_coverage else abs(gap) < MIN_CONFIDENCE_GAP
        if is_small or abs(gap) <= NUM_STANDARD_ERRORS * error:
            return None
        return "overconfident" if gap > 0 else "underconfident"

    @property
    def text(self) -> str:
        """The two numbers in words."""
        if self.is_coverage:
            return f"95 % intervals hold {100 * self.observed:.0f} % of the targets"
        return f"mean confidence {100 * self.predicted:.0f} %, accuracy {100 * self.observed:.0f} %"


def measure_calibration(runs: list[RunResult]) -> Calibration | None:
    """Mean calibration of runs; None if they have neither a reliability diagram nor coverage."""
    values = [pair for run in runs if (pair := _measure_run(run)) is not None]
    if not values:
        return None
    predicted, observed, counts = zip(*values, strict=True)
    is_coverage = any(isinstance(run.reliability, CoverageCurve) for run in runs)
    return Calibration(fmean(predicted), fmean(observed), fmean(counts), is_coverage)


def describe_miscalibration(results: ComparisonResult) -> str:
    """One line that names the posteriors whose predictions are badly calibrated; empty if there are none."""
    entries = []
    for posterior in queries.list_posteriors(results):
        by_variant = {
            name: measure_calibration(queries.select_runs(results, posterior, flat))
            for name, flat in (("plain", False), ("flat", True))
        }
        bad = {name: value for name, value in by_variant.items() if value is not None and value.direction}
        directions = {value.direction for value in bad.values()}
        if len(bad) == 2 and len(directions) == 1:
            text = f"plain {bad['plain'].text}, flat {bad['flat'].text}"
            entries.append(f"{posterior}, plain and flat, {directions.pop()} ({text})")
        else:
            entries += [f"{posterior}, {name}, {value.direction} ({value.text})" for name, value in bad.items()]
    return f"Badly calibrated: {'; '.join(entries)}." if entries else ""


def describe_failed_checks(results: ComparisonResult) -> str:
    """A line for every check that failed in half of the runs of a posterior, with one of its messages; else empty."""
    posteriors_by_check: dict[str, list[str]] = {}
    messages: dict[str, str] = {}
    for posterior in dict.fromkeys(run.posterior for run in results.runs):
        runs = [run for flat in (False, True) for run in queries.select_runs(results, posterior, flat)]
        for name in dict.fromkeys(name for run in runs for name in run.failed_checks):
            failed = [run for run in runs if name in run.failed_checks]
            if 2 * len(failed) >= len(runs):
                count = f"{len(failed)} of {format_count(len(runs), 'run')}"
                posteriors_by_check.setdefault(name, []).append(f"{posterior} ({count})")
                messages.setdefault(name, failed[0].failed_checks[name])
    return "\n".join(
        f"Check {name} failed: {', '.join(posteriors)}; such as: {messages[name]}."
        for name, posteriors in posteriors_by_check.items()
    )


def describe_radii(results: ComparisonResult) -> str:
    """A line with the radii of every posterior, by seed; empty if none was chosen on validation data."""
    texts, num_zero, num_runs = [], 0, 0
    name = ""
    for posterior in dict.fromkeys(run.posterior for run in results.runs):
        records = [run.radius for run in queries.select_runs(results, posterior, True) if run.radius]
        values = [value for record in records if isinstance(value := record.get("value"), int | float)]
        if values:
            name = str(records[0].get("name", "rho"))
            texts.append(f"{posterior} {', '.join(f'{value:g}' for value in values)}")
            num_zero, num_runs = num_zero + sum(value == 0 for value in values), num_runs + len(values)
    if not texts:
        return ""
    note = f" In {num_zero} of {format_count(num_runs, 'run')} flatness does not pay." if num_zero else ""
    return f"{name} chosen on validation data, by seed: {'; '.join(texts)}.{note}"


def describe_forecast(results: ComparisonResult) -> str:
    """The forecast from the plain run with the median rise of all plain runs; empty without a validation history."""
    forecasts = [
        forecast
        for posterior in dict.fromkeys(run.posterior for run in results.runs)
        for run in queries.select_runs(results, posterior, False)
        if run.history is not None and (forecast := forecast_from_history(run.history.val_nll)) is not None
    ]
    if not forecasts:
        return ""
    return f"Forecast: {sorted(forecasts, key=lambda forecast: forecast.rise)[len(forecasts) // 2].text}"


def _measure_run(run: RunResult) -> tuple[float, float, float] | None:
    match run.reliability:
        case ReliabilityBins() as bins if sum(bins.counts):
            total = sum(bins.counts)
            confidence = sum(c * n for c, n in zip(bins.confidence, bins.counts, strict=True)) / total
            accuracy = sum(a * n for a, n in zip(bins.accuracy, bins.counts, strict=True)) / total
            return confidence, accuracy, total / bins.design_effect
        case CoverageCurve() as curve if curve.count:
            coverage = run.metrics.get("coverage_95")
            num_examples = curve.count / max(1, len(curve.target_coverage))  # targets of one depend on each other
            return None if coverage is None else (0.95, coverage, num_examples)
        case _:
            return None
