"""The figure of cheap_flatness.py: what is gained against what it costs, in gradients and in seconds.

python -m studies.cheap_flatness.figure runs/cheap/digits/cheap.json    # draws cheap.svg again
"""

import sys
from pathlib import Path

from flatbayes.core.files import read_json
from flatbayes.reporting import svg
from flatbayes.reporting.summary_figure import CARD_BORDER_COLOUR, WIDTH_PX

PANEL, TOP = 330.0, 46.0
AXES = {"gradients": "gradients a step", "time": "training time, plain = 1"}
APART = 0.018
"""Shift, as a share of the axis, between points of equal cost."""
PLACES = [
    (dx, dy, side)
    for far in range(7)
    for dy in sorted({-11 * far, 11 * far})
    for side, dx in (("left", 8), ("right", -8))
]
"""Where a label may go, nearest first: points from its mark, and the side of the text that faces it."""


def figure(found):
    """Posteriors down, the two costs across, as an SVG file."""
    posteriors = list(dict.fromkeys(row["posterior"] for row in found["rows"]))
    height = TOP + PANEL * len(posteriors) + 20
    with svg.new_figure(WIDTH_PX, height) as drawn:
        drawn.text(
            24 / WIDTH_PX, 1 - 26 / height, f"Flatness by what it costs: {found['title']}", fontsize=15, weight="bold"
        )
        note = (
            f"NLL gained over the plain twin on test data, mean and 95 % interval over {found['seeds']} seeds; "
            "dashed: plain, blue line: SAM"
        )
        drawn.text(24 / WIDTH_PX, 1 - 46 / height, note, fontsize=11, alpha=0.75)
        for row, posterior in enumerate(posteriors):
            rows = [r for r in found["rows"] if r["posterior"] == posterior]
            for column, cost in enumerate(AXES):
                left, wide = (74.0, 372.0) if column == 0 else (474.0, 362.0)
                bottom = height - TOP - PANEL - PANEL * row
                box = (left / WIDTH_PX, (bottom + 26) / height, wide / WIDTH_PX, (PANEL - 44) / height)
                panel(drawn.add_axes(box), rows, cost, posterior if column == 0 else None)
        told = "; ".join(f"{r['posterior']} {r['mechanism']}: {r['gain']:.4f}" for r in found["rows"])
        label = f"NLL gained over plain by cost. {told}"
        return svg.to_svg_file(drawn, "cheap", label, radius=10, border=CARD_BORDER_COLOUR)


def panel(axes, rows, cost, name):
    """One posterior and one cost; the scale on the right is the share of what SAM gains."""
    from matplotlib.ticker import MaxNLocator

    sam = next(row["gain"] for row in rows if row["mechanism"] == "SAM")
    at = spread([row["gradients"] if cost == "gradients" else row["time"]["ratio"] for row in rows])
    ends = [row["interval"] or (row["gain"], row["gain"]) for row in rows]
    low, high = min(0.0, *(e[0] for e in ends)), max(0.0, *(e[1] for e in ends))
    room = 0.08 * (high - low or 1.0)
    axes.set_ylim(low - room, high + room)
    axes.set_xlim(min(0.94, *at) - 0.22, max(2.0, *at) + 0.3)
    axes.axhline(0.0, color=svg.PLAIN, linestyle=(0, (4, 1.6)), linewidth=1.2, zorder=1)
    axes.axhline(sam, color=svg.FLAT, linewidth=1.0, alpha=0.6, zorder=1)
    for x, row, (bottom, top) in zip(at, rows, ends, strict=True):
        exact = row["mechanism"] == "SAM"
        axes.plot([x, x], [bottom, top], color=svg.FLAT if exact else svg.INK, linewidth=1.3, alpha=0.55, zorder=3)
        colour = svg.FLAT if exact else svg.INK
        axes.plot([x], [row["gain"]], marker="o", color=colour, markersize=6.5, markeredgecolor=svg.PAGE, zorder=4)
    svg.style_axes(axes, grid="y")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(AXES[cost])
    if name is not None:
        axes.set_ylabel(f"{name}: NLL gained")
    else:
        axes.tick_params(axis="y", labelleft=False)  # the scale is that of the panel beside it
    if name is None and sam > 0:
        right = axes.secondary_yaxis("right", functions=(lambda y: 100 * y / sam, lambda share: share * sam / 100))
        right.set_ylabel("% of the gain of SAM")
        right.yaxis.set_major_locator(MaxNLocator(5))
        right.tick_params(length=0)
        right.spines["right"].set_alpha(0.0)
    write_names(axes, at, rows, ends, lines=(0.0, sam))


def spread(values):
    """The values, with those that are nearly equal set a little apart, in order."""
    step = APART * (max(2.0, *values) - min(0.94, *values) + 0.5)
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


def write_names(axes, at, rows, ends, lines):
    """Each name at the nearest place that no mark, bar, line or other name takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(axes.figure).get_renderer()
    pixels = axes.transData.transform
    taken = []
    for x, row, (bottom, top) in zip(at, rows, ends, strict=True):
        (left, low), (_, high), (_, middle) = pixels((x, bottom)), pixels((x, top)), pixels((x, row["gain"]))
        taken.append(Bbox.from_extents(left - 1.5, low, left + 1.5, high))
        taken.append(Bbox.from_extents(left - 5, middle - 5, left + 5, middle + 5))
    inside = axes.get_window_extent(renderer)
    for level in lines:
        _, y = pixels((0.0, level))
        taken.append(Bbox.from_extents(inside.x0, y - 1, inside.x1, y + 1))
    for x, row in sorted(zip(at, rows, strict=True), key=lambda pair: -pair[1]["gain"]):
        for dx, dy, side in PLACES:
            text = axes.annotate(
                row["mechanism"],
                (x, row["gain"]),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=9.5,
                zorder=6,
            )
            box = text.get_window_extent(renderer).padded(1.0)
            free = not any(box.overlaps(other) for other in taken)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if free and within:
                break
            text.remove()
        else:
            continue  # no room at all: the table has it
        taken.append(box)
        if abs(dy) > 12:
            lead = {"arrowstyle": "-", "color": svg.INK, "alpha": 0.35, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 4}
            end = (dx, dy)
            axes.annotate("", (x, row["gain"]), xytext=end, textcoords="offset points", arrowprops=lead, zorder=2)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".svg").write_text(figure(read_json(source)), encoding="utf-8")
