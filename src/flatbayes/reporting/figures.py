"""Panels of metrics by posterior and of paired differences, one for each metric."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flatbayes.experiments.results import ComparisonResult
from flatbayes.plotting import theme
from flatbayes.plotting.scales import label_metric, scale_axis
from flatbayes.plotting.theme import MARKER_STYLES, VERDICT_COLOURS
from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import ZERO_TOLERANCE, shorten_label
from flatbayes.reporting.queries import Glossary
from flatbayes.reporting.svg import PANEL_WIDTH_PX, Panel

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

ROW_HEIGHT_PX = 50.0
EQUAL_HALF_RANGE = 0.01
"""Half the width of an axis on which all numbers are equal."""
MIN_FIXED_POINT = 1e-3
"""Smaller numbers are shown with an exponent."""


def metric_panels(results: ComparisonResult, glossary: Glossary) -> list[Panel]:
    """Every metric by posterior: means of plain and flat runs as marks, single seeds as faint dots."""
    panels = []
    for index, metric in enumerate(queries.list_metrics(results)):
        label = f"{metric} of every posterior, plain and flat; the numbers are in the results table"
        draw = partial(draw_means, results=results, metric=metric)
        figure = row_figure(results, f"metric-{index}", label, draw, x_label=label_metric(metric))
        panels.append(Panel(metric, glossary.direction(metric), figure))
    return panels


def difference_panels(results: ComparisonResult, glossary: Glossary, name: str = "difference") -> list[Panel]:
    """Every metric by posterior: the paired difference flat − plain, its 95 % interval, and a zero line."""
    panels = []
    for index, metric in enumerate(queries.list_metrics(results)):
        label = f"Flat minus plain of {metric} with 95 % intervals; the numbers are in the results table"
        draw = partial(draw_difference, results=results, metric=metric)
        x_label = f"flat − plain: {label_metric(metric)}"
        figure = row_figure(results, f"{name}-{index}", label, draw, x_label=x_label, zero=True)
        panels.append(Panel(metric, describe_direction(glossary, metric), figure))
    return panels


def describe_direction(glossary: Glossary, metric: str) -> str:
    """The side of zero on which flat is better."""
    if metric not in glossary.higher_is_better:
        return "flat − plain"
    return "right of zero: flat is better" if glossary.higher_is_better[metric] else "left of zero: flat is better"


def row_figure(
    results: ComparisonResult,
    name: str,
    label: str,
    draw: Callable[["Axes", float, str], None],
    *,
    x_label: str,
    zero: bool = False,
) -> str:
    """A figure with one row per posterior, its label above the row.

    `draw` draws one row, given axes, the y coordinate of the row and the posterior. `name` is the prefix of ids,
    unique in the page, and `label` the description for screen readers.
    """
    labels = queries.list_posteriors(results)
    height = ROW_HEIGHT_PX * len(labels) + 46
    with svg.new_figure(PANEL_WIDTH_PX, height) as figure:
        axes = figure.add_axes((16 / PANEL_WIDTH_PX, 40 / height, 1 - 32 / PANEL_WIDTH_PX, 1 - 42 / height))
        for y, posterior in enumerate(labels):
            axes.axhline(y, color=theme.INK, alpha=0.13, linewidth=0.8, zorder=0)
            _write_label(axes, y, posterior)
            draw(axes, y, posterior)
        if zero:
            axes.axvline(0.0, color=theme.INK, linewidth=1.1, alpha=0.75, zorder=1)
        theme.style_axes(axes, grid="x")
        _format_row_axes(axes, len(labels), zero=zero)
        axes.set_xlabel(x_label, fontsize=10, alpha=0.75, labelpad=3)
        return svg.to_inline_svg(figure, name, label)


def _write_label(axes: "Axes", y: float, posterior: str) -> None:
    """Write the label of a posterior above its row."""
    axes.annotate(
        shorten_label(posterior),
        (0.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 14),
        textcoords="offset points",
        fontsize=10.5,
        va="bottom",
        zorder=2.5,
        bbox={"facecolor": theme.PAGE, "edgecolor": "none", "pad": 1.5},
    )


def _format_row_axes(axes: "Axes", num_rows: int, *, zero: bool) -> None:
    """First row on top with room for its label, and few ticks on the x axis, which is linear for differences."""
    axes.set_ylim(num_rows - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    low, high = axes.dataLim.intervalx
    if high - low <= ZERO_TOLERANCE:  # the axis would span the rounding error of equal numbers
        axes.set_xlim(low - EQUAL_HALF_RANGE, high + EQUAL_HALF_RANGE)
    scale_axis(axes.xaxis, () if zero else (low, high))
    if axes.get_xscale() == "log":
        return
    if max(abs(low), abs(high)) < MIN_FIXED_POINT:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}".replace("-", "−"))
    else:
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")


def draw_means(axes: "Axes", y: float, posterior: str, *, results: ComparisonResult, metric: str) -> None:
    """Draw single seeds as faint dots, and the two means as marks with a line between."""
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    means: dict[bool, float] = {}
    for flat, mean in ((False, row.comparison.plain), (True, row.comparison.flat)):
        values = [run.metrics.get(metric) for run in queries.select_runs(results, posterior, flat)]
        finite = [value for value in values if queries.is_finite_number(value)]
        offset = 0.17 if flat else -0.17
        colour = MARKER_STYLES[flat]["color"]
        axes.plot(finite, [y + offset] * len(finite), "o", color=colour, alpha=0.45, markersize=4, mew=0, zorder=3)
        if queries.is_finite_number(mean):
            means[flat] = mean
            axes.plot([mean], [y], markersize=7.5, **MARKER_STYLES[flat])
    if len(means) == 2:
        axes.plot(list(means.values()), [y] * 2, color=theme.INK, alpha=0.4, linewidth=1.4, zorder=2)


def draw_difference(axes: "Axes", y: float, posterior: str, *, results: ComparisonResult, metric: str) -> None:
    """Draw a mark and the bar of the interval, in the colour and with the mark of the winner."""
    row = queries.find_row(results, posterior, metric)
    if row is None or not queries.is_finite_number(row.comparison.difference):
        return
    colour, has_winner = VERDICT_COLOURS[row.verdict], row.verdict in ("flat", "plain")
    if row.comparison.interval is not None:
        ends = row.comparison.interval
        axes.plot(ends, [y, y], color=colour, linewidth=2.6, solid_capstyle="round", zorder=3)
    mark = MARKER_STYLES[row.verdict == "flat"] if has_winner else {"color": colour, "marker": "D", "zorder": 5}
    axes.plot([row.comparison.difference], [y], markersize=7 if has_winner else 5.5, **mark)


def plot_differences(results: ComparisonResult, metric: str, axes: "Axes | None" = None) -> "Axes":
    """Draw the differences of one metric for every posterior into axes of a program or notebook.

    Raises:
        ValueError: The comparison has no such metric.
        ImportError: matplotlib is not installed.
    """
    glossary, metrics = queries.default_glossary(), queries.list_metrics(results)
    if metric not in metrics:
        raise ValueError(f"The comparison has no metric {metric!r}; it has {', '.join(metrics)}.")
    posteriors = [p for p in queries.list_posteriors(results) if queries.find_row(results, p, metric) is not None]
    with theme.use_axes(axes, 6.0, 1.5 + 0.5 * len(posteriors)) as target:
        for y, posterior in enumerate(posteriors):
            draw_difference(target, y, posterior, results=results, metric=metric)
        target.axvline(0.0, color=theme.INK, linewidth=1.1, alpha=0.75, zorder=1)
        target.set_yticks(range(len(posteriors)), [shorten_label(posterior) for posterior in posteriors])
        target.set_ylim(len(posteriors) - 0.4, -0.6)
        hint = f" ({describe_direction(glossary, metric)})" if metric in glossary.higher_is_better else ""
        target.set_xlabel(f"flat − plain: {label_metric(metric)}{hint}")
        _add_verdict_legend(target)
        target.set_title(f"{queries.format_title(results)} on {queries.format_data(results)}")
        theme.style_axes(target, grid="x")
        return target


def _add_verdict_legend(axes: "Axes") -> None:
    """A key of the marks and colours of verdicts, below the axes."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linewidth=2.6, label=label, **style)
        for label, style in (
            ("flat better", MARKER_STYLES[True]),
            ("plain better", MARKER_STYLES[False]),
            ("within noise", {"color": theme.TIE, "marker": "D"}),
        )
    ]
    theme.add_legend_below(axes, handles=handles)
