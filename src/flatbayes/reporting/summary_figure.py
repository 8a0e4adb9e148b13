"""One picture for a README: the NLL of every twin, and whether their confidence is earned."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatbayes.reporting import queries, svg
from flatbayes.reporting.figures import VERDICT_COLOURS
from flatbayes.reporting.formats import format_signed, shorten_label, wrap_label
from flatbayes.reporting.markers import MARKER_STYLES
from flatbayes.reporting.queries import Results
from flatbayes.reporting.reliability import draw_reliability, pool_reliability

if TYPE_CHECKING:
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
METRIC_NAMES = {"nll": "NLL", "ece": "ECE", "brier": "Brier score"}


def draw_summary(results: Results) -> str:
    """The picture as an SVG file with a white card behind it."""
    results = queries.select_family(results)
    names = queries.list_metrics(results)
    metric = "nll" if "nll" in names else names[0]
    labels = queries.list_posteriors(results)
    pooled = {
        flat: pool_reliability([r for r in results["runs"] if queries.is_flat(r) == flat]) for flat in (False, True)
    }
    both = any(pooled.values())
    height = HEADING_HEIGHT_PX + FOOTER_HEIGHT_PX + max(ROW_HEIGHT_PX * len(labels), PLOT_HEIGHT_PX if both else 0.0)
    with svg.new_figure(WIDTH_PX, height) as figure:
        title = draw_heading(figure, results, height)
        right_edge = 580.0 if both else WIDTH_PX - MARGIN_PX
        twins = add_axes_px(figure, height, LABEL_WIDTH_PX, right_edge - 70)
        draw_pairs(twins, results, metric, (height - HEADING_HEIGHT_PX - FOOTER_HEIGHT_PX) / len(labels))
        draw_subtitle(
            figure, height, MARGIN_PX, f"{METRIC_NAMES.get(metric, metric)}, plain → flat; a thin line is one seed"
        )
        caption: dict[str, Any] = {"fontsize": 11, "alpha": 0.75, "ha": "right"}
        figure.text(right_edge / WIDTH_PX, 1 - (HEADING_HEIGHT_PX - 12) / height, "flat − plain", **caption)
        if both:
            draw_reliability(add_axes_px(figure, height, 652, WIDTH_PX - MARGIN_PX, PLOT_HEIGHT_PX), pooled)
            draw_subtitle(figure, height, 622, "accuracy by confidence")
            annotate_reliability(figure.axes[-1])
        return svg.to_svg_file(
            figure, "picture", f"{title}. {queries.format_conclusion(results)}", card_background(height)
        )


def card_background(height: float) -> str:
    """A white card with a hairline edge: legible on a light and on a dark page."""
    size = f'width="{WIDTH_PX - 1:g}" height="{height - 1:g}"'
    return f'<rect x="0.5" y="0.5" {size} rx="10" fill="#ffffff" stroke="#d5dae1" />'


def add_axes_px(
    figure: "Figure", height: float, left: float, right: float, axes_height: float | None = None
) -> "Axes":
    """Axes below the heading, down to the foot unless a height is given, in CSS pixels."""
    axes_height = height - HEADING_HEIGHT_PX - FOOTER_HEIGHT_PX if axes_height is None else axes_height
    return figure.add_axes(
        (
            left / WIDTH_PX,
            1 - (HEADING_HEIGHT_PX + axes_height) / height,
            (right - left) / WIDTH_PX,
            axes_height / height,
        )
    )


def draw_subtitle(figure: "Figure", height: float, left: float, text: str) -> None:
    """What a part of the picture shows."""
    figure.text(left / WIDTH_PX, 1 - (HEADING_HEIGHT_PX - 12) / height, text, fontsize=12.5, fontweight="bold")


def draw_heading(figure: "Figure", results: Results, height: float) -> str:
    """What is compared, on what, with what outcome, and the key; returns the title."""
    counts = queries.count_verdicts(results["summary"])
    title = f"{shorten_label(queries.format_flatnesses(results, 'Flat'), 40)} against plain training"
    where = [queries.format_subject(results, "data"), queries.format_subject(results, "model")]
    where.append(queries.format_count(len(queries.list_seeds(results)), "seed"))
    total = len(results["summary"])
    if counts["unknown"] < total:
        better, worse, noise = counts["flat"], counts["plain"], counts["tie"]
        where.append(f"{better} of {total} metrics better, {worse} worse, {noise} within noise")
    figure.text(MARGIN_PX / WIDTH_PX, 1 - 40 / height, title, fontsize=19, fontweight="bold")
    line = shorten_label(" · ".join(filter(None, where)), 120)
    figure.text(MARGIN_PX / WIDTH_PX, 1 - 64 / height, line, fontsize=12.5, alpha=0.75)
    for x, is_flat, word in ((740, False, "plain"), (816, True, "flat")):
        axes = figure.add_axes((x / WIDTH_PX, 1 - 42 / height, 16 / WIDTH_PX, 16 / height))
        axes.axis("off")
        axes.plot([0], [0], markersize=9, clip_on=False, **MARKER_STYLES[is_flat])
        figure.text((x + 22) / WIDTH_PX, 1 - 39 / height, word, fontsize=14, color=MARKER_STYLES[is_flat]["color"])
    return title


def annotate_reliability(axes: "Axes") -> None:
    """What lies above and below the diagonal."""
    axes.set_xlabel("confidence, all posteriors pooled", alpha=0.75)
    axes.text(0.04, 0.93, "underconfident", alpha=0.6, fontsize=10.5)
    axes.text(0.98, 0.05, "overconfident", alpha=0.6, fontsize=10.5, ha="right")


def draw_pairs(axes: "Axes", results: Results, metric: str, row: float) -> None:
    """A row of so many pixels for each posterior: its name, its seeds and means, its difference."""
    labels = queries.list_posteriors(results)
    lane = LANE_OFFSET_PX / row
    for place, posterior in enumerate(labels):
        if place:
            axes.axhline(place - 0.5, color=svg.INK, alpha=0.1, linewidth=0.8, zorder=0)
        lines = wrap_label(posterior, 22)
        lines = lines if len(lines) < 5 else [*lines[:3], f"{lines[3]} …"]
        size = {1: 12.0, 2: 12.0, 3: 10.5, 4: 9.0}[len(lines)]
        write_beside_row(axes, 0, MARGIN_PX - LABEL_WIDTH_PX, place, "\n".join(lines), fontsize=size, ha="left")
        lanes = {False: place - lane, True: place + lane}
        draw_seeds(axes, results, metric, posterior, lanes)
        draw_means(axes, results, metric, posterior, lanes)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.05)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    axes.set_xlabel("bold: the 95 % paired interval of the difference excludes 0", alpha=0.75)
    svg.style_axes(axes, grid="x")


def write_beside_row(axes: "Axes", side: int, shift: float, place: float, text: str, **style: Any) -> None:
    """Text beside a row, `shift` pixels from the left (0) or right (1) end of the axes."""
    axes.annotate(
        text,
        (side, place),
        xycoords=("axes fraction", "data"),
        xytext=(shift, 0),
        textcoords="offset points",
        va="center",
        **style,
    )


def draw_seeds(axes: "Axes", results: Results, metric: str, posterior: str, lanes: Mapping[bool, float]) -> None:
    """Thin slanted lines from the plain to the flat twin of a seed."""
    twins = {
        flat: {run["seed"]: run["metrics"].get(metric) for run in queries.select_runs(results, posterior, flat)}
        for flat in (False, True)
    }
    for seed, plain in twins[False].items():
        flat = twins[True].get(seed)
        if queries.is_finite_number(plain) and queries.is_finite_number(flat):
            ends = ([plain, flat], [lanes[False], lanes[True]])
            axes.plot(*ends, color=svg.INK, alpha=0.25, linewidth=0.9, zorder=2)
    for flat, values in twins.items():
        seen = [value for value in values.values() if queries.is_finite_number(value)]
        at = [lanes[flat]] * len(seen)
        axes.plot(seen, at, "o", color=MARKER_STYLES[flat]["color"], alpha=0.5, markersize=4.5, mew=0, zorder=3)


def draw_means(axes: "Axes", results: Results, metric: str, posterior: str, lanes: Mapping[bool, float]) -> None:
    """The two means joined by a thick line, and the difference as a number at the right edge."""
    row = queries.find_row(results, posterior, metric)
    if row is None:
        return
    means = {flat: row[side] for flat, side in ((False, "plain"), (True, "flat"))}
    drawn = {flat: mean for flat, mean in means.items() if queries.is_finite_number(mean)}
    at = [lanes[flat] for flat in drawn]
    axes.plot(list(drawn.values()), at, color=svg.INK, alpha=0.7, linewidth=1.8, zorder=3)
    for flat, mean in drawn.items():
        axes.plot([mean], [lanes[flat]], markersize=9.5, **MARKER_STYLES[flat])
    word = queries.judge_row(row)
    weight = "bold" if word in ("flat", "plain") else "normal"
    text = format_signed(row.get("difference"))
    style = {"ha": "right", "fontsize": 12.5, "fontweight": weight, "color": VERDICT_COLOURS[word]}
    write_beside_row(axes, 1, 70, (lanes[False] + lanes[True]) / 2, text, **style)
