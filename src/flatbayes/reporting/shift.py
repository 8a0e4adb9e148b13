"""Distribution shift of one posterior: tables for the terminal, and a figure of metrics against severity."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatbayes.core.files import write_text
from flatbayes.plotting import theme
from flatbayes.prediction import CorruptionMetrics, OODEvaluation, RecalibrationResult
from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import format_number

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from rich.table import Table

PANEL_TITLES = {"accuracy": "accuracy", "nll": "NLL in nats", "ece": "ECE"}
SHIFT_PANEL_WIDTH_PX, PANEL_GAP_PX, MARGIN_LEFT_PX, HEADING_HEIGHT_PX, HEIGHT_PX = 236.0, 52.0, 52.0, 72.0, 300.0
WIDTH_PX = MARGIN_LEFT_PX + 3 * SHIFT_PANEL_WIDTH_PX + 2 * PANEL_GAP_PX + 20
SCORE_NAMES = {
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "one_minus_confidence": "1 − confidence",
}
TABLE_METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}
RECALIBRATION_METRICS = ("nll", "ece", "adaptive_ece", "classwise_ece", "brier", "accuracy")


def write_shift_figure(rows: Sequence[CorruptionMetrics], title: str, path: Path | str) -> Path:
    """Draw accuracy, NLL and ECE against severity, as an SVG on a white card, and return its path.

    A thin line for each corruption, a bold one for their mean; severity 0 is the clean data.

    Args:
        rows: Metrics by corruption and severity.
        title: Title of the figure.
        path: The file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = group_by_corruption(rows)
    with svg.new_figure(WIDTH_PX, HEIGHT_PX) as figure:
        figure.text(MARGIN_LEFT_PX / WIDTH_PX, 1 - 26 / HEIGHT_PX, title, fontsize=14, fontweight="bold")
        legend = f"{queries.format_count(len(curves), 'corruption')}: thin lines; their mean: bold"
        figure.text(MARGIN_LEFT_PX / WIDTH_PX, 1 - 46 / HEIGHT_PX, legend, alpha=0.75)
        for column, (metric, label) in enumerate(PANEL_TITLES.items()):
            left = MARGIN_LEFT_PX + column * (SHIFT_PANEL_WIDTH_PX + PANEL_GAP_PX)
            height = (HEIGHT_PX - HEADING_HEIGHT_PX - 44) / HEIGHT_PX
            axes = figure.add_axes((left / WIDTH_PX, 44 / HEIGHT_PX, SHIFT_PANEL_WIDTH_PX / WIDTH_PX, height))
            draw_severities(axes, curves, metric)
            axes.set_title(label, loc="left", pad=4)
        label = f"{title}: accuracy, NLL and ECE against severity"
        return write_text(Path(path), svg.to_svg_file(figure, "shift", label, radius=10))


def draw_severities(axes: "Axes", curves: Mapping[str, Mapping[int, CorruptionMetrics]], metric: str) -> None:
    """Draw one metric of every corruption, and its mean over the corruptions that have the severity."""
    from matplotlib.ticker import MaxNLocator

    pooled: dict[int, list[float]] = {}
    for points in curves.values():
        values = {severity: row.metrics[metric] for severity, row in points.items()}
        values = {severity: value for severity, value in values.items() if queries.is_finite_number(value)}
        axes.plot(list(values), list(values.values()), color=theme.TIE, alpha=0.45, linewidth=1.0, zorder=2)
        for severity, value in values.items():
            pooled.setdefault(severity, []).append(value)
    means = {severity: sum(values) / len(values) for severity, values in sorted(pooled.items())}
    axes.plot(list(means), list(means.values()), color=theme.FLAT, marker="o", markersize=5, linewidth=2.4, zorder=4)
    axes.set_xlabel("severity")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    theme.style_axes(axes)


def group_by_corruption(rows: Sequence[CorruptionMetrics]) -> dict[str, dict[int, CorruptionMetrics]]:
    """Rows by corruption and severity; the clean data are severity 0 of every corruption."""
    clean = {row.severity: row for row in rows if row.severity == 0}
    curves: dict[str, dict[int, CorruptionMetrics]] = {}
    for row in rows:
        if row.severity:
            curves.setdefault(row.corruption, dict(clean))[row.severity] = row
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def severity_table(rows: Sequence[CorruptionMetrics]) -> "Table":
    """Metrics at each severity, averaged over the corruptions."""
    table = new_table("Mean over the corruptions", "severity", *TABLE_METRICS.values())
    for severity in sorted({row.severity for row in rows}):
        means = _average_metrics([row for row in rows if row.severity == severity])
        table.add_row("clean" if severity == 0 else str(severity), *means)
    return table


def corruption_table(rows: Sequence[CorruptionMetrics]) -> "Table":
    """Metrics of each corruption, averaged over its severities."""
    table = new_table("Mean over the severities", "corruption", *TABLE_METRICS.values())
    for name in queries.unique_values(row.corruption for row in rows):
        table.add_row(name, *_average_metrics([row for row in rows if row.corruption == name]))
    return table


def _average_metrics(rows: Sequence[CorruptionMetrics]) -> list[str]:
    return [format_number(mean_defined(row.metrics[metric] for row in rows)) for metric in TABLE_METRICS]


def ood_table(evaluation: OODEvaluation, ood_name: str) -> "Table":
    """Detection metrics of each uncertainty score.

    Args:
        evaluation: The detection metrics.
        ood_name: Source of the out-of-distribution examples.
    """
    title = f"{evaluation.num_ood} examples of {ood_name} (positive) against {evaluation.num_test} test examples"
    table = new_table(title, "score", "AUROC", "AUPR out", "AUPR in", "FPR at TPR 0.95")
    for name, score in evaluation.scores.items():
        cells = (score.auroc, score.aupr_out, score.aupr_in, score.fpr95)
        table.add_row(SCORE_NAMES[name], *map(format_number, cells))
    divergence = format_number(evaluation.entropy_divergence)
    table.caption = f"symmetric KL divergence of the entropies' histograms: {divergence} nats"
    return table


def temperature_table(recalibration: RecalibrationResult) -> "Table":
    """Metrics before and after temperature scaling."""
    title = f"Temperature {recalibration.temperature:.3f}, fitted to the validation split"
    table = new_table(title, "metric", "raw", "tempered")
    for metric in RECALIBRATION_METRICS:
        raw, tempered = recalibration.raw[metric], recalibration.tempered[metric]
        table.add_row(metric, format_number(raw), format_number(tempered))
    return table


def new_table(title: str, *columns: str) -> "Table":
    """A table with right-aligned columns, except the first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def mean_defined(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; infinite where one of them is."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan
