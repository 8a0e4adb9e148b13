"""Coverage diagrams of regressions: does the 80 % interval hold 8 of 10 targets?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import format_number
from flatbayes.reporting.markers import LINE_STYLES, MARKER_STYLES, PANEL_WIDTH_PX, Panel
from flatbayes.reporting.queries import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class CoverageLevels:
    """Coverage of central intervals by their level."""

    levels: Sequence[float]
    coverage: Sequence[float]


def coverage_panels(results: Results) -> list[Panel]:
    """One coverage diagram for each posterior, the predictions of all seeds pooled."""
    panels = []
    for place, posterior in enumerate(queries.list_posteriors(results)):
        pooled = {flat: pool_coverage(queries.select_runs(results, posterior, flat)) for flat in (False, True)}
        if any(pooled.values()):
            panels.append(Panel(posterior, "", coverage_figure(results, f"coverage-{place}", posterior, pooled)))
    return panels


def pool_coverage(runs: Sequence[Mapping[str, Any]]) -> CoverageLevels | None:
    """The curve of all these runs together: coverage averages by the number of targets."""
    parts = [run["reliability"] for run in runs if "levels" in (run.get("reliability") or {})]
    parts = [part for part in parts if part["levels"] == parts[0]["levels"] and part["count"]]
    if not parts:
        return None
    total = sum(part["count"] for part in parts)
    inside = zip(*([share * part["count"] for share in part["coverage"]] for part in parts), strict=True)
    return CoverageLevels(parts[0]["levels"], [sum(column) / total for column in inside])


def coverage_figure(results: Results, name: str, posterior: str, pooled: Mapping[bool, CoverageLevels | None]) -> str:
    """Coverage against level, with the diagonal."""
    with svg.new_figure(PANEL_WIDTH_PX, 300) as figure:
        axes = figure.add_axes((0.135, 0.145, 0.845, 0.835))
        draw_coverage(axes, pooled)
        axes.set_xlabel("level of the central interval")
        axes.set_ylabel("targets inside")
        row = queries.find_row(results, posterior, "miscalibration")
        if row is not None:
            for side, colour, height in (("plain", svg.PLAIN, 0.09), ("flat", svg.FLAT, 0.02)):
                text = f"miscalibration {side} {format_number(row[side])}"
                axes.text(0.99, height, text, color=colour, ha="right", transform=axes.transAxes)
        return svg.to_inline_svg(
            figure, name, f"Coverage diagram of {posterior}: targets inside by level, plain and flat"
        )


def draw_coverage(axes: "Axes", pooled: Mapping[bool, CoverageLevels | None]) -> None:
    """The diagonal and both curves."""
    axes.plot([0, 1], [0, 1], color=svg.INK, alpha=0.45, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    for flat, curve in pooled.items():
        if curve is not None:
            axes.plot(curve.levels, curve.coverage, markersize=4, **{**MARKER_STYLES[flat], **LINE_STYLES[flat]})
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    ticks, labels = [0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"]
    axes.set_xticks(ticks, labels=labels)
    axes.set_yticks(ticks, labels=labels)
    svg.style_axes(axes)
