"""Figures of the loss landscape: slices through draws, and contours over a plane through solutions."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flatbayes.plotting import theme
from flatbayes.plotting.labels import label_points
from flatbayes.plotting.scales import scale_axis
from flatbayes.plotting.theme import LINE_STYLES, MARKER_STYLES

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["draw_plane", "draw_slices"]

NUM_LEVELS = 12
DASH_PATTERNS = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (6, 1.4, 1, 1.4)), (0, (3, 1.2)))
"""Line styles of runs that share a colour."""

Curve = tuple[Sequence[float], Sequence[float]]
"""Distances, and the loss at each."""
Point = tuple[float, float, float]
"""Coordinates in a plane, and the distance from it."""


def draw_slices(axes: "Axes", slices: Mapping[str, Sequence[Curve]], flat: Mapping[str, bool]) -> None:
    """Draw the loss along random directions: each slice thin, the mean of a posterior bold.

    Args:
        axes: Where to draw.
        slices: Slices by the name of the posterior, all at the same distances.
        flat: Whether a posterior was trained flat, by its name.

    Examples:
        >>> from matplotlib import pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> curve = ([-1.0, 0.0, 1.0], [0.9, 0.2, 0.8])
        >>> draw_slices(axes, {"SWAG": [curve]}, flat={"SWAG": True})
    """
    for name, line_style in line_styles(slices, flat).items():
        for distances, losses in slices[name]:
            axes.plot(distances, mask_nonfinite(losses), **line_style | {"linewidth": 0.8, "alpha": 0.3})
        mean = [fmean(column) for column in zip(*(losses for _, losses in slices[name]), strict=True)]
        axes.plot(slices[name][0][0], mask_nonfinite(mean), label=name, **line_style | {"linewidth": 2.2})
    scale_axis(axes.yaxis, [loss for group in slices.values() for _, losses in group for loss in losses], 6)
    axes.set_xlabel("distance along filter-normalised directions (1: norm of the weights)", fontsize=10)
    axes.set_ylabel("loss in nats")
    axes.set_title("Loss along random directions; thin: single draws, bold: mean")
    axes.legend(frameon=False)
    theme.style_axes(axes)


def draw_plane(
    axes: "Axes",
    xs: Sequence[float],
    ys: Sequence[float],
    losses: Sequence[Sequence[float]],
    points: Mapping[str, Point],
    draws: Mapping[str, Sequence[Point]],
    flat: Mapping[str, bool],
) -> None:
    """Draw contours of the loss over a plane, with named marks for solutions and dots for draws.

    Levels are evenly spaced in the logarithm of the loss. The distance of a solution from the plane is written beside
    its name.

    Args:
        axes: Where to draw.
        xs: Coordinates of the columns.
        ys: Coordinates of the rows.
        losses: One row for each y.
        points: Named solutions.
        draws: Draws of each posterior by its name.
        flat: Whether a posterior or solution was trained flat, by its name.

    Raises:
        ValueError: No loss on the grid is finite.

    Examples:
        >>> from matplotlib import pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> losses = [[1.0, 0.5, 1.0], [0.5, 0.1, 0.6], [1.0, 0.6, 1.2]]
        >>> draw_plane(
        ...     axes, [0, 1, 2], [0, 1, 2], losses, {"SWAG": (1.0, 1.0, 0.0)}, {}, {"SWAG": True}
        ... )
    """
    level_labels = _draw_contours(axes, xs, ys, losses, log_levels(losses))
    labels: set[str] = set()
    for name, coordinates in draws.items():
        colour = MARKER_STYLES[is_flat(name, flat)]["color"]
        label = f"draws, {'flat' if is_flat(name, flat) else 'plain'}"
        x_values, y_values = [point[0] for point in coordinates], [point[1] for point in coordinates]
        shown = None if label in labels else label
        axes.plot(x_values, y_values, "o", color=colour, alpha=0.55, markersize=3.5, mew=0, zorder=3, label=shown)
        labels.add(label)
    names = []
    for name, (x, y, distance) in points.items():
        label = f"solution, {'flat' if is_flat(name, flat) else 'plain'}"
        shown = None if label in labels else label
        axes.plot([x], [y], linestyle="none", markersize=8, label=shown, **MARKER_STYLES[is_flat(name, flat)])
        labels.add(label)
        suffix = f" ({distance:.2g} away)" if distance > 1e-3 * (xs[-1] - xs[0]) else ""
        names.append((x, y, name + suffix))
    axes.set_xlabel("distance in weight space")
    axes.set_ylabel("distance in weight space")
    axes.set_title("Loss in nats over the plane through the solutions")
    axes.set_aspect("equal")
    axes.set_xlim(xs[0], xs[-1])
    axes.set_ylim(ys[0], ys[-1])
    theme.style_axes(axes)
    axes.grid(False)
    if labels:
        theme.add_legend_below(axes, fontsize=9, ncols=4)
    background = {"facecolor": theme.PAGE, "edgecolor": "none", "alpha": 0.8, "pad": 1.2}
    label_points(axes, names, level_labels, fontsize=10, bbox=background)


def log_levels(losses: Sequence[Sequence[float]], count: int = NUM_LEVELS) -> list[float]:
    """Levels in geometric progression from the smallest to the largest finite loss.

    Where a loss is not positive, the progression is that of the rise above the smallest loss, from a thousandth of
    the range on. Three levels from 1 to 100 are 1, 10 and 100.

    Args:
        losses: Losses on the grid.
        count: Number of levels.

    Raises:
        ValueError: No loss is finite.
    """
    finite = [loss for row in losses for loss in row if math.isfinite(loss)]
    if not finite:
        raise ValueError("No loss on the grid is finite: choose a smaller grid, or check the runs first.")
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * abs(high):
        return [low, low + max(abs(low), 1.0) * 1e-6]
    ends = (low, high) if low > 0 else ((high - low) / 1000, high - low)
    ratio = (ends[1] / ends[0]) ** (1 / (count - 1))
    levels = [ends[0] * ratio**k for k in range(count - 1)] + [ends[1]]
    return levels if low > 0 else [low, *(low + level for level in levels)]


def line_styles(names: Mapping[str, Any], flat: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Line styles by name: a colour for plain or flat, and dashes where several share a colour."""
    sides = {side: [name for name in names if is_flat(name, flat) == side] for side in (False, True)}
    styles = {}
    for name in names:
        side = is_flat(name, flat)
        line_style = dict(LINE_STYLES[side])
        if len(sides[side]) > 1:
            line_style["linestyle"] = DASH_PATTERNS[sides[side].index(name) % len(DASH_PATTERNS)]
        styles[name] = line_style
    return styles


def is_flat(name: str, flat: Mapping[str, bool]) -> bool:
    """Whether a posterior, or its solution as in `x run 2`, was trained flat."""
    return flat.get(name, flat.get(name.rpartition(" run ")[0], False))


def mask_nonfinite(losses: Sequence[float]) -> list[float]:
    """Losses with NaN, which leaves a gap, for those that are not finite."""
    return [loss if math.isfinite(loss) else math.nan for loss in losses]


def _draw_contours(
    axes: "Axes",
    xs: Sequence[float],
    ys: Sequence[float],
    losses: Sequence[Sequence[float]],
    levels: Sequence[float],
) -> "list[Text]":
    """Bands that darken with the loss, a line at each level, and a number on every third line, which are returned."""
    red, green, blue = (int(theme.INK[k : k + 2], 16) / 255 for k in (1, 3, 5))
    shades = [(red, green, blue, 0.02 + 0.3 * k / len(levels)) for k in range(len(levels))]
    finite = [mask_nonfinite(row) for row in losses]
    axes.contourf(xs, ys, finite, levels=list(levels), colors=shades, extend="max", zorder=0)
    lines = axes.contour(
        xs, ys, finite, levels=list(levels), colors=[theme.INK], linewidths=0.6, alpha=0.55, zorder=1
    )
    return list(axes.clabel(lines, levels=list(levels)[1::3], fmt=_level_format(levels), fontsize=8))


def _level_format(levels: Sequence[float]) -> str:
    """Format with as many significant digits as neighbouring labels need to differ, at least two."""
    labelled = list(levels)[1::3]
    for digits in range(2, 7):
        if len({f"{level:.{digits}g}" for level in labelled}) == len(labelled):
            return f"%.{digits}g"
    return "%.6g"
