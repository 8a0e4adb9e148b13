"""Summary figure for a README: NLL of every posterior, plain and flat, and a pooled reliability diagram.

It has two layouts, one for desktops and one for phones, and each follows the light or dark theme of the reader.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatbayes.core.files import write_text
from flatbayes.core.names import format_count
from flatbayes.experiments.results import ComparisonResult
from flatbayes.plotting import theme
from flatbayes.plotting.scales import label_metric, scale_axis
from flatbayes.plotting.theme import MARKER_STYLES, VERDICT_COLOURS
from flatbayes.reporting import queries, svg
from flatbayes.reporting.calibration_figures import draw_reliability, pool_reliability
from flatbayes.reporting.formats import format_signed, shorten_label, wrap_label

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARGIN_PX = 28.0
AXIS_HEIGHT_PX = 52.0
"""Room for the labels of a horizontal axis."""
SUBTITLE_HEIGHT_PX = 44.0
LANE_OFFSET_PX = 8.0
LABEL_OFFSET_PX = 24.0
"""Height of the middle of a label above the middle of its row, in the narrow layout."""
DIFFERENCE_WIDTH_PX = 70.0


@dataclass(frozen=True)
class Layout:
    """Sizes of a summary figure, in CSS pixels.

    Attributes:
        width: Width of the figure.
        margin: Distance of the content from the edge.
        label_width: Distance of the rows from the left edge; where it is the margin, labels are above their rows.
        row_height: Height of the row of a posterior.
        plot_height: Height of the reliability diagram.
        plot_left: Left edge of the reliability diagram; None puts it below the rows.
        title_width: Characters in a line of the title.
        title_size: Font size of the title.
        subject_width: Characters in a line below the title.
    """

    width: float
    margin: float
    label_width: float
    row_height: float
    plot_height: float
    plot_left: float | None
    title_width: int
    title_size: float
    subject_width: int

    @property
    def is_narrow(self) -> bool:
        """Whether panels are below each other, and labels above their rows."""
        return self.plot_left is None


WIDE = Layout(900.0, MARGIN_PX, 200.0, 46.0, 232.0, 652.0, title_width=60, title_size=19.0, subject_width=120)
NARROW = Layout(390.0, 18.0, 18.0, 70.0, 250.0, None, title_width=30, title_size=17.0, subject_width=52)


def write_summary_figure(results: ComparisonResult, path: Path | str, *, narrow: bool = False) -> Path:
    """Draw the effect of flatness in one figure, an SVG on a card, and return its path.

    Args:
        results: The results.
        path: The file.
        narrow: Draw for the width of a phone.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> write_summary_figure(results, "summary.svg").name
        'summary.svg'
    """
    return write_text(Path(path), draw_summary(results, narrow=narrow))


def draw_summary(results: ComparisonResult, *, narrow: bool = False) -> str:
    """The figure as an SVG file on a card; a narrow one is as wide as a phone.

    Raises:
        ImportError: matplotlib is not installed.
    """
    layout = NARROW if narrow else WIDE
    results = queries.select_family(results)
    names = queries.list_metrics(results)
    metric = "nll" if "nll" in names else names[0]
    pooled = {
        flat: pool_reliability([run for run in results.runs if queries.is_flat(run) == flat])
        for flat in (False, True)
    }
    has_plot = any(pooled.values())
    title, subject = format_heading(results)
    title_lines, subject_lines = (
        textwrap.wrap(title, layout.title_width),
        textwrap.wrap(subject, layout.subject_width),
    )
    top = _measure_heading(layout, len(title_lines), len(subject_lines)) + SUBTITLE_HEIGHT_PX
    num_rows = len(queries.list_posteriors(results))
    rows_height = layout.row_height * num_rows
    if layout.is_narrow:
        plot_top = top + rows_height + AXIS_HEIGHT_PX + SUBTITLE_HEIGHT_PX
        height = plot_top + layout.plot_height + AXIS_HEIGHT_PX if has_plot else top + rows_height + AXIS_HEIGHT_PX
    else:
        plot_top = top
        rows_height = max(rows_height, layout.plot_height if has_plot else 0.0)
        height = top + rows_height + AXIS_HEIGHT_PX
    rows_right = layout.width - layout.margin if layout.is_narrow or not has_plot else 580.0
    with svg.new_figure(layout.width, height) as figure:
        canvas = _Canvas(figure, layout.width, height)
        _draw_heading(canvas, layout, title_lines, subject_lines)
        rows_end = rows_right - (0.0 if layout.is_narrow else DIFFERENCE_WIDTH_PX)
        pair_axes = canvas.add_axes(layout.label_width, top, rows_end, rows_height)
        _draw_pairs(pair_axes, results, metric, layout, rows_height / num_rows)
        canvas.write_subtitle(layout.margin, top, "plain → flat; large: mean, thin: one seed")
        canvas.write(rows_right, top - 12, "flat − plain", fontsize=11, alpha=0.75, ha="right")
        if has_plot:
            left = layout.margin + 34 if layout.plot_left is None else layout.plot_left
            axes = canvas.add_axes(left, plot_top, layout.width - layout.margin, layout.plot_height)
            draw_reliability(axes, pooled)
            canvas.write_subtitle(left - 34, plot_top, "reliability")
            _annotate_reliability(axes)
        label = f"{title}. {queries.format_conclusion(results)}"
        return svg.to_svg_file(figure, "picture", label, card=True)


@dataclass(frozen=True)
class _Canvas:
    """A figure on which positions are pixels from the upper left corner."""

    figure: "Figure"
    width: float
    height: float

    def add_axes(self, left: float, top: float, right: float, height: float) -> "Axes":
        """Axes of a height, without the room for their labels."""
        bottom = 1 - (top + height) / self.height
        return self.figure.add_axes((left / self.width, bottom, (right - left) / self.width, height / self.height))

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Write a line of text; y is that of its baseline."""
        self.figure.text(x / self.width, 1 - y / self.height, text, **style)

    def write_subtitle(self, left: float, top: float, text: str) -> None:
        """Write the title of a panel, given the upper edge of its axes."""
        self.write(left, top - 12, text, fontsize=12.5, fontweight="bold")


def format_heading(results: ComparisonResult) -> tuple[str, str]:
    """Title of the figure, and the line with data, network, seeds and outcome."""
    counts = queries.count_verdicts(results.rows)
    title = f"{shorten_label(queries.format_flatnesses(results, 'Flat'), 40)} against plain training"
    subject = [queries.format_data(results), queries.format_model(results)]
    subject.append(format_count(len(queries.list_seeds(results)), "seed"))
    total = len(results.rows)
    if counts["unknown"] < total:
        better, worse, noise = counts["flat"], counts["plain"], counts["tie"]
        subject.append(f"{better} of {format_count(total, 'metric')} better, {worse} worse, {noise} within noise")
    return title, shorten_label(" · ".join(filter(None, subject)), 120)


def _measure_heading(layout: Layout, num_title_lines: int, num_subject_lines: int) -> float:
    """Height of the heading; the legend is beside a wide title, and below a narrow one."""
    lines = 20 + (layout.title_size + 5) * num_title_lines + 17 * num_subject_lines + 6
    return lines + (26 if layout.is_narrow else 20)


def _draw_heading(canvas: _Canvas, layout: Layout, title: list[str], subject: list[str]) -> None:
    """Draw title, data, outcome and legend."""
    y = 20.0
    for line in title:
        y += layout.title_size + 3
        canvas.write(layout.margin, y - 2, line, fontsize=layout.title_size, fontweight="bold")
    y += 6
    for line in subject:
        y += 17
        canvas.write(layout.margin, y, line, fontsize=12.5 if not layout.is_narrow else 11.5, alpha=0.75)
    left, middle = (layout.margin, y + 21) if layout.is_narrow else (740.0, 34.0)
    for x, is_flat, word in ((left, False, "plain"), (left + 76, True, "flat")):
        axes = canvas.add_axes(x, middle - 8, x + 16, 16)
        axes.axis("off")
        axes.plot([0], [0], markersize=9, clip_on=False, **MARKER_STYLES[is_flat])
        canvas.write(x + 22, middle + 5, word, fontsize=14, color=MARKER_STYLES[is_flat]["color"])


def _annotate_reliability(axes: "Axes") -> None:
    """Label the axes, and the regions above and below the diagonal."""
    axes.set_xlabel("confidence, all posteriors; bars: 95 %", alpha=0.75, fontsize=10)
    axes.set_ylabel("accuracy", alpha=0.75, fontsize=10, labelpad=2)
    axes.text(0.04, 0.93, "underconfident", alpha=0.6, fontsize=10.5)
    axes.text(0.98, 0.05, "overconfident", alpha=0.6, fontsize=10.5, ha="right")


def _draw_pairs(axes: "Axes", results: ComparisonResult, metric: str, layout: Layout, row_height: float) -> None:
    """Draw a row for each posterior: label, seeds, means and difference."""
    labels = queries.list_posteriors(results)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    offset = LANE_OFFSET_PX / row_height
    shift = 12 / row_height if layout.is_narrow else 0.0  # the label needs the upper half of the row
    for y, posterior in enumerate(labels):
        if y:
            axes.axhline(y - 0.5, color=theme.INK, alpha=0.1, linewidth=0.8, zorder=0)
        lanes = {False: y + shift - offset, True: y + shift + offset}
        _write_posterior(axes, y + shift, posterior, layout)
        _draw_seeds(axes, results, metric, posterior, lanes)
        _draw_means(axes, results, metric, posterior, lanes)
        _write_difference(axes, results, metric, posterior, y + shift, layout)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.05)
    values = [run.metrics.get(metric) for run in results.runs]
    scale_axis(axes.xaxis, [value for value in values if queries.is_finite_number(value)], 5)
    note = "bold: its 95 % paired interval excludes 0"
    axes.set_xlabel(f"{label_metric(metric)}; {note}", alpha=0.75, fontsize=10)
    theme.style_axes(axes, grid="x")


def _write_posterior(axes: "Axes", y: float, posterior: str, layout: Layout) -> None:
    """Write the label beside the row, or above it in the narrow layout."""
    if layout.is_narrow:
        _write_beside_row(axes, 0, (0, LABEL_OFFSET_PX), y, shorten_label(posterior, 34), fontsize=12.0, ha="left")
        return
    lines = wrap_label(posterior, 22)
    lines = lines if len(lines) < 5 else [*lines[:3], f"{lines[3]} …"]
    size = {1: 12.0, 2: 12.0, 3: 10.5, 4: 9.0}[len(lines)]
    shift = (layout.margin - layout.label_width, 0.0)
    _write_beside_row(axes, 0, shift, y, "\n".join(lines), fontsize=size, ha="left")


def _write_beside_row(axes: "Axes", side: int, shift: tuple[float, float], y: float, text: str, **style: Any) -> None:
    """Write text, shifted by pixels from the left (0) or right (1) end of a row."""
    axes.annotate(
        text,
        (side, y),
        xycoords=("axes fraction", "data"),
        xytext=shift,
        textcoords="offset points",
        va="center",
        **style,
    )


def _write_difference(
    axes: "Axes", results: ComparisonResult, metric: str, posterior: str, y: float, layout: Layout
) -> None:
    """Write the difference as a number at the right end of the row, bold where its interval excludes zero."""
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    weight = "bold" if row.verdict in ("flat", "plain") else "normal"
    style = {"ha": "right", "fontsize": 12.5, "fontweight": weight, "color": VERDICT_COLOURS[row.verdict]}
    shift = (0.0, LABEL_OFFSET_PX) if layout.is_narrow else (DIFFERENCE_WIDTH_PX, 0.0)
    _write_beside_row(axes, 1, shift, y, format_signed(row.comparison.difference), **style)


def _draw_seeds(
    axes: "Axes", results: ComparisonResult, metric: str, posterior: str, lanes: Mapping[bool, float]
) -> None:
    """Draw a thin line from the plain to the flat run of each seed; a lane is the y coordinate of a variant."""
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
    """Draw the two means and a thick line between them."""
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    means = {False: row.comparison.plain, True: row.comparison.flat}
    finite = {flat: mean for flat, mean in means.items() if queries.is_finite_number(mean)}
    ys = [lanes[flat] for flat in finite]
    axes.plot(list(finite.values()), ys, color=theme.INK, alpha=0.7, linewidth=1.8, zorder=3)
    for flat, mean in finite.items():
        axes.plot([mean], [lanes[flat]], markersize=9.5, **MARKER_STYLES[flat])
