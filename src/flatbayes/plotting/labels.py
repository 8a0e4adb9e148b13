"""Labels in figures that cross neither marks nor each other."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flatbayes.plotting import theme

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

__all__ = ["label_line_ends", "label_points", "spread_positions"]

POINTS_PER_INCH = 72.0
LINE_SPACING = 1.2
"""Distance of two lines of text, relative to the font size."""
MARK_RADIUS_PT = 5.0
LABEL_POSITIONS = [
    (dx, dy, side)
    for far in range(7)
    for dy in sorted({-11 * far, 11 * far})
    for side, dx in (("left", 8), ("right", -8))
]
"""Candidate positions of a label, nearest first: offset from its mark in points, and horizontal alignment."""
LEADER_OFFSET_PT = 12.0
"""A label farther above or below its mark is joined to it by a line."""


def spread_positions(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart and in the order of the values, with the least squared distance from them.

    They are within [low, high] where there is room for all. Without the gaps, this is isotonic regression.

    Args:
        values: Preferred positions.
        gap: Least distance of two positions.
        low: Smallest position.
        high: Largest position.

    Examples:
        >>> spread_positions([3.0, 0.0, 3.0], 1.0, 0.0, 10.0)
        [2.5, 0.0, 3.5]
    """
    from scipy.optimize import isotonic_regression  # slow to import

    order = np.argsort(values, kind="stable")
    offsets = gap * np.arange(len(values))
    starts = isotonic_regression(np.asarray(values, dtype=float)[order] - offsets).x
    positions = np.empty(len(values))
    positions[order] = starts.clip(low, max(low, high - gap * (len(values) - 1))) + offsets
    return [float(position) for position in positions]


def label_line_ends(
    axes: "Axes",
    ends: Mapping[str, tuple[float, float]],
    styles: Mapping[str, Mapping[str, Any]],
    fontsize: float = 9,
) -> None:
    """Write the name of each line to the right of the axes, beside the end of the line and apart from other names.

    A thin line joins a name and its line. Call it after the limits are set.

    Args:
        axes: Where the lines are drawn; its size must be final.
        ends: Last point of each line, in data coordinates, by name.
        styles: Properties of the text of names that differ from the others.
        fontsize: Size of the text in points.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> lines = axes.plot([0, 1], [[0.0, 0.1], [1.0, 0.9]])
        >>> label_line_ends(axes, {"plain": (1, 0.1), "flat": (1, 0.9)}, {"flat": {"weight": "bold"}})
        >>> [text.get_text() for text in axes.texts]
        ['plain', 'flat']
    """
    figure: Any = axes.figure
    height = axes.get_position().height * figure.get_figheight() * POINTS_PER_INCH
    axes.get_ylim()  # computes limits that are pending
    to_axes = axes.transData + axes.transAxes.inverted()
    anchors = {name: to_axes.transform(end) for name, end in ends.items()}
    gap = fontsize * LINE_SPACING / height
    heights = spread_positions([float(y) for _, y in anchors.values()], gap, 0.0, 1.0)
    for (name, (x, y)), text_y in zip(anchors.items(), heights, strict=True):
        style = {"color": theme.INK, "alpha": 0.85} | dict(styles.get(name, {}))
        axes.annotate(
            name,
            (x, y),
            xycoords="axes fraction",
            xytext=(1.05, text_y),
            textcoords="axes fraction",
            va="center",
            fontsize=fontsize,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": style["color"],
                "alpha": 0.4,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 1,
                "relpos": (0.0, 0.5),
            },
            **style,
        )


def label_points(
    axes: "Axes",
    labels: Iterable[tuple[float, float, str]],
    removable: "Iterable[Text]" = (),
    obstacles: Iterable["Bbox"] = (),
    fontsize: float = 9.5,
    **style: Any,
) -> None:
    """Write each label at the nearest position that is free of marks, obstacles and other labels.

    A label without a free position is left out. Call it after the limits are set.

    Args:
        axes: Axes whose size is final.
        labels: Coordinates of each mark, and the text of its label.
        removable: Texts of less importance: those that cross a mark are removed, labels cross none of the others.
        obstacles: Boxes in pixels that labels must not cross.
        fontsize: Size of the text in points.
        style: Further properties of the texts.

    Examples:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> points = axes.scatter([0.2, 0.8], [0.1, 0.9])
        >>> label_points(axes, [(0.2, 0.1, "plain"), (0.8, 0.9, "flat")])
        >>> [text.get_text() for text in axes.texts]
        ['flat', 'plain']
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    canvas: Any = FigureCanvasAgg(figure.figure)
    renderer = canvas.get_renderer()
    radius = MARK_RADIUS_PT * figure.dpi / POINTS_PER_INCH
    labels = list(labels)
    axes.get_ylim()  # computes limits that are pending
    taken = list(obstacles)
    for x, y, _ in labels:
        column, row = axes.transData.transform((x, y))
        taken.append(Bbox.from_extents(column - radius, row - radius, column + radius, row + radius))
    for text in removable:
        box = text.get_window_extent(renderer)
        if any(box.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(box)
    inside = axes.get_window_extent(renderer)
    for x, y, name in sorted(labels, key=lambda label: -label[1]):
        for dx, dy, side in LABEL_POSITIONS:
            text = axes.annotate(
                name,
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=fontsize,
                zorder=6,
                **style,
            )
            box = text.get_window_extent(renderer).padded(1.0)
            within = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if within and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:
            continue
        taken.append(box)
        if abs(dy) > LEADER_OFFSET_PT:
            leader = {
                "arrowstyle": "-",
                "color": theme.INK,
                "alpha": 0.35,
                "linewidth": 0.7,
                "shrinkA": 1,
                "shrinkB": 4,
            }
            axes.annotate("", (x, y), xytext=(dx, dy), textcoords="offset points", arrowprops=leader, zorder=2)
