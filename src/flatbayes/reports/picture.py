"""One picture for a README: the NLL of every twin, and whether their confidence is earned."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flatbayes.reports import results as ask
from flatbayes.reports import svg
from flatbayes.reports.figures import VERDICT_COLOURS
from flatbayes.reports.formats import shorten, signed, wrapped
from flatbayes.reports.marks import MARKERS
from flatbayes.reports.reliability import draw_reliability, pool
from flatbayes.reports.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 900.0
EDGE = 28.0
LEFT = 200.0
TOP = 124.0
BOTTOM = 56.0
ROW = 46.0
PLOT = 232.0
LANE = 8.0
NAMES = {"nll": "NLL", "ece": "ECE", "brier": "Brier score"}


def picture(results: Results) -> str:
    """The picture as an SVG file with a white card behind it."""
    results = ask.of_family(results)
    names = ask.metrics(results)
    metric = "nll" if "nll" in names else names[0]
    labels = ask.posteriors(results)
    pooled = {flat: pool([r for r in results["runs"] if ask.is_flat(r) == flat]) for flat in (False, True)}
    both = any(pooled.values())
    height = TOP + BOTTOM + max(ROW * len(labels), PLOT if both else 0.0)
    with svg.drawing(WIDTH, height) as figure:
        title = heading(figure, results, height)
        right_edge = 580.0 if both else WIDTH - EDGE
        twins = axes_between(figure, height, LEFT, right_edge - 70)
        draw_pairs(twins, results, metric, (height - TOP - BOTTOM) / len(labels))
        subtitle(figure, height, EDGE, f"{NAMES.get(metric, metric)}, plain → flat; a thin line is one seed")
        caption: dict[str, Any] = {"fontsize": 11, "alpha": 0.75, "ha": "right"}
        figure.text(right_edge / WIDTH, 1 - (TOP - 12) / height, "flat − plain", **caption)
        if both:
            draw_reliability(axes_between(figure, height, 652, WIDTH - EDGE, PLOT), pooled)
            subtitle(figure, height, 622, "accuracy by confidence")
            annotate(figure.axes[-1])
        return svg.standalone(figure, "picture", f"{title}. {ask.conclusion(results)}", card(height))


def card(height: float) -> str:
    """A white card with a hairline edge: legible on a light and on a dark page."""
    size = f'width="{WIDTH - 1:g}" height="{height - 1:g}"'
    return f'<rect x="0.5" y="0.5" {size} rx="10" fill="#ffffff" stroke="#d5dae1" />'


def axes_between(figure: "Figure", height: float, left: float, right: float, tall: float | None = None) -> "Axes":
    """Axes below the heading, down to the foot unless a height is given, in CSS pixels."""
    tall = height - TOP - BOTTOM if tall is None else tall
    return figure.add_axes((left / WIDTH, 1 - (TOP + tall) / height, (right - left) / WIDTH, tall / height))


def subtitle(figure: "Figure", height: float, left: float, text: str) -> None:
    """What a part of the picture shows."""
    figure.text(left / WIDTH, 1 - (TOP - 12) / height, text, fontsize=12.5, fontweight="bold")


def heading(figure: "Figure", results: Results, height: float) -> str:
    """What is compared, on what, with what outcome, and the key; returns the title."""
    counts = ask.tally(results["summary"])
    title = f"{shorten(ask.flat_name(results, 'Flat'), 40)} against plain training"
    where = [ask.subject(results, "data"), ask.subject(results, "model")]
    where.append(ask.counted(len(ask.seeds(results)), "seed"))
    total = len(results["summary"])
    if counts["unknown"] < total:
        better, worse, noise = counts["flat"], counts["plain"], counts["tie"]
        where.append(f"{better} of {total} metrics better, {worse} worse, {noise} within noise")
    figure.text(EDGE / WIDTH, 1 - 40 / height, title, fontsize=19, fontweight="bold")
    line = shorten(" · ".join(filter(None, where)), 120)
    figure.text(EDGE / WIDTH, 1 - 64 / height, line, fontsize=12.5, alpha=0.75)
    for x, is_flat, word in ((740, False, "plain"), (816, True, "flat")):
        axes = figure.add_axes((x / WIDTH, 1 - 42 / height, 16 / WIDTH, 16 / height))
        axes.axis("off")
        axes.plot([0], [0], markersize=9, clip_on=False, **MARKERS[is_flat])
        figure.text((x + 22) / WIDTH, 1 - 39 / height, word, fontsize=14, color=MARKERS[is_flat]["color"])
    return title


def annotate(axes: "Axes") -> None:
    """What lies above and below the diagonal."""
    axes.set_xlabel("confidence, all posteriors pooled", alpha=0.75)
    axes.text(0.04, 0.93, "underconfident", alpha=0.6, fontsize=10.5)
    axes.text(0.98, 0.05, "overconfident", alpha=0.6, fontsize=10.5, ha="right")


def draw_pairs(axes: "Axes", results: Results, metric: str, row: float) -> None:
    """A row of so many pixels for each posterior: its name, its seeds and means, its difference."""
    labels = ask.posteriors(results)
    lane = LANE / row
    for place, posterior in enumerate(labels):
        if place:
            axes.axhline(place - 0.5, color=svg.INK, alpha=0.1, linewidth=0.8, zorder=0)
        lines = wrapped(posterior, 22)
        lines = lines if len(lines) < 5 else [*lines[:3], f"{lines[3]} …"]
        size = {1: 12.0, 2: 12.0, 3: 10.5, 4: 9.0}[len(lines)]
        write(axes, 0, EDGE - LEFT, place, "\n".join(lines), fontsize=size, ha="left")
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
    svg.quiet(axes, grid="x")


def write(axes: "Axes", side: int, shift: float, place: float, text: str, **style: Any) -> None:
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
        flat: {run["seed"]: run["metrics"].get(metric) for run in ask.runs_of(results, posterior, flat)}
        for flat in (False, True)
    }
    for seed, plain in twins[False].items():
        flat = twins[True].get(seed)
        if ask.finite(plain) and ask.finite(flat):
            ends = ([plain, flat], [lanes[False], lanes[True]])
            axes.plot(*ends, color=svg.INK, alpha=0.25, linewidth=0.9, zorder=2)
    for flat, values in twins.items():
        seen = [value for value in values.values() if ask.finite(value)]
        at = [lanes[flat]] * len(seen)
        axes.plot(seen, at, "o", color=MARKERS[flat]["color"], alpha=0.5, markersize=4.5, mew=0, zorder=3)


def draw_means(axes: "Axes", results: Results, metric: str, posterior: str, lanes: Mapping[bool, float]) -> None:
    """The two means joined by a thick line, and the difference as a number at the right edge."""
    row = ask.row_of(results, posterior, metric)
    if row is None:
        return
    means = {flat: row[side] for flat, side in ((False, "plain"), (True, "flat"))}
    drawn = {flat: mean for flat, mean in means.items() if ask.finite(mean)}
    at = [lanes[flat] for flat in drawn]
    axes.plot(list(drawn.values()), at, color=svg.INK, alpha=0.7, linewidth=1.8, zorder=3)
    for flat, mean in drawn.items():
        axes.plot([mean], [lanes[flat]], markersize=9.5, **MARKERS[flat])
    word = ask.verdict(row)
    weight = "bold" if word in ("flat", "plain") else "normal"
    text = signed(row.get("difference"))
    style = {"ha": "right", "fontsize": 12.5, "fontweight": weight, "color": VERDICT_COLOURS[word]}
    write(axes, 1, 70, (lanes[False] + lanes[True]) / 2, text, **style)
