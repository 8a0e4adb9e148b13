"""Reliability diagrams of classifications and coverage diagrams of regressions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from flatbayes.plotting import theme
from flatbayes.plotting.theme import LINE_STYLES, MARKER_STYLES

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

__all__ = ["draw_coverage_curve", "draw_reliability_curve", "plot_coverage", "plot_reliability"]


def plot_reliability(
    confidence: Sequence[float],
    accuracy: Sequence[float],
    counts: Sequence[int],
    intervals: Sequence[tuple[float, float]],
    title: str = "",
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw accuracy against confidence into axes of a program or notebook.

    Args:
        confidence: Mean confidence of each bin.
        accuracy: Accuracy of each bin.
        counts: Number of predictions of each bin.
        intervals: Interval of each accuracy.
        title: Title.
        axes: Where to draw; by default new axes.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> bins = evaluate(fitted, data.test, num_draws=5).reliability
        >>> intervals = bins.accuracy_intervals()
        >>> axes = plot_reliability(bins.confidence, bins.accuracy, bins.counts, intervals, "SWAG")
        >>> axes.get_title().splitlines()[0]
        'SWAG'
    """
    heading = _join_lines(title, "below the dotted line: overconfident; bars: 95 %")
    with _use_unit_square(axes, "confidence (top probability)", "accuracy", heading) as target:
        draw_reliability_curve(target, confidence, accuracy, counts, intervals, flat=True)
        return target


def plot_coverage(
    levels: Sequence[float], coverage: Sequence[float], title: str = "", axes: "Axes | None" = None
) -> "Axes":
    """Draw the fraction of targets inside central intervals against their level.

    Args:
        levels: Probability of each interval.
        coverage: Fraction of the targets inside.
        title: Title.
        axes: Where to draw; by default new axes.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> axes = plot_coverage(levels=[0.5, 0.9], coverage=[0.4, 0.85], title="SWAG")
        >>> axes.get_title().splitlines()[0]
        'SWAG'
    """
    heading = _join_lines(title, "below the dotted line: intervals too narrow")
    with _use_unit_square(axes, "level of the central interval", "targets inside", heading) as target:
        draw_coverage_curve(target, levels, coverage, flat=True)
        return target


def draw_reliability_curve(
    axes: "Axes",
    confidence: Sequence[float],
    accuracy: Sequence[float],
    counts: Sequence[int],
    intervals: Sequence[tuple[float, float]],
    *,
    flat: bool,
    interval_offset: float = 0.0,
) -> None:
    """Draw a line, a mark for each bin, whose area grows with its number of predictions, and a bar behind it.

    Args:
        axes: Where to draw.
        confidence: Mean confidence of each bin.
        accuracy: Accuracy of each bin.
        counts: Number of predictions of each bin.
        intervals: Interval of each accuracy.
        flat: Whether to draw in the style of flat runs.
        interval_offset: Distance in CSS pixels of the bars to the right of the marks.

    Examples:
        >>> from matplotlib import pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> draw_reliability_curve(
        ...     axes, [0.6, 0.9], [0.5, 0.8], [40, 60], [(0.3, 0.7), (0.7, 0.9)], flat=True
        ... )
    """
    axes.plot(confidence, accuracy, **LINE_STYLES[flat])
    _draw_intervals(axes, confidence, intervals, flat, interval_offset)
    axes.scatter(
        confidence,
        accuracy,
        s=[14 + 60 * (count / max(counts)) ** 0.5 for count in counts],
        marker=MARKER_STYLES[flat]["marker"],
        facecolor=theme.FLAT if flat else theme.PAGE,
        edgecolor=MARKER_STYLES[flat]["color"],
        linewidth=1.5,
        zorder=MARKER_STYLES[flat]["zorder"] + 2,
    )


def draw_coverage_curve(axes: "Axes", levels: Sequence[float], coverage: Sequence[float], *, flat: bool) -> None:
    """Draw a line with a mark for each level.

    Args:
        axes: Where to draw.
        levels: Probability of each interval.
        coverage: Fraction of the targets inside.
        flat: Whether to draw in the style of flat runs.

    Examples:
        >>> from matplotlib import pyplot as plt
        >>> figure, axes = plt.subplots()
        >>> draw_coverage_curve(axes, levels=[0.5, 0.9], coverage=[0.4, 0.85], flat=False)
        >>> len(axes.lines)
        1
    """
    axes.plot(levels, coverage, markersize=4, **{**MARKER_STYLES[flat], **LINE_STYLES[flat]})


@contextmanager
def draw_diagonal(axes: "Axes") -> Iterator[None]:
    """Both axes from 0 to 1, with a dotted diagonal behind what is drawn inside."""
    axes.plot([0, 1], [0, 1], color=theme.INK, alpha=0.45, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    yield
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    set_unit_ticks(axes.set_xticks)
    set_unit_ticks(axes.set_yticks)
    theme.style_axes(axes)


def set_unit_ticks(set_ticks: Any) -> None:
    """Ticks at the quarters from 0 to 1."""
    set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", ".25", ".5", ".75", "1"])


@contextmanager
def _use_unit_square(axes: "Axes | None", x_label: str, y_label: str, title: str) -> Iterator["Axes"]:
    """Axes of a program or notebook, with a diagonal behind what is drawn inside."""
    with theme.use_axes(axes, 4.2, 4.4) as target, draw_diagonal(target):
        target.set(xlabel=x_label, ylabel=y_label, title=title)
        yield target


def _join_lines(*lines: str) -> str:
    """The lines that are not empty."""
    return "\n".join(filter(None, lines))


def _draw_intervals(
    axes: "Axes", x: Sequence[float], ends: Sequence[tuple[float, float]], flat: bool, offset: float
) -> None:
    """A thin bar behind each mark, shifted by a few pixels."""
    from matplotlib.transforms import ScaledTranslation

    shift = ScaledTranslation(offset / theme.UNITS_PER_INCH, 0, axes.figure.dpi_scale_trans)
    axes.vlines(
        x,
        [low for low, _ in ends],
        [high for _, high in ends],
        color=LINE_STYLES[flat]["color"],
        alpha=0.5,
        linewidth=1.4,
        zorder=2,
        transform=axes.transData + shift,
    )
