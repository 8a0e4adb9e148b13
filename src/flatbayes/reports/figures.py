"""Metrics by posterior, and the paired differences: one small panel for each metric."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flatbayes.reports import results as ask
from flatbayes.reports import svg
from flatbayes.reports.formats import ROUNDING, shorten
from flatbayes.reports.marks import MARKERS, WIDTH, Panel
from flatbayes.reports.results import Glossary, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROW = 44.0
EQUAL = 0.01
"""Half of an axis on which all numbers are equal."""
TINY = 1e-3
"""Numbers below have an exponent rather than zeros."""
VERDICT_COLOURS = {"flat": svg.FLAT, "plain": svg.PLAIN, "tie": svg.TIE, "unknown": svg.TIE}


def metric_panels(results: Results, glossary: Glossary) -> list[Panel]:
    """Every metric by posterior: means of plain and flat as marks, the seeds as faint dots."""
    panels = []
    for place, metric in enumerate(ask.metrics(results)):
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
    for place, metric in enumerate(ask.metrics(results)):
        label = f"Flat minus plain of {metric} with 95 % intervals; the numbers are in the results table"
        draw = partial(draw_difference, results=results, metric=metric)
        figure = row_figure(results, f"{name}-{place}", label, draw, zero=True)
        panels.append(Panel(metric, better_side(glossary, metric), figure))
    return panels


def better_side(glossary: Glossary, metric: str) -> str:
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
    labels = ask.posteriors(results)
    height = ROW * len(labels) + 30
    with svg.drawing(WIDTH, height) as figure:
        axes = figure.add_axes((16 / WIDTH, 24 / height, 1 - 32 / WIDTH, 1 - 26 / height))
        for place, posterior in enumerate(labels):
            axes.axhline(place, color=svg.INK, alpha=0.13, linewidth=0.8, zorder=0)
            write_label(axes, place, posterior)
            draw(axes, place, posterior)
        if zero:
            axes.axvline(0.0, color=svg.INK, linewidth=1.1, alpha=0.75, zorder=1)
        svg.quiet(axes, grid="x")
        finish_rows(axes, len(labels))
        return svg.inline(figure, name, label)


def write_label(axes: "Axes", place: float, posterior: str) -> None:
    """The posterior's name above its row."""
    axes.annotate(
        shorten(posterior),
        (0.0, place),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 12),
        textcoords="offset points",
        fontsize=10.5,
        va="bottom",
        zorder=2.5,
        bbox={"facecolor": svg.PAGE, "edgecolor": "none", "pad": 1.5},
    )


def finish_rows(axes: "Axes", rows: int) -> None:
    """Room above the first row for its label, first row on top, few x ticks."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(rows - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.06)
    low, high = axes.dataLim.intervalx
    if high - low <= ROUNDING:  # equal numbers: an axis of their rounding error would have twelve zeros in its labels
        axes.set_xlim(low - EQUAL, high + EQUAL)
    axes.xaxis.set_major_locator(MaxNLocator(4, min_n_ticks=2))
    if max(abs(low), abs(high)) < TINY:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}".replace("-", "−"))
    else:
        axes.ticklabel_format(axis="x", useOffset=False, style="plain")


def draw_twins(axes: "Axes", place: float, posterior: str, *, results: Results, metric: str) -> None:
    """Seeds as faint dots, the two means as marks with a line between."""
    row = ask.row_of(results, posterior, metric)
    if row is None:
        return
    means: dict[bool, float] = {}
    for flat, side in ((False, "plain"), (True, "flat")):
        values = [run["metrics"].get(metric) for run in ask.runs_of(results, posterior, flat)]
        seen = [value for value in values if ask.finite(value)]
        offset = 0.17 if flat else -0.17
        colour = MARKERS[flat]["color"]
        axes.plot(seen, [place + offset] * len(seen), "o", color=colour, alpha=0.45, markersize=4, mew=0, zorder=3)
        mean = row[side]
        if ask.finite(mean):
            means[flat] = mean
            axes.plot([mean], [place], markersize=7.5, **MARKERS[flat])
    if len(means) == 2:
        axes.plot(list(means.values()), [place] * 2, color=svg.INK, alpha=0.4, linewidth=1.4, zorder=2)


def draw_difference(axes: "Axes", place: float, posterior: str, *, results: Results, metric: str) -> None:
    """A dot and a bar in the winner's colour; the winner's mark too."""
    row = ask.row_of(results, posterior, metric)
    if row is None or not ask.finite(row.get("difference")):
        return
    word = ask.verdict(row)
    ends = ask.interval(row)
    colour = VERDICT_COLOURS[word]
    if ends:
        axes.plot(ends, [place, place], color=colour, linewidth=2.6, solid_capstyle="round", zorder=3)
    mark = MARKERS[word == "flat"] if word in ("flat", "plain") else {"color": colour, "marker": "D", "zorder": 5}
    axes.plot([row["difference"]], [place], markersize=7 if word in ("flat", "plain") else 5.5, **mark)
