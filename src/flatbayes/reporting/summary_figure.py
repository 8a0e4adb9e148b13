"""Summary figure for a README: NLL of every posterior, plain and flat, and a pooled reliability diagram."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatbayes.core.files import write_text
from flatbayes.experiments.results import ComparisonResult
from flatbayes.plotting import theme
from flatbayes.plotting.theme import MARKER_STYLES, VERDICT_COLOURS
from flatbayes.reporting import queries, svg
from flatbayes.reporting.calibration_figures import draw_reliability, pool_reliability
from flatbayes.reporting.formats import format_signed, shorten_label, wrap_label

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_PX = 900.0
MARGIN_PX = 28.0
LABEL_WIDTH_PX = 200.0
HEADING_HEIGHT_PX = 124.0
FOOTER_HEIGHT_PX = 56.0
ROW_HEIGHT_PX = 46.0
PLOT_HEIGHT_PX = 232.0
LANE_OFFSET_PX = 8.0
CARD_BORDER_COLOUR = "#d5dae1"
METRIC_NAMES = {"nll": "NLL", "ece": "ECE", "brier": "Brier score"}


def write_summary_figure(results: ComparisonResult, path: Path | str) -> Path:
    """Draw the effect of flatness in one figure, an SVG on a white card, and return its path.

    Args:
        results: The results.
        path: The file.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> write_summary_figure(results, "summary.svg").name
        'summary.svg'
    """
    return write_text(Path(path), draw_summary(results))


def draw_summary(results: ComparisonResult) -> str:
    """The figure as an SVG file on a white card."""
    results = queries.select_family(results)
    names = queries.list_metrics(results)
    metric = "nll" if "nll" in names else names[0]
    labels = queries.list_posteriors(results)
    pooled = {
        flat: pool_reliability([run for run in results.runs if queries.is_flat(run) == flat])
        for flat in (False, True)
    }
    has_reliability = any(pooled.values())
    height = (
        HEADING_HEIGHT_PX
        + FOOTER_HEIGHT_PX
        + max(ROW_HEIGHT_PX * len(labels), PLOT_HEIGHT_PX if has_reliability else 0.0)
    )
    with svg.new_figure(WIDTH_PX, height) as figure:
        title = _draw_heading(figure, results, height)
        right_edge = 580.0 if has_reliability else WIDTH_PX - MARGIN_PX
        pair_axes = _add_axes_px(figure, height, LABEL_WIDTH_PX, right_edge - 70)
        _draw_pairs(pair_axes, results, metric, (height - HEADING_HEIGHT_PX - FOOTER_HEIGHT_PX) / len(labels))
        name = METRIC_NAMES.get(metric, metric)
        _draw_subtitle(figure, height, MARGIN_PX, f"{name}, plain → flat; a thin line is one seed")
        caption: dict[str, Any] = {"fontsize": 11, "alpha": 0.75, "ha": "right"}
        figure.text(right_edge / WIDTH_PX, 1 - (HEADING_HEIGHT_PX - 12) / height, "flat − plain", **caption)
        if has_reliability:
            draw_reliability(_add_axes_px(figure, height, 652, WIDTH_PX - MARGIN_PX, PLOT_HEIGHT_PX), pooled)
            _draw_subtitle(figure, height, 622, "accuracy by confidence")
            _annotate_reliability(figure.axes[-1])
        label = f"{title}. {queries.format_conclusion(results)}"
        return svg.to_svg_file(figure, "picture", label, radius=10, border=CARD_BORDER_COLOUR)


def _add_axes_px(
    figure: "Figure", height: float, left: float, right: float, axes_height: float | None = None
) -> "Axes":
    """Axes below the heading, in CSS pixels; without a height they end at the footer."""
    axes_height = height - HEADING_HEIGHT_PX - FOOTER_HEIGHT_PX if axes_height is None else axes_height
    return figure.add_axes(
        (
            left / WIDTH_PX,
            1 - (HEADING_HEIGHT_PX + axes_height) / height,
            (right - left) / WIDTH_PX,
            axes_height / height,
        )
    )


def _draw_subtitle(figure: "Figure", height: float, left: float, text: str) -> None:
    """Write the title of one half of the figure."""
    figure.text(left / WIDTH_PX, 1 - (HEADING_HEIGHT_PX - 12) / height, text, fontsize=12.5, fontweight="bold")


def _draw_heading(figure: "Figure", results: ComparisonResult, height: float) -> str:
    """Draw title, data, outcome and legend, and return the title."""
    counts = queries.count_verdicts(results.rows)
    title = f"{shorten_label(queries.format_flatnesses(results, 'Flat'), 40)} against plain training"
    subject = [queries.format_data(results), queries.format_model(results)]
    subject.append(queries.format_count(len(queries.list_seeds(results)), "seed"))
    total = len(results.rows)
    if counts["unknown"] < total:
        better, worse, noise = counts["flat"], counts["plain"], counts["tie"]
        subject.append(f"{better} of {total} metrics better, {worse} worse, {noise} within noise")
    figure.text(MARGIN_PX / WIDTH_PX, 1 - 40 / height, title, fontsize=19, fontweight="bold")
    line = shorten_label(" · ".join(filter(None, subject)), 120)
    figure.text(MARGIN_PX / WIDTH_PX, 1 - 64 / height, line, fontsize=12.5, alpha=0.75)
    for x, is_flat, word in ((740, False, "plain"), (816, True, "flat")):
        axes = figure.add_axes((x / WIDTH_PX, 1 - 42 / height, 16 / WIDTH_PX, 16 / height))
        axes.axis("off")
        axes.plot([0], [0], markersize=9, clip_on=False, **MARKER_STYLES[is_flat])
        figure.text((x + 22) / WIDTH_PX, 1 - 39 / height, word, fontsize=14, color=MARKER_STYLES[is_flat]["color"])
    return title


def _annotate_reliability(axes: "Axes") -> None:
    """Label the regions above and below the diagonal."""
    axes.set_xlabel("confidence, all posteriors pooled", alpha=0.75)
    axes.text(0.04, 0.93, "underconfident", alpha=0.6, fontsize=10.5)
    axes.text(0.98, 0.05, "overconfident", alpha=0.6, fontsize=10.5, ha="right")


def _draw_pairs(axes: "Axes", results: ComparisonResult, metric: str, row_height: float) -> None:
    """Draw a row of `row_height` pixels for each posterior: label, seeds, means and difference."""
    labels = queries.list_posteriors(results)
    offset = LANE_OFFSET_PX / row_height
    for y, posterior in enumerate(labels):
        if y:
            axes.axhline(y - 0.5, color=theme.INK, alpha=0.1, linewidth=0.8, zorder=0)
        lines = wrap_label(posterior, 22)
        lines = lines if len(lines) < 5 else [*lines[:3], f"{lines[3]} …"]
        size = {1: 12.0, 2: 12.0, 3: 10.5, 4: 9.0}[len(lines)]
        _write_beside_row(axes, 0, MARGIN_PX - LABEL_WIDTH_PX, y, "\n".join(lines), fontsize=size, ha="left")
        lanes = {False: y - offset, True: y + offset}
        _draw_seeds(axes, results, metric, posterior, lanes)
        _draw_means(axes, results, metric, posterior, lanes)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.05)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set_xlabel("bold: the 95 % paired interval of the difference excludes 0", alpha=0.75)
    theme.style_axes(axes, grid="x")


def _write_beside_row(axes: "Axes", side: int, shift: float, y: float, text: str, **style: Any) -> None:
    """Write text beside a row, `shift` pixels from the left (0) or right (1) end of the axes."""
    axes.annotate(
        text,
        (side, y),
        xycoords=("axes fraction", "data"),
        xytext=(shift, 0),
        textcoords="offset points",
        va="center",
        **style,
    )


def _draw_seeds(
    axes: "Axes", results: ComparisonResult, metric: str, posterior: str, lanes: Mapping[bool, float]
) -> None:
    """Draw a thin line from the plain to the flat run of each seed.

    Args:
        axes: Where to draw.
        results: The results.
        metric: The metric.
        posterior: Label of the posterior.
        lanes: y coordinates of the plain (False) and the flat (True) runs.
    """
    values = {
        flat: {run.seed: run.metrics.get(metric) for run in queries.select_runs(results, posterior, flat)}
        for flat in (False, True)
    }
    for seed, plain in values[False].items():
        flat_value = values[True].get(seed)
        if queries.is_finite_number(plain) and queries.is_finite_number(flat_value):
            ends = ([plain, flat_value], [lanes[False], lanes[True]])
            axes.plot(*ends, color=theme.INK, alpha=0.25, linewidth=0.9, zorder=2)
    for flat, by_seed in values.items():
        finite = [value for value in by_seed.values() if queries.is_finite_number(value)]
        colour = MARKER_STYLES[flat]["color"]
        axes.plot(finite, [lanes[flat]] * len(finite), "o", color=colour, alpha=0.5, markersize=4.5, mew=0, zorder=3)


def _draw_means(
    axes: "Axes", results: ComparisonResult, metric: str, posterior: str, lanes: Mapping[bool, float]
) -> None:
    """Draw the two means, a thick line between them, and the difference as a number at the right edge.

    Args:
        axes: Where to draw.
        results: The results.
        metric: The metric.
        posterior: Label of the posterior.
        lanes: y coordinates of the plain (False) and the flat (True) runs.
    """
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    means = {False: row.comparison.plain, True: row.comparison.flat}
    finite = {flat: mean for flat, mean in means.items() if queries.is_finite_number(mean)}
    ys = [lanes[flat] for flat in finite]
    axes.plot(list(finite.values()), ys, color=theme.INK, alpha=0.7, linewidth=1.8, zorder=3)
    for flat, mean in finite.items():
        axes.plot([mean], [lanes[flat]], markersize=9.5, **MARKER_STYLES[flat])
    weight = "bold" if row.verdict in ("flat", "plain") else "normal"
    style = {"ha": "right", "fontsize": 12.5, "fontweight": weight, "color": VERDICT_COLOURS[row.verdict]}
    y = (lanes[False] + lanes[True]) / 2
    _write_beside_row(axes, 1, 70, y, format_signed(row.comparison.difference), **style)
