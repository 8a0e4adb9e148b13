"""Curves averaged over the seeds: losses by epoch, metrics by severity of corruption, the loss by distance."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatbayes.reporting import queries, svg
from flatbayes.reporting.markers import LINE_STYLES, PANEL_WIDTH_PX, Panel
from flatbayes.reporting.queries import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CurveSpec:
    """Which numbers of a run are drawn against which.

    Attributes:
        name: For ids.
        description: For readers who hear the figure.
        x_key: Key and label of the horizontal axis.
        y_labels: Label of each key that is drawn.
        get_columns: The columns of a run, by key; empty where it has none.
    """

    name: str
    description: str
    x_key: str
    y_labels: Mapping[str, str]
    get_columns: Callable[[Mapping[str, Any]], Mapping[str, Any]]


LEARNING_CURVES = CurveSpec(
    "curves",
    "Learning curves",
    "epoch",
    {"loss": "training loss", "val_nll": "validation NLL"},
    lambda run: run.get("curves") or {},
)
SHIFT_CURVES = CurveSpec(
    "shift",
    "Corrupted images",
    "severity",
    {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE"},
    lambda run: (run.get("details") or {}).get("shift") or {},
)
LANDSCAPE_CURVES = CurveSpec(
    "landscape",
    "Slices of the training loss through draws",
    "distance",
    {"loss": "training loss along random directions"},
    lambda run: (run.get("details") or {}).get("slice") or {},
)


def curve_panels(results: Results, curves: CurveSpec = LEARNING_CURVES) -> list[Panel]:
    """One panel for each posterior whose runs recorded a curve."""
    panels = []
    for place, posterior in enumerate(queries.list_posteriors(results)):
        found = {
            key: {
                flat: average_runs(queries.select_runs(results, posterior, flat), curves, key)
                for flat in (False, True)
            }
            for key in curves.y_labels
        }
        drawn = {key: twins for key, twins in found.items() if any(twins.values())}
        if drawn:
            figure = curve_figure(f"{curves.name}-{place}", posterior, curves, drawn)
            panels.append(Panel(posterior, "", figure))
    return panels


MeanCurve = Sequence[tuple[float, float, float | None]]
"""Where on the horizontal axis, mean over seeds, standard deviation over seeds."""


def average_runs(runs: Sequence[Mapping[str, Any]], curves: CurveSpec, key: str) -> MeanCurve:
    """Mean and deviation over the runs wherever at least one of them recorded a finite value."""
    seen: dict[float, list[float]] = defaultdict(list)
    for table in map(curves.get_columns, runs):
        for x, value in zip(table.get(curves.x_key) or [], table.get(key) or [], strict=False):
            if queries.is_finite_number(value):
                seen[x].append(value)
    curve = []
    for x in sorted(seen):
        mean, sd = queries.mean_sd(seen[x])
        if mean is not None:
            curve.append((x, mean, sd))
    return curve


def curve_figure(name: str, posterior: str, curves: CurveSpec, drawn: Mapping[str, Mapping[bool, MeanCurve]]) -> str:
    """The quantities below each other over a common axis."""
    height = 60 + 120 * len(drawn)
    with svg.new_figure(PANEL_WIDTH_PX, height) as figure:
        share = 120 / height
        for place, (key, twins) in enumerate(drawn.items()):
            bottom = 1 - (place + 1) * share + 8 / height - place * 14 / height
            box = (48 / PANEL_WIDTH_PX, bottom, 1 - 58 / PANEL_WIDTH_PX, share - 26 / height)
            axes = figure.add_axes(box, sharex=figure.axes[0] if figure.axes else None)
            draw_curves(axes, twins)
            axes.set_title(curves.y_labels[key], loc="left", pad=4)
            if place == len(drawn) - 1:
                axes.set_xlabel(curves.x_key)
            else:
                axes.tick_params(labelbottom=False)
        said = ", ".join(curves.y_labels[key] for key in drawn)
        return svg.to_inline_svg(
            figure, name, f"{curves.description}, {posterior}: {said} by {curves.x_key}, plain and flat"
        )


def draw_curves(axes: "Axes", twins: Mapping[bool, MeanCurve]) -> None:
    """A line for the mean and a thin band of one standard deviation."""
    from matplotlib.ticker import MaxNLocator

    for flat, curve in twins.items():
        if not curve:
            continue
        epochs = [point[0] for point in curve]
        means = [point[1] for point in curve]
        axes.plot(epochs, means, marker="o" if len(curve) == 1 else None, markersize=5, **LINE_STYLES[flat])
        if all(point[2] is not None for point in curve):
            low = [mean - (sd or 0.0) for _, mean, sd in curve]
            high = [mean + (sd or 0.0) for _, mean, sd in curve]
            axes.fill_between(epochs, low, high, color=LINE_STYLES[flat]["color"], alpha=0.16, linewidth=0, zorder=2)
    scale_y_axis(axes, [point[1] for curve in twins.values() for point in curve])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    svg.style_axes(axes)


def scale_y_axis(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis where positive values span much more than a factor of two, else a linear one."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    if min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if max(values) > 100 * min(values) else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
