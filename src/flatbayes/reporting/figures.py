"""Metrics by posterior, and the paired differences: one small panel for each metric."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import ZERO_TOLERANCE, shorten_label
from flatbayes.reporting.markers import MARKER_STYLES, PANEL_WIDTH_PX, Panel
from flatbayes.reporting.queries import Glossary, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW_HEIGHT_PX = 44.0
EQUAL_HALF_RANGE = 0.01
"""Half of an axis on which all numbers are equal."""
MIN_FIXED_POINT = 1e-3
"""Numbers below have an exponent rather than zeros."""
VERDICT_COLOURS = {"flat": svg.FLAT, "plain": svg.PLAIN, "tie": svg.TIE, "unknown": svg.TIE}


def metric_panels(results: Results, glossary: Glossary) -> list[Panel]:
    """Every metric by posterior: means of plain and flat as marks, the seeds as faint dots."""
    panels = []
    for place, metric in enumerate(queries.list_metrics(results)):
        label = f"{metric} of every posterior, plain and flat; the numbers are in the results table"
        draw = partial(draw_twins, results=results, metric=metric)
        panels.append(Panel(metric, glossary.direction(metric), row_figure(results, f"metric-{place}", label, draw)))
    return panels


def difference_panels(results: Results, glossary: Glossary, name: str = "difference") -> list[Panel]:
    """Every metric by posterior: the paired difference flat − plain, its 95 % interval, and a zero line.

    Args:
        results: Those of one table.
        glossary: Says on which side of zero flat is better.
        name: For ids; every table of a page needs its own.
    """
    panels = []
    for place, metric in enumerate(queries.list_metrics(results)):
        label = f"Flat minus plain of {metric} with 95 % intervals; the numbers are in the results table"
        draw = partial(draw_difference, results=results, metric=metric)
        figure = row_figure(results, f"{name}-{place}", label, draw, zero=True)
        panels.append(Panel(metric, describe_direction(glossary, metric), figure))
    return panels


def describe_direction(glossary: Glossary, metric: str) -> str:
    """On which side of zero flat is better."""
    if metric not in glossary.higher_is_better:
        return "flat − plain"
    return "right of zero: flat is better" if glossary.higher_is_better[metric] else "left of zero: flat is better"


def row_figure(
    results: Results,
    name: str,
    label: str,
    draw: Callable[["Axes", float, str], None],
    *,
    zero: bool = False,
) -> str:
    """Posteriors down the y axis, each with its label above its own line, whatever its length."""
    labels = queries.list_posteriors(results)
    height = ROW_HEIGHT_PX * len(labels) + 30
    with svg.new_figure(PANEL_WIDTH_PX, height) as figure:
        axes = figure.add_axes((16 / PANEL_WIDTH_PX, 24 / height, 1 - 32 / PANEL_WIDTH_PX, 1 - 26 / height))
        for place, posterior in enumerate(labels):
            axes.axhline(place, color=svg.INK, alpha=0.13, linewidth=0.8, zorder=0)
            write_label(axes, place, posterior)
            draw(axes, place, posterior)
        if zero:
            axes.axvline(0.0, color=svg.INK, linewidth=1.1, alpha=0.75, zorder=1)
        svg.style_axes(axes, grid="x")
        format_row_axes(axes, len(labels))
        return svg.to_inline_svg(figure, name, label)


def write_label(axes: "Axes", place: float, posterior: str) -> None:
    """The posterior's name above its row."""
    axes.annotate(
        shorten_label(posterior),
        (0.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 12),
        textcoords="offset points",
        fontsize=10.5,
        va="bottom",
        zorder=2.5,
        bbox={"facecolor": svg.PAGE, "edgecolor": "none", "pad": 1.5},
    )


def format_row_axes(axes: "Axes", rows: int) -> None:
    """Room above the first row for its label, first row on top, few x ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(rows - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    low, high = axes.dataLim.intervalx
    if (
        high - low <= ZERO_TOLERANCE
    ):  # equal numbers: an axis of their rounding error would have twelve zeros in its labels
        axes.set_xlim(low - EQUAL_HALF_RANGE, high + EQUAL_HALF_RANGE)
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    if max(abs(low), abs(high)) < MIN_FIXED_POINT:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}".replace("-", "−"))
    else:
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")


def draw_twins(axes: "Axes", place: float, posterior: str, *, results: Results, metric: str) -> None:
    """Seeds as faint dots, the two means as marks with a line between."""
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    means: dict[bool, float] = {}
    for flat, side in ((False, "plain"), (True, "flat")):
        values = [run["metrics"].get(metric) for run in queries.select_runs(results, posterior, flat)]
        seen = [value for value in values if queries.is_finite_number(value)]
        offset = 0.17 if flat else -0.17
        colour = MARKER_STYLES[flat]["color"]
        axes.plot(seen, [place + offset] * len(seen), "o", color=colour, alpha=0.45, markersize=4, mew=0, zorder=3)
        mean = row[side]
        if queries.is_finite_number(mean):
            means[flat] = mean
            axes.plot([mean], [place], markersize=7.5, **MARKER_STYLES[flat])
    if len(means) == 2:
        axes.plot(list(means.values()), [place] * 2, color=svg.INK, alpha=0.4, linewidth=1.4, zorder=2)


def draw_difference(axes: "Axes", place: float, posterior: str, *, results: Results, metric: str) -> None:
    """A dot and a bar in the winner's colour; the winner's mark too."""
    row = queries.find_row(results, posterior, metric)
    if row is None or not queries.is_finite_number(row.get("difference")):
        return
    word = queries.judge_row(row)
    ends = queries.get_interval(row)
    colour = VERDICT_COLOURS[word]
    if ends:
        axes.plot(ends, [place, place], color=colour, linewidth=2.6, solid_capstyle="round", zorder=3)
    mark = (
        MARKER_STYLES[word == "flat"] if word in ("flat", "plain") else {"color": colour, "marker": "D", "zorder": 5}
    )
    axes.plot([row["difference"]], [place], markersize=7 if word in ("flat", "plain") else 5.5, **mark)
