"""What a shift does to one posterior: tables for the terminal, and metrics against severity as a picture."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatbayes.reports import results as ask
from flatbayes.reports import svg
from flatbayes.reports.formats import number
from flatbayes.reports.report import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

Rows = Sequence[Mapping[str, Any]]
"""What `flatbayes.prediction.evaluate_corruptions` returns."""

PANELS = {"accuracy": "accuracy", "nll": "NLL in nats", "ece": "ECE"}
PANEL, GAP, LEFT, TOP, HEIGHT = 236.0, 52.0, 52.0, 72.0, 300.0
WIDTH = LEFT + 3 * PANEL + 2 * GAP + 20
SCORES = {"entropy": "entropy", "mutual_information": "mutual information", "one_minus_confidence": "1 − confidence"}
JUDGED = ("nll", "ece", "adaptive_ece", "classwise_ece", "brier", "accuracy")


def shift_picture(rows: Rows, title: str, path: Path | str) -> Path:
    """Draw accuracy, NLL and ECE against severity, as an SVG on a white card, and return its path.

    A thin line for each corruption, a bold one for their mean; severity 0 is the clean data.

    Args:
        rows: Metrics by corruption and severity.
        title: What was measured.
        path: The file.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = by_corruption(rows)
    with svg.drawing(WIDTH, HEIGHT) as figure:
        figure.text(LEFT / WIDTH, 1 - 26 / HEIGHT, title, fontsize=14, fontweight="bold")
        said = f"{ask.counted(len(curves), 'corruption')}: thin lines; their mean: bold"
        figure.text(LEFT / WIDTH, 1 - 46 / HEIGHT, said, alpha=0.75)
        for place, (metric, label) in enumerate(PANELS.items()):
            left = LEFT + place * (PANEL + GAP)
            tall = HEIGHT - TOP - 44
            axes = figure.add_axes((left / WIDTH, 44 / HEIGHT, PANEL / WIDTH, tall / HEIGHT))
            draw_severities(axes, curves, metric)
            axes.set_title(label, loc="left", pad=4)
        card = f'<rect width="{WIDTH:g}" height="{HEIGHT:g}" rx="10" fill="#ffffff" />'
        text = svg.standalone(figure, "shift", f"{title}: accuracy, NLL and ECE against severity", card)
    return write_whole(Path(path), text)


def draw_severities(axes: "Axes", curves: Mapping[str, Mapping[int, Mapping[str, Any]]], metric: str) -> None:
    """One metric of every corruption, and its mean over those corruptions that have the severity."""
    from matplotlib.ticker import MaxNLocator

    pooled: dict[int, list[float]] = {}
    for points in curves.values():
        values = {s: row[metric] for s, row in points.items() if ask.finite(row[metric])}
        axes.plot(list(values), list(values.values()), color=svg.TIE, alpha=0.45, linewidth=1.0, zorder=2)
        for severity, value in values.items():
            pooled.setdefault(severity, []).append(value)
    means = {severity: sum(values) / len(values) for severity, values in sorted(pooled.items())}
    axes.plot(list(means), list(means.values()), color=svg.FLAT, marker="o", markersize=5, linewidth=2.4, zorder=4)
    axes.set_xlabel("severity")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    svg.quiet(axes)


def by_corruption(rows: Rows) -> dict[str, dict[int, Mapping[str, Any]]]:
    """The row of each corruption and severity; the clean data is severity 0 of all."""
    clean = {row["severity"]: row for row in rows if row["severity"] == 0}
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row["severity"]:
            found.setdefault(row["corruption"], dict(clean))[row["severity"]] = row
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def severity_table(rows: Rows) -> "Table":
    """Metrics at each severity, averaged over the corruptions."""
    table = empty("Mean over the corruptions", "severity", "accuracy", "NLL", "ECE", "Brier")
    severities = sorted({row["severity"] for row in rows})
    for severity in severities:
        same = [row for row in rows if row["severity"] == severity]
        means = [mean(row[metric] for row in same) for metric in ("accuracy", "nll", "ece", "brier")]
        table.add_row("clean" if severity == 0 else str(severity), *map(number, means))
    return table


def corruption_table(rows: Rows) -> "Table":
    """Metrics of each corruption, averaged over its severities."""
    table = empty("Mean over the severities", "corruption", "accuracy", "NLL", "ECE", "Brier")
    for name in ask.unique(row["corruption"] for row in rows):
        same = [row for row in rows if row["corruption"] == name]
        means = [mean(row[metric] for row in same) for metric in ("accuracy", "nll", "ece", "brier")]
        table.add_row(name, *map(number, means))
    return table


def ood_table(found: Mapping[str, Any], outside: str) -> "Table":
    """How well each score tells examples from outside from those inside.

    Args:
        found: What `flatbayes.prediction.evaluate_ood` returns.
        outside: What the examples from outside are.
    """
    title = f"{found['num_outside']} examples of {outside} (positive) against {found['num_inside']} inside"
    table = empty(title, "score", "AUROC", "AUPR out", "AUPR in", "FPR at TPR 0.95")
    for name, values in found["scores"].items():
        cells = (values[key] for key in ("auroc", "aupr_out", "aupr_in", "fpr95"))
        table.add_row(SCORES[name], *map(number, cells))
    table.caption = (
        f"symmetric KL divergence of the entropies' histograms: {number(found['entropy_divergence'])} nats"
    )
    return table


def temperature_table(found: Mapping[str, Any]) -> "Table":
    """Metrics as they are and at the temperature that suits the validation part.

    Args:
        found: What `flatbayes.prediction.recalibrated` returns.
    """
    table = empty(
        f"Temperature {found['temperature']:.3f}, fitted to the validation part", "metric", "raw", "tempered"
    )
    for metric in JUDGED:
        table.add_row(metric, *(number(found[side][metric]) for side in ("raw", "tempered")))
    return table


def empty(title: str, *columns: str) -> "Table":
    """A table whose columns but the first hold numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    table.add_column(columns[0])
    for name in columns[1:]:
        table.add_column(name, justify="right")
    return table


def mean(values: Iterable[float]) -> float:
    """Mean of what is defined; infinite where one of them is."""
    kept = [value for value in values if value == value]
    return sum(kept) / len(kept) if kept else math.nan
