"""Colours, line styles and axes of all figures: of reports, of commands, and of the `plot` methods of results.

Figures are drawn in a few placeholder colours. In a page these become `currentColor` and CSS variables, so that a
figure follows the light or dark theme of the reader; in a program and a notebook they are used as they are.

Plain has a hollow square and a dashed line, flat a filled circle and a solid line, in two colours of the Okabe-Ito
palette, which can be told apart without colour vision and in black and white.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

INK = "#010203"
PLAIN = "#d55e01"
FLAT = "#0072b3"
TIE = "#808182"
PAGE = "#fefdfc"

UNITS_PER_INCH = 72.0
RC_PARAMS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "flatbayes",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11.0,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.titlesize": 11.0,
    "axes.labelsize": 11.0,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.13,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 10.0,
    "ytick.labelsize": 10.0,
    "lines.linewidth": 1.8,
    "path.simplify": True,
}

MARKER_STYLES: dict[bool, dict[str, Any]] = {
    False: {"color": PLAIN, "marker": "s", "markerfacecolor": PAGE, "markeredgewidth": 1.8, "zorder": 4},
    True: {"color": FLAT, "marker": "o", "markeredgewidth": 1.8, "zorder": 5},
}
"""Marks of plain (False) and flat (True)."""

LINE_STYLES: dict[bool, dict[str, Any]] = {
    False: {"color": PLAIN, "linestyle": (0, (4, 1.6)), "zorder": 4},
    True: {"color": FLAT, "linestyle": "-", "zorder": 5},
}
"""Lines of plain (False) and flat (True)."""

VERDICT_COLOURS = {"flat": FLAT, "plain": PLAIN, "tie": TIE, "unknown": TIE}


@contextmanager
def use_axes(axes: "Axes | None", width: float, height: float) -> Iterator["Axes"]:
    """Axes of a program or notebook, in the style of this package.

    Args:
        axes: Given axes; None makes a figure with pyplot, which a notebook shows.
        width: Width of a new figure in inches.
        height: Height of a new figure in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    if axes is not None:
        yield axes
        return
    import matplotlib.pyplot as plt  # here, since it is slow to import

    # Outside the context: the first figure loads the backend, and in a notebook that sets `interactive` for good.
    figure = plt.figure(figsize=(width, height), layout="constrained", facecolor="white")
    style: Any = RC_PARAMS | {"axes.facecolor": "white"}
    with plt.rc_context(style):
        yield figure.subplots()


LEGEND_OFFSET = 42.0
"""Distance in points from the axes to a legend below them."""


def add_legend_below(axes: "Axes", **options: Any) -> None:
    """A legend in one row below the label of the horizontal axis, where it covers no data.

    Args:
        axes: Where to draw; its size must be final.
        options: Further arguments of `Axes.legend`.
    """
    figure: Any = axes.figure
    height = axes.get_position().height * figure.get_figheight() * UNITS_PER_INCH
    style: dict[str, Any] = {"loc": "upper center", "ncols": 4, "frameon": False, "fontsize": 9}
    axes.legend(bbox_to_anchor=(0.5, -LEGEND_OFFSET / height), borderaxespad=0.0, **style | options)


def style_axes(axes: "Axes", *, grid: Literal["both", "x", "y"] = "both") -> None:
    """A grid in the background, labels without tick marks, and faint spines."""
    axes.grid(True, axis=grid)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_alpha(0.35)
