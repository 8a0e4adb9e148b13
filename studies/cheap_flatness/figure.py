"""Figure of the study: gain in NLL against cost, in gradients and in seconds.

python -m studies.cheap_flatness.figure runs/cheap/digits/cheap.json    # draws cheap.svg again
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from flatbayes.core.files import read_json
from flatbayes.plotting import theme
from flatbayes.plotting.labels import label_points
from flatbayes.reporting import svg
from flatbayes.reporting.summary_figure import WIDE

PANEL_HEIGHT, TOP_MARGIN = 330.0, 46.0
AXES = {"gradients": "gradients a step", "time": "training time, plain = 1"}
COST_SHIFT = 0.018
"""Shift between points of equal cost, as a fraction of the axis."""


def draw_figure(results: Mapping[str, Any]) -> str:
    """A row per posterior and a column per cost, from `cheap.json`, as the text of an SVG file."""
    posteriors = list(dict.fromkeys(row["posterior"] for row in results["rows"]))
    height = TOP_MARGIN + PANEL_HEIGHT * len(posteriors) + 20
    with svg.new_figure(WIDE.width, height) as figure:
        figure.text(
            24 / WIDE.width,
            1 - 26 / height,
            f"Flatness by what it costs: {results['title']}",
            fontsize=15,
            weight="bold",
        )
        note = (
            f"NLL gained over plain training on test data, mean and 95 % interval over {results['seeds']} seeds; "
            "dashed: plain, blue line: SAM"
        )
        figure.text(24 / WIDE.width, 1 - 46 / height, note, fontsize=11, alpha=0.75)
        for row, posterior in enumerate(posteriors):
            rows = [r for r in results["rows"] if r["posterior"] == posterior]
            for column, cost in enumerate(AXES):
                left, wide = (74.0, 372.0) if column == 0 else (474.0, 362.0)
                bottom = height - TOP_MARGIN - PANEL_HEIGHT - PANEL_HEIGHT * row
                box = (left / WIDE.width, (bottom + 26) / height, wide / WIDE.width, (PANEL_HEIGHT - 44) / height)
                draw_panel(figure.add_axes(box), rows, cost, posterior if column == 0 else None)
        description = "; ".join(f"{r['posterior']} {r['mechanism']}: {r['gain']:.4f}" for r in results["rows"])
        label = f"NLL gained over plain by cost. {description}"
        return svg.to_svg_file(figure, "cheap", label, card=True)


def draw_panel(axes: Axes, rows: Sequence[Mapping[str, Any]], cost: str, name: str | None) -> None:
    """Panel of one posterior and one cost; the right axis is the gain as a fraction of SAM's.

    Args:
        axes: Axes to draw on.
        rows: Rows of the posterior.
        cost: A key of `AXES`.
        name: Name of the posterior for the left axis; None for the right panel.
    """
    from matplotlib.ticker import MaxNLocator

    sam = next(row["gain"] for row in rows if row["mechanism"] == "SAM")
    at = separate_values([row["gradients"] if cost == "gradients" else row["time"]["ratio"] for row in rows])
    ends = [row["interval"] or (row["gain"], row["gain"]) for row in rows]
    low, high = min(0.0, *(e[0] for e in ends)), max(0.0, *(e[1] for e in ends))
    room = 0.08 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(min(0.94, *at) - 0.22, max(2.0, *at) + 0.3)
    axes.axhline(0.0, color=theme.PLAIN, linestyle=(0, (4, 1.6)), linewidth=1.2, zorder=1)
    axes.axhline(sam, color=theme.FLAT, linewidth=1.0, alpha=0.6, zorder=1)
    for x, row, (bottom, top) in zip(at, rows, ends, strict=True):
        exact = row["mechanism"] == "SAM"
        axes.plot(
            [x, x], [bottom, top], color=theme.FLAT if exact else theme.INK, linewidth=1.3, alpha=0.55, zorder=3
        )
        colour = theme.FLAT if exact else theme.INK
        axes.plot([x], [row["gain"]], marker="o", color=colour, markersize=6.5, markeredgecolor=theme.PAGE, zorder=4)
    theme.style_axes(axes, grid="y")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(AXES[cost])
    if name is not None:
        axes.set_ylabel(f"{name}: NLL gained")
    else:
        axes.tick_params(axis="y", labelleft=False)  # same scale as the left panel
    if name is None and sam > 0:
        right = axes.secondary_yaxis("right", functions=(lambda y: 100 * y / sam, lambda share: share * sam / 100))
        right.set_ylabel("% of the gain of SAM")
        right.yaxis.set_major_locator(MaxNLocator(5))
        right.tick_params(length=0)
        right.spines["right"].set_alpha(0.0)
    write_labels(axes, at, rows, ends, lines=(0.0, sam))


def separate_values(values: Sequence[float]) -> list[float]:
    """The values, with nearly equal ones shifted apart."""
    step = COST_SHIFT * (max(2.0, *values) - min(0.94, *values) + 0.5)
    order, placed = sorted(range(len(values)), key=lambda k: values[k]), {}
    group = []
    for k in [*order, None]:
        if group and (k is None or values[k] - values[group[-1]] > step / 2):
            for place, member in enumerate(group):
                placed[member] = values[member] + (place - (len(group) - 1) / 2) * step
            group = []
        if k is not None:
            group.append(k)
    return [placed[k] for k in range(len(values))]


def write_labels(
    axes: Axes,
    at: Sequence[float],
    rows: Sequence[Mapping[str, Any]],
    ends: Sequence[tuple[float, float]],
    lines: Sequence[float],
) -> None:
    """Write each label at the nearest position that is free of marks, bars, lines and other labels.

    Args:
        axes: Axes to draw on.
        at: Horizontal positions of the marks.
        rows: Rows, with the labels and the vertical positions of the marks.
        ends: Lower and upper ends of the bars.
        lines: Heights of horizontal lines.
    """
    from matplotlib.transforms import Bbox

    pixels, inside = axes.transData.transform, axes.get_window_extent()
    taken = []
    for x, (bottom, top) in zip(at, ends, strict=True):
        (left, low), (_, high) = pixels((x, bottom)), pixels((x, top))
        taken.append(Bbox.from_extents(left - 1.5, low, left + 1.5, high))
    for level in lines:
        _, y = pixels((0.0, level))
        taken.append(Bbox.from_extents(inside.x0, y - 1, inside.x1, y + 1))
    label_points(axes, [(x, row["gain"], row["mechanism"]) for x, row in zip(at, rows, strict=True)], obstacles=taken)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".svg").write_text(draw_figure(read_json(source)), encoding="utf-8")
