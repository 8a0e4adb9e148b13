"""Distribution shift of one posterior: tables for the terminal, and a figure of metrics against severity."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flatbayes.core.files import write_text
from flatbayes.core.names import format_count
from flatbayes.metrics import MULTI_LABEL_METRICS
from flatbayes.plotting import theme
from flatbayes.plotting.labels import label_line_ends
from flatbayes.plotting.scales import label_metric, scale_axis
from flatbayes.prediction import CorruptionMetrics, OODEvaluation, RecalibrationResult
from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import format_number

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from rich.table import Table

PANEL_METRICS = ("accuracy", "nll", "ece")
WIDTH_PX, MARGIN_LEFT_PX, LABEL_WIDTH_PX, HEADING_HEIGHT_PX, PANEL_GAP_PX = 560.0, 60.0, 150.0, 76.0, 66.0
MIN_PANEL_HEIGHT_PX, LABEL_HEIGHT_PX = 170.0, 11.5
MEAN_LABEL = "mean"
SCORE_NAMES = {
    "entropy": "entropy",
    "mutual_information": "mutual information",
    "one_minus_confidence": "1 − confidence",
}
TABLE_METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"}
RECALIBRATION_METRICS = ("nll", "ece", "adaptive_ece", "classwise_ece", "brier", "accuracy")


def write_shift_figure(rows: Sequence[CorruptionMetrics], title: str, path: Path | str) -> Path:
    """Draw accuracy, NLL and ECE against severity below each other, as an SVG on a card, and return its path.

    A thin line with its name for each corruption, a bold one for their mean; severity 0 is the clean data.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = group_by_corruption(rows)
    panel_height = max(MIN_PANEL_HEIGHT_PX, LABEL_HEIGHT_PX * (len(curves) + 1))
    height = HEADING_HEIGHT_PX + len(PANEL_METRICS) * (panel_height + PANEL_GAP_PX)
    with svg.new_figure(WIDTH_PX, height) as figure:
        lines = textwrap.wrap(title, 52)[:2]
        figure.text(20 / WIDTH_PX, 1 - 16 / height, "\n".join(lines), fontsize=14, fontweight="bold", va="top")
        legend = f"{format_count(len(curves), 'corruption')}: thin lines; their mean: bold"
        figure.text(20 / WIDTH_PX, 1 - (34 + 17 * (len(lines) - 1)) / height, legend, alpha=0.75, va="top")
        for index, metric in enumerate(PANEL_METRICS):
            bottom = height - HEADING_HEIGHT_PX - index * (panel_height + PANEL_GAP_PX) - panel_height
            width = WIDTH_PX - MARGIN_LEFT_PX - LABEL_WIDTH_PX
            axes = figure.add_axes(
                (MARGIN_LEFT_PX / WIDTH_PX, bottom / height, width / WIDTH_PX, panel_height / height)
            )
            draw_severities(axes, curves, metric)
            axes.set_title(label_metric(metric), loc="left", pad=4)
        label = f"{title}: accuracy, NLL and ECE against severity"
        return write_text(Path(path), svg.to_svg_file(figure, "shift", label, card=True))


def draw_severities(axes: "Axes", curves: Mapping[str, Mapping[int, CorruptionMetrics]], metric: str) -> None:
    """Draw one metric of every corruption with its name, and its mean over the corruptions that have the severity."""
    from matplotlib.ticker import MaxNLocator

    pooled: dict[int, list[float]] = {}
    ends: dict[str, tuple[float, float]] = {}
    for name, points in curves.items():
        values = {severity: row.metrics[metric] for severity, row in points.items()}
        values = {severity: value for severity, value in values.items() if queries.is_finite_number(value)}
        axes.plot(list(values), list(values.values()), color=theme.TIE, alpha=0.45, linewidth=1.0, zorder=2)
        if values:
            ends[name.replace("_", " ")] = list(values.items())[-1]
        for severity, value in values.items():
            pooled.setdefault(severity, []).append(value)
    means = {severity: sum(values) / len(values) for severity, values in sorted(pooled.items())}
    axes.plot(list(means), list(means.values()), color=theme.FLAT, marker="o", markersize=5, linewidth=2.4, zorder=4)
    axes.set_xlabel("severity of the corruption (0: none)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale_axis(axes.yaxis, [value for values in pooled.values() for value in values], 5)
    theme.style_axes(axes)
    if means:
        ends[MEAN_LABEL] = list(means.items())[-1]
    label_line_ends(axes, ends, {MEAN_LABEL: {"color": theme.FLAT, "alpha": 1.0, "fontweight": "bold"}})


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
    """Detection metrics of each uncertainty score."""
    num_ood, num_test = evaluation.num_ood, evaluation.num_test
    positive = f"{format_count(num_ood, 'example')} of {ood_name} (positive)"
    title = f"{positive} against {format_count(num_test, 'test example')}"
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
    is_multi_label = set(recalibration.raw) == set(MULTI_LABEL_METRICS)
    for metric in MULTI_LABEL_METRICS if is_multi_label else RECALIBRATION_METRICS:
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
