"""Figure of the sharpness of a posterior: every measure at the trained network and at draws."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from flatbayes.plotting import theme
from flatbayes.plotting.scales import scale_axis

if TYPE_CHECKING:  # slow to import
    from matplotlib.axes import Axes

__all__ = ["plot_measures"]


def plot_measures(
    trained: Sequence[Mapping[str, float]],
    draws: Sequence[Mapping[str, float]],
    title: str,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw one row for each measure, with dots for draws, a bar for their mean, and diamonds for trained networks.

    Args:
        trained: Measures by name at the network of each member.
        draws: Measures by name at each draw.
        title: Title.
        axes: Where to draw; by default new axes.

    Raises:
        ImportError: matplotlib is not installed.

    Examples:
        >>> trained, draws = [{"loss": 0.2, "worst": 0.1}], [{"loss": 0.3, "worst": 0.2}] * 3
        >>> axes = plot_measures(trained, draws, title="SWAG")
        >>> axes.get_title()
        'SWAG'
    """
    names = list(trained[0])
    with theme.use_axes(axes, 6.0, 1.2 + 0.4 * len(names)) as target:
        for y, name in enumerate(names):
            values = [measures[name] for measures in draws]
            dots, mean, diamonds = (
                target.plot(values, [y] * len(values), "o", color=theme.FLAT, alpha=0.4, markersize=5, mew=0),
                target.plot([fmean(values)], [y], "|", color=theme.FLAT, markersize=16, mew=2),
                target.plot([m[name] for m in trained], [y] * len(trained), "D", color=theme.INK, markersize=5),
            )
            if y == 0:
                for (artist, *_), label in ((dots, "draw"), (mean, "mean of draws"), (diamonds, "trained network")):
                    artist.set_label(label)
        scale_axis(target.xaxis, [measures[name] for name in names for measures in (*trained, *draws)], 6)
        target.set_yticks(range(len(names)), names)
        target.set_ylim(len(names) - 0.5, -0.5)
        target.set_xlabel("value of the measure; losses and gaps in nats")
        target.set_title(title)
        target.legend(frameon=False, fontsize=9)
        theme.style_axes(target, grid="x")
        return target
