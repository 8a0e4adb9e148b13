"""Learning curves: training loss and validation NLL by epoch, averaged over the seeds."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flatbayes.reports import results as ask
from flatbayes.reports import svg
from flatbayes.reports.marks import LINES, WIDTH, Panel
from flatbayes.reports.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {"loss": "training loss", "val_nll": "validation NLL"}


def curve_panels(results: Results) -> list[Panel]:
    """One panel for each posterior whose runs recorded a curve."""
    panels = []
    for place, posterior in enumerate(ask.posteriors(results)):
        curves = {
            key: {flat: averaged(ask.runs_of(results, posterior, flat), key) for flat in (False, True)}
            for key in QUANTITIES
        }
        drawn = {key: twins for key, twins in curves.items() if any(twins.values())}
        if drawn:
            panels.append(Panel(posterior, "", curve_figure(f"curves-{place}", posterior, drawn)))
    return panels


Curve = Sequence[tuple[float, float, float | None]]
"""Epoch, mean over seeds, standard deviation over seeds."""


def averaged(runs: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Mean and deviation over the runs at every epoch where at least one of them recorded a finite value."""
    seen: dict[float, list[float]] = defaultdict(list)
    for run in runs:
        curves = run.get("curves") or {}
        for epoch, value in zip(curves.get("epoch") or [], curves.get(key) or [], strict=False):
            if ask.finite(value):
                seen[epoch].append(value)
    curve = []
    for epoch in sorted(seen):
        mean, sd = ask.mean_sd(seen[epoch])
        if mean is not None:
            curve.append((epoch, mean, sd))
    return curve


def curve_figure(name: str, posterior: str, drawn: Mapping[str, Mapping[bool, Curve]]) -> str:
    """The quantities below each other over a common axis of epochs."""
    height = 60 + 120 * len(drawn)
    with svg.drawing(WIDTH, height) as figure:
        share = 120 / height
        for place, (key, twins) in enumerate(drawn.items()):
            bottom = 1 - (place + 1) * share + 8 / height - place * 14 / height
            box = (48 / WIDTH, bottom, 1 - 58 / WIDTH, share - 26 / height)
            axes = figure.add_axes(box, sharex=figure.axes[0] if figure.axes else None)
            draw_curves(axes, twins)
            axes.set_title(QUANTITIES[key], loc="left", pad=4)
            if place == len(drawn) - 1:
                axes.set_xlabel("epoch")
            else:
                axes.tick_params(labelbottom=False)
        said = " and ".join(QUANTITIES[key] for key in drawn)
        return svg.inline(figure, name, f"Learning curves of {posterior}: {said} by epoch, plain and flat")


def draw_curves(axes: "Axes", twins: Mapping[bool, Curve]) -> None:
    """A line for the mean and a thin band of one standard deviation."""
    from matplotlib.ticker import MaxNLocator

    for flat, curve in twins.items():
        if not curve:
            continue
        epochs = [point[0] for point in curve]
        means = [point[1] for point in curve]
        axes.plot(epochs, means, marker="o" if len(curve) == 1 else None, markersize=5, **LINES[flat])
        if all(point[2] is not None for point in curve):
            low = [mean - (sd or 0.0) for _, mean, sd in curve]
            high = [mean + (sd or 0.0) for _, mean, sd in curve]
            axes.fill_between(epochs, low, high, color=LINES[flat]["color"], alpha=0.16, linewidth=0, zorder=2)
    focus(axes, [point[1] for curve in twins.values() for point in curve])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    svg.quiet(axes)


def focus(axes: "Axes", values: Sequence[float]) -> None:
    """A logarithmic axis where positive values span much more than a factor of two, else a linear one."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    if min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if max(values) > 100 * min(values) else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
