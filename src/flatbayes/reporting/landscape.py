"""SVG files of the loss landscape: slices through draws, and contours over the plane through solutions."""

from collections.abc import Mapping, Sequence

from flatbayes.diagnostics import LossGrid, LossSlice
from flatbayes.plotting import landscape
from flatbayes.plotting.landscape import log_levels
from flatbayes.reporting import svg
from flatbayes.reporting.formats import shorten_label

WIDTH_PX, HEIGHT_PX, MARGIN_PX, TITLE_PX, LEGEND_PX = 520.0, 420.0, 52.0, 24.0, 26.0


def draw_slices(slices: Mapping[str, Sequence[LossSlice]], flat: Mapping[str, bool]) -> str:
    """The loss along random directions as an SVG file: each slice thin, the mean of a posterior's bold.

    Args:
        slices: Slices by the name of the posterior, all at the same distances.
        flat: Whether a posterior was trained flat, by its name.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = {shorten_label(name): [(s.distances, s.losses) for s in group] for name, group in slices.items()}
    with svg.new_figure(WIDTH_PX, HEIGHT_PX) as figure:
        axes = figure.add_axes((0.12, 0.13, 0.85, 0.79))
        landscape.draw_slices(axes, curves, {shorten_label(name): value for name, value in flat.items()})
        label = f"Loss along random directions through draws of {', '.join(slices)}"
        return svg.to_svg_file(figure, "slices", label)


def draw_plane(grid: LossGrid, flat: Mapping[str, bool]) -> str:
    """Contours of the loss over a plane as an SVG file, with named marks for solutions and dots for draws.

    Args:
        grid: The losses, with the coordinates of solutions and draws.
        flat: Whether a posterior or solution was trained flat, by its name.

    Raises:
        ValueError: No loss on the grid is finite.
        ImportError: matplotlib is not installed.
    """
    levels, height = log_levels(grid.losses), _plane_height_px(grid)
    left, bottom = 1.2 * MARGIN_PX, MARGIN_PX + LEGEND_PX
    width, axes_height = WIDTH_PX - 1.5 * MARGIN_PX, height - 1.2 * MARGIN_PX - TITLE_PX - LEGEND_PX
    with svg.new_figure(WIDTH_PX, height) as figure:
        axes = figure.add_axes((left / WIDTH_PX, bottom / height, width / WIDTH_PX, axes_height / height))
        points = {shorten_label(name, 30): point for name, point in grid.points.items()}
        is_flat = {shorten_label(name, 30): landscape.is_flat(name, flat) for name in grid.points} | dict(flat)
        landscape.draw_plane(axes, grid.xs, grid.ys, grid.losses, points, grid.draws, is_flat)
        label = f"Loss over the plane through {', '.join(grid.points)}, from {levels[0]:.3g} to {levels[-1]:.3g}"
        return svg.to_svg_file(figure, "plane", label)


def _plane_height_px(grid: LossGrid) -> float:
    """Height in CSS pixels at which both axes have the same scale, between 150 and 600 for the axes."""
    shape = (grid.ys[-1] - grid.ys[0]) / (grid.xs[-1] - grid.xs[0])
    return 1.2 * MARGIN_PX + TITLE_PX + LEGEND_PX + min(max((WIDTH_PX - 1.5 * MARGIN_PX) * shape, 150.0), 600.0)
