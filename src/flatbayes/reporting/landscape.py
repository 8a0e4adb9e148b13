"""Figures of the loss landscape: slices through draws, and contours over the plane through solutions."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from flatbayes.diagnostics import LossGrid, LossSlice
from flatbayes.reporting import svg
from flatbayes.reporting.formats import shorten_label
from flatbayes.reporting.svg import LINE_STYLES, MARKER_STYLES

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

WIDTH_PX, HEIGHT_PX, MARGIN_PX = 520.0, 400.0, 52.0
NUM_LEVELS = 12
DASH_PATTERNS = ("-", (0, (5, 1.6)), (0, (1, 1.2)), (0, (6, 1.4, 1, 1.4)), (0, (3, 1.2)))
"""Line styles of runs that share a colour."""


def draw_slices(slices: Mapping[str, Sequence[LossSlice]], flat: Mapping[str, bool]) -> str:
    """The loss along random directions as an SVG file: each slice thin, the mean of a posterior's bold.

    Args:
        slices: Slices by the name of the posterior, all at the same distances.
        flat: Whether a posterior was trained flat, by its name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    with svg.new_figure(WIDTH_PX, HEIGHT_PX) as figure:
        axes = figure.add_axes((0.12, 0.13, 0.85, 0.83))
        for name, style in line_styles(slices, flat).items():
            for loss_slice in slices[name]:
                thin = style | {"linewidth": 0.8, "alpha": 0.3}
                axes.plot(loss_slice.distances, _mask_nonfinite(loss_slice.losses), **thin)
            mean = [fmean(column) for column in zip(*(s.losses for s in slices[name]), strict=True)]
            axes.plot(
                slices[name][0].distances,
                _mask_nonfinite(mean),
                label=shorten_label(name),
                **style | {"linewidth": 2.2},
            )
        if all(loss > 0 for group in slices.values() for loss_slice in group for loss in loss_slice.losses):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
            axes.yaxis.set_minor_formatter(lambda loss, _: "")
        axes.set_xlabel("distance along filter-normalised random directions")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        svg.style_axes(axes)
        label = f"Loss along random directions through draws of {', '.join(slices)}"
        return svg.to_svg_file(figure, "slices", label)


def draw_plane(grid: LossGrid, flat: Mapping[str, bool]) -> str:
    """Contours of the loss over a plane as an SVG file, with named marks for solutions and dots for draws.

    Levels are evenly spaced in the logarithm of the loss. The distance of a solution from the plane is written beside
    its name.

    Args:
        grid: The losses, with the coordinates of solutions and draws.
        flat: Whether a posterior or solution was trained flat, by its name.

    Raises:
        ValueError: No loss on the grid is finite.
        ImportError: matplotlib is not installed.
    """
    levels = log_levels(grid.losses)
    height = _plane_height_px(grid)
    with svg.new_figure(WIDTH_PX, height) as figure:
        axes = figure.add_axes(
            (MARGIN_PX / WIDTH_PX, MARGIN_PX / height, 1 - 1.4 * MARGIN_PX / WIDTH_PX, 1 - 1.4 * MARGIN_PX / height)
        )
        _draw_contours(axes, grid, levels)
        for name, coordinates in grid.draws.items():
            colour = MARKER_STYLES[_is_flat(name, flat)]["color"]
            xs, ys = [point[0] for point in coordinates], [point[1] for point in coordinates]
            axes.plot(xs, ys, "o", color=colour, alpha=0.55, markersize=3.5, mew=0, zorder=3)
        for name, (x, y, distance) in grid.points.items():
            axes.plot([x], [y], linestyle="none", markersize=8, **MARKER_STYLES[_is_flat(name, flat)])
            suffix = f" ({distance:.2g} away)" if distance > 1e-3 * (grid.xs[-1] - grid.xs[0]) else ""
            _annotate_point(axes, x, y, shorten_label(name, 30) + suffix)
        axes.set_xlabel("distance in weight space")
        axes.set_aspect("equal")
        axes.set_xlim(grid.xs[0], grid.xs[-1])
        axes.set_ylim(grid.ys[0], grid.ys[-1])
        svg.style_axes(axes)
        axes.grid(False)
        label = f"Loss over the plane through {', '.join(grid.points)}, from {levels[0]:.3g} to {levels[-1]:.3g}"
        return svg.to_svg_file(figure, "plane", label)


def _plane_height_px(grid: LossGrid) -> float:
    """Height in CSS pixels at which both axes have the same scale, between 150 and 600 for the axes."""
    shape = (grid.ys[-1] - grid.ys[0]) / (grid.xs[-1] - grid.xs[0])
    return 1.4 * MARGIN_PX + min(max((WIDTH_PX - 1.4 * MARGIN_PX) * shape, 150.0), 600.0)


def log_levels(losses: Sequence[Sequence[float]], count: int = NUM_LEVELS) -> list[float]:
    """Levels in geometric progression from the smallest to the largest finite loss.

    Where a loss is not positive, the progression is that of the rise above the smallest loss, from a thousandth of
    the range on.

    >>> log_levels([[1.0, 100.0]], 3)
    [1.0, 10.0, 100.0]

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


def _draw_contours(axes: "Axes", grid: LossGrid, levels: Sequence[float]) -> None:
    """Bands that darken with the loss, a thin line at each level, and a number on every third line."""
    shades = [(*_ink_rgb(), 0.02 + 0.3 * k / len(levels)) for k in range(len(levels))]
    losses = [[loss if math.isfinite(loss) else math.nan for loss in row] for row in grid.losses]
    axes.contourf(grid.xs, grid.ys, losses, levels=list(levels), colors=shades, extend="max", zorder=0)
    lines = axes.contour(
        grid.xs, grid.ys, losses, levels=list(levels), colors=[svg.INK], linewidths=0.6, alpha=0.55, zorder=1
    )
    axes.clabel(lines, levels=list(levels)[1::3], fmt="%.2g", fontsize=8)


def _annotate_point(axes: "Axes", x: float, y: float, text: str) -> None:
    """Write a name above a mark, on a background that hides the contours."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        fontsize=10,
        zorder=6,
        bbox={"facecolor": svg.PAGE, "edgecolor": "none", "alpha": 0.8, "pad": 1.2},
    )


def line_styles(names: Mapping[str, Any], flat: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Line styles by name: a colour for plain or flat, and dashes where several share a colour."""
    sides = {side: [name for name in names if _is_flat(name, flat) == side] for side in (False, True)}
    styles = {}
    for name in names:
        side = _is_flat(name, flat)
        style = dict(LINE_STYLES[side])
        if len(sides[side]) > 1:
            style["linestyle"] = DASH_PATTERNS[sides[side].index(name) % len(DASH_PATTERNS)]
        styles[name] = style
    return styles


def _mask_nonfinite(losses: Sequence[float]) -> list[float]:
    """Losses with NaN, which leaves a gap, for those that are not finite."""
    return [loss if math.isfinite(loss) else math.nan for loss in losses]


def _ink_rgb() -> tuple[float, float, float]:
    red, green, blue = (int(svg.INK[k : k + 2], 16) / 255 for k in (1, 3, 5))
    return red, green, blue


def _is_flat(name: str, flat: Mapping[str, bool]) -> bool:
    """Whether a posterior, or its solution as in `x run 2`, was trained flat."""
    return flat.get(name, flat.get(name.rpartition(" run ")[0], False))
