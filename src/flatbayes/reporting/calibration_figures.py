"""Reliability diagrams of classifications and coverage diagrams of regressions, pooled over seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flatbayes.experiments.results import ComparisonResult
from flatbayes.experiments.run_result import RunResult
from flatbayes.metrics import CoverageCurve, ReliabilityBins, wilson_interval
from flatbayes.metrics.calibration import MIN_BIN_COUNT
from flatbayes.plotting import theme
from flatbayes.plotting.calibration import draw_coverage_curve, draw_diagonal, draw_reliability_curve, set_unit_ticks
from flatbayes.plotting.theme import LINE_STYLES
from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import format_number
from flatbayes.reporting.svg import PANEL_WIDTH_PX, Panel

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

LABEL_X = -0.105
INTERVAL_OFFSET_PX = 1.6
"""Distance of the bar of an interval from the middle of its mark, so that plain and flat do not hide each other."""


@dataclass(frozen=True)
class PooledBins:
    """Bins of a reliability diagram, pooled over runs."""

    bins: ReliabilityBins
    num_runs: int = 1

    def points(self) -> tuple[list[float], list[float], list[int]]:
        """Confidence, accuracy and count of the bins that are not empty."""
        columns = zip(self.bins.confidence, self.bins.accuracy, self.bins.counts, strict=True)
        points = [point for point in columns if point[2]]
        return [p[0] for p in points], [p[1] for p in points], [p[2] for p in points]

    def merge(self) -> "PooledBins":
        """Neighbouring bins joined until each has `MIN_BIN_COUNT` predictions of every run."""
        return PooledBins(self.bins.merge(MIN_BIN_COUNT * self.num_runs), self.num_runs)

    def intervals(self) -> list[tuple[float, float]]:
        """Wilson's 95 % interval of the accuracy of each point, for as many independent predictions as one run has.

        Runs predict the same test examples, so pooling them smooths the accuracy but adds no examples.
        """
        _, accuracies, counts = self.points()
        sizes = [max(1, round(count / (self.num_runs * self.bins.design_effect))) for count in counts]
        return [wilson_interval(round(accuracy * n), n) for accuracy, n in zip(accuracies, sizes, strict=True)]


def pool_reliability(runs: Sequence[RunResult]) -> PooledBins | None:
    """Pool the bins of runs: counts add, confidence and accuracy are averaged by count; None without bins."""
    all_bins = [run.reliability for run in runs if isinstance(run.reliability, ReliabilityBins)]
    all_bins = [bins for bins in all_bins if bins.edges == all_bins[0].edges]
    if not all_bins:
        return None
    counts = tuple(sum(column) for column in zip(*(bins.counts for bins in all_bins), strict=True))

    def average(columns: list[tuple[float, ...]]) -> tuple[float, ...]:
        totals = [
            sum(column[k] * bins.counts[k] for column, bins in zip(columns, all_bins, strict=True))
            for k in range(len(counts))
        ]
        return tuple(total / count if count else 0.0 for total, count in zip(totals, counts, strict=True))

    confidence, accuracy = average([bins.confidence for bins in all_bins]), average([b.accuracy for b in all_bins])
    effect = fmean(bins.design_effect for bins in all_bins)
    return PooledBins(ReliabilityBins(all_bins[0].edges, counts, confidence, accuracy, effect), len(all_bins))


def pool_coverage(runs: Sequence[RunResult]) -> CoverageCurve | None:
    """Pool the coverage curves of runs: coverage is averaged by the number of targets; None without curves."""
    curves = [run.reliability for run in runs if isinstance(run.reliability, CoverageCurve)]
    curves = [curve for curve in curves if curve.levels == curves[0].levels and curve.count]
    if not curves:
        return None
    total = sum(curve.count for curve in curves)
    inside = zip(*([share * curve.count for share in curve.coverage] for curve in curves), strict=True)
    return CoverageCurve(curves[0].levels, tuple(sum(column) / total for column in inside), total)


def reliability_panels(results: ComparisonResult) -> list[Panel]:
    """One reliability diagram for each posterior."""
    panels = []
    for index, posterior in enumerate(queries.list_posteriors(results)):
        pooled = {flat: pool_reliability(queries.select_runs(results, posterior, flat)) for flat in (False, True)}
        if any(pooled.values()):
            panels.append(
                Panel(posterior, "", _reliability_figure(results, f"reliability-{index}", posterior, pooled))
            )
    return panels


def coverage_panels(results: ComparisonResult) -> list[Panel]:
    """One coverage diagram for each posterior."""
    panels = []
    for index, posterior in enumerate(queries.list_posteriors(results)):
        pooled = {flat: pool_coverage(queries.select_runs(results, posterior, flat)) for flat in (False, True)}
        if any(pooled.values()):
            panels.append(Panel(posterior, "", _coverage_figure(results, f"coverage-{index}", posterior, pooled)))
    return panels


def _reliability_figure(
    results: ComparisonResult, name: str, posterior: str, pooled: Mapping[bool, PooledBins | None]
) -> str:
    """Accuracy against confidence with the diagonal, and below it the number of predictions in each bin."""
    with svg.new_figure(PANEL_WIDTH_PX, 350) as figure:
        axes = figure.add_axes((0.135, 0.285, 0.845, 0.695))
        count_axes = figure.add_axes((0.135, 0.115, 0.845, 0.145))
        draw_reliability(axes, pooled)
        draw_counts(count_axes, pooled)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_label_coords(LABEL_X, 0.5)
        axes.tick_params(labelbottom=False)
        count_axes.set_xlabel("confidence (top probability)")
        _write_metric(axes, results, posterior, "ece", "ECE")
        label = f"Reliability diagram of {posterior}: accuracy by confidence, plain and flat"
        return svg.to_inline_svg(figure, name, label)


def _coverage_figure(
    results: ComparisonResult, name: str, posterior: str, pooled: Mapping[bool, CoverageCurve | None]
) -> str:
    """Fraction of targets inside the central interval against its level, with the diagonal."""
    with svg.new_figure(PANEL_WIDTH_PX, 300) as figure:
        axes = figure.add_axes((0.135, 0.145, 0.845, 0.835))
        with draw_diagonal(axes):
            for flat, curve in pooled.items():
                if curve is not None:
                    draw_coverage_curve(axes, curve.levels, curve.coverage, flat=flat)
        axes.set_xlabel("level of the central interval")
        axes.set_ylabel("targets inside")
        _write_metric(axes, results, posterior, "miscalibration", "miscalibration")
        label = f"Coverage diagram of {posterior}: targets inside by level, plain and flat"
        return svg.to_inline_svg(figure, name, label)


def draw_reliability(axes: "Axes", pooled: Mapping[bool, PooledBins | None]) -> None:
    """Draw the diagonal, both curves and the intervals; bins with few predictions are joined."""
    with draw_diagonal(axes):
        for flat, bins in pooled.items():
            if bins is not None:
                offset = INTERVAL_OFFSET_PX if flat else -INTERVAL_OFFSET_PX
                merged = bins.merge()
                draw_reliability_curve(axes, *merged.points(), merged.intervals(), flat=flat, interval_offset=offset)


def draw_counts(axes: "Axes", pooled: Mapping[bool, PooledBins | None]) -> None:
    """Draw the number of predictions in each bin, on a logarithmic scale."""
    for flat, bins in pooled.items():
        if bins is not None:
            style: dict[str, Any] = {"fill": True, "alpha": 0.25} if flat else {"linewidth": 1.0, "alpha": 0.9}
            axes.stairs(bins.bins.counts, bins.bins.edges, baseline=0.7, color=LINE_STYLES[flat]["color"], **style)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlim(0, 1.02)
    set_unit_ticks(axes.set_xticks)
    axes.set_ylabel("count")
    axes.yaxis.set_label_coords(LABEL_X, 0.5)
    axes.minorticks_off()
    largest = max((1, *(count for bins in pooled.values() if bins is not None for count in bins.bins.counts)))
    axes.set_yticks(sorted({1, largest if largest < 10 else 10 ** math.floor(math.log10(largest))}))
    axes.yaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.tick_params(labelsize=8)
    theme.style_axes(axes, grid="x")


def _write_metric(axes: "Axes", results: ComparisonResult, posterior: str, metric: str, label: str) -> None:
    """Write the means of a metric into the lower right corner."""
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    for side, value, colour, height in (
        ("plain", row.comparison.plain, theme.PLAIN, 0.09),
        ("flat", row.comparison.flat, theme.FLAT, 0.02),
    ):
        text = f"{label} {side} {format_number(value)}"
        axes.text(0.99, height, text, color=colour, ha="right", transform=axes.transAxes)
