"""Curves averaged over seeds: losses by epoch, metrics by severity of corruption, loss by distance."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flatbayes.experiments.results import ComparisonResult
from flatbayes.experiments.run_result import RunResult
from flatbayes.plotting import theme
from flatbayes.plotting.scales import label_metric, scale_axis
from flatbayes.plotting.theme import LINE_STYLES
from flatbayes.reporting import queries, svg
from flatbayes.reporting.svg import PANEL_WIDTH_PX, Panel

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

MeanCurve = Sequence[tuple[float, float, float | None]]
"""Horizontal coordinate, mean over seeds, standard deviation over seeds."""


@dataclass(frozen=True)
class CurveSpec:
    """Columns of a run that are drawn against each other.

    `get_columns` returns an object with the columns of a run as attributes; None where the run has none. `name` is
    the prefix of ids.
    """

    name: str
    description: str
    x_name: str
    x_label: str
    y_labels: Mapping[str, str]
    get_columns: Callable[[RunResult], object | None]


LEARNING_CURVES = CurveSpec(
    "curves",
    "Learning curves",
    "epoch",
    "epoch",
    {"loss": "training loss in nats", "val_nll": "validation NLL in nats"},
    lambda run: run.history,
)
SHIFT_CURVES = CurveSpec(
    "shift",
    "Corrupted images",
    "severity",
    "severity of the corruption (0: none)",
    {name: label_metric(name) for name in ("accuracy", "nll", "ece")},
    lambda run: run.details.shift,
)
LANDSCAPE_CURVES = CurveSpec(
    "landscape",
    "Slices of the training loss through draws",
    "distances",
    "distance (1: norm of the weights)",
    {"losses": "training loss in nats along random directions"},
    lambda run: run.details.loss_slice,
)


def curve_panels(results: ComparisonResult, curves: CurveSpec = LEARNING_CURVES) -> list[Panel]:
    """One panel for each posterior whose runs have the columns."""
    panels = []
    for index, posterior in enumerate(queries.list_posteriors(results)):
        means = {
            name: {
                flat: average_runs(queries.select_runs(results, posterior, flat), curves, name)
                for flat in (False, True)
            }
            for name in curves.y_labels
        }
        recorded = {name: variants for name, variants in means.items() if any(variants.values())}
        if recorded:
            figure = curve_figure(f"{curves.name}-{index}", posterior, curves, recorded)
            panels.append(Panel(posterior, "", figure))
    return panels


def average_runs(runs: Sequence[RunResult], curves: CurveSpec, name: str) -> MeanCurve:
    """Mean and standard deviation over runs, wherever at least one of them has a finite value."""
    values: dict[float, list[float]] = defaultdict(list)
    for columns in map(curves.get_columns, runs):
        xs: Sequence[float | None] = getattr(columns, curves.x_name, ())
        ys: Sequence[float | None] = getattr(columns, name, ())
        for x, y in zip(xs, ys, strict=False):
            if x is not None and queries.is_finite_number(y):
                values[x].append(y)
    means = ((x, *queries.mean_sd(values[x])) for x in sorted(values))
    return [(x, mean, sd) for x, mean, sd in means if mean is not None]


def curve_figure(name: str, posterior: str, curves: CurveSpec, drawn: Mapping[str, Mapping[bool, MeanCurve]]) -> str:
    """The drawn columns below each other over a common horizontal axis."""
    height = 60 + 120 * len(drawn)
    with svg.new_figure(PANEL_WIDTH_PX, height) as figure:
        share = 120 / height
        for row, (column, variants) in enumerate(drawn.items()):
            bottom = 1 - (row + 1) * share + 8 / height - row * 14 / height
            box = (48 / PANEL_WIDTH_PX, bottom, 1 - 58 / PANEL_WIDTH_PX, share - 26 / height)
            axes = figure.add_axes(box, sharex=figure.axes[0] if figure.axes else None)
            draw_curves(axes, variants)
            axes.set_title(curves.y_labels[column], loc="left", pad=4)
            if row == len(drawn) - 1:
                axes.set_xlabel(curves.x_label)
            else:
                axes.tick_params(labelbottom=False)
        columns = ", ".join(curves.y_labels[column] for column in drawn)
        label = f"{curves.description}, {posterior}: {columns} by {curves.x_label}, plain and flat"
        return svg.to_inline_svg(figure, name, label)


def draw_curves(axes: "Axes", variants: Mapping[bool, MeanCurve]) -> None:
    """Draw a line for the mean and a band of one standard deviation."""
    from matplotlib.ticker import MaxNLocator

    for flat, curve in variants.items():
        if not curve:
            continue
        xs = [point[0] for point in curve]
        means = [point[1] for point in curve]
        axes.plot(xs, means, marker="o" if len(curve) == 1 else None, markersize=5, **LINE_STYLES[flat])
        if all(point[2] is not None for point in curve):
            low = [mean - (sd or 0.0) for _, mean, sd in curve]
            high = [mean + (sd or 0.0) for _, mean, sd in curve]
            axes.fill_between(xs, low, high, color=LINE_STYLES[flat]["color"], alpha=0.16, linewidth=0, zorder=2)
    scale_axis(axes.yaxis, [point[1] for curve in variants.values() for point in curve])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    theme.style_axes(axes)
