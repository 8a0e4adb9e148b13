"""Reliability diagrams: is a prediction made with confidence 0.8 right in 8 of 10 cases?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flatbayes.metrics import wilson_interval
from flatbayes.reporting import queries, svg
from flatbayes.reporting.formats import format_number
from flatbayes.reporting.markers import LINE_STYLES, MARKER_STYLES, PANEL_WIDTH_PX, Panel
from flatbayes.reporting.queries import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABEL_X = -0.105
INTERVAL_OFFSET_PX = 1.6
"""Pixels from the middle of a mark to the bar of its interval, so that twins do not hide each other."""


def reliability_panels(results: Results) -> list[Panel]:
    """One reliability diagram for each posterior, the predictions of all seeds pooled."""
    panels = []
    for place, posterior in enumerate(queries.list_posteriors(results)):
        pooled = {flat: pool_reliability(queries.select_runs(results, posterior, flat)) for flat in (False, True)}
        if any(pooled.values()):
            panels.append(
                Panel(posterior, "", reliability_figure(results, f"reliability-{place}", posterior, pooled))
            )
    return panels


@dataclass(frozen=True)
class DiagramBins:
    """A reliability diagram's bins: edges, and for each bin a count, mean confidence and accuracy.

    Attributes:
        edges: Edges of the bins, one more than bins.
        counts: Predictions in each bin, those of all runs.
        confidence: Mean confidence in each bin, None where it is empty.
        accuracy: Share of right predictions in each bin, None where it is empty.
        num_runs: How many runs were pooled.
    """

    edges: Sequence[float]
    counts: Sequence[float]
    confidence: Sequence[float | None]
    accuracy: Sequence[float | None]
    num_runs: int = 1

    def points(self) -> tuple[list[float], list[float], list[float]]:
        """Confidence, accuracy and count of the bins that hold anything."""
        kept = [
            (x, y, count)
            for x, y, count in zip(self.confidence, self.accuracy, self.counts, strict=True)
            if count and x is not None and y is not None
        ]
        return [p[0] for p in kept], [p[1] for p in kept], [p[2] for p in kept]

    def intervals(self) -> list[tuple[float, float]]:
        """Wilson's 95 % interval around the accuracy of each point, for as many predictions as a run has there.

        Runs predict the same test examples, so that pooling them smooths the accuracy but adds no examples.
        """
        _, accuracy, counts = self.points()
        fewer = [max(1, round(count / self.num_runs)) for count in counts]
        return [wilson_interval(round(right * count), count) for right, count in zip(accuracy, fewer, strict=True)]


def pool_reliability(runs: Sequence[Mapping[str, Any]]) -> DiagramBins | None:
    """The bins of all these runs together: counts add, confidence and accuracy average by count."""
    parts = [run["reliability"] for run in runs if "edges" in (run.get("reliability") or {})]
    parts = [part for part in parts if part["edges"] == parts[0]["edges"]]
    if not parts:
        return None
    counts = [sum(column) for column in zip(*(part["counts"] for part in parts), strict=True)]

    def average(key: str) -> list[float | None]:
        totals = [
            sum(part[key][place] * part["counts"][place] for part in parts if part["counts"][place])
            for place in range(len(counts))
        ]
        return [total / count if count else None for total, count in zip(totals, counts, strict=True)]

    return DiagramBins(parts[0]["edges"], counts, average("confidence"), average("accuracy"), len(parts))


def reliability_figure(results: Results, name: str, posterior: str, pooled: Mapping[bool, DiagramBins | None]) -> str:
    """Accuracy against confidence with the diagonal, and below how many predictions each bin holds."""
    with svg.new_figure(PANEL_WIDTH_PX, 350) as figure:
        axes = figure.add_axes((0.135, 0.285, 0.845, 0.695))
        below = figure.add_axes((0.135, 0.115, 0.845, 0.145))
        draw_reliability(axes, pooled)
        draw_counts(below, pooled)
        axes.set_ylabel("accuracy")
        axes.yaxis.set_label_coords(LABEL_X, 0.5)
        axes.tick_params(labelbottom=False)
        below.set_xlabel("confidence (top probability)")
        row = queries.find_row(results, posterior, "ece")
        if row is not None:
            means = [format_number(row[side]) for side in ("plain", "flat")]
            axes.text(0.99, 0.09, f"ECE plain {means[0]}", color=svg.PLAIN, ha="right", transform=axes.transAxes)
            axes.text(0.99, 0.02, f"ECE flat {means[1]}", color=svg.FLAT, ha="right", transform=axes.transAxes)
        return svg.to_inline_svg(
            figure, name, f"Reliability diagram of {posterior}: accuracy by confidence, plain and flat"
        )


def draw_reliability(axes: "Axes", pooled: Mapping[bool, DiagramBins | None]) -> None:
    """The diagonal, both curves and the intervals; the larger a mark, the more predictions are in its bin."""
    axes.plot([0, 1], [0, 1], color=svg.INK, alpha=0.45, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
    for flat, bins in pooled.items():
        if bins is None:
            continue
        x, y, counts = bins.points()
        axes.plot(x, y, **LINE_STYLES[flat])
        draw_intervals(axes, x, bins.intervals(), flat)
        mark = {key: value for key, value in MARKER_STYLES[flat].items() if key not in ("color", "markerfacecolor")}
        axes.scatter(
            x,
            y,
            s=[14 + 60 * (count / max(counts)) ** 0.5 for count in counts],
            marker=mark["marker"],
            facecolor=svg.FLAT if flat else svg.PAGE,
            edgecolor=MARKER_STYLES[flat]["color"],
            linewidth=1.5,
            zorder=mark["zorder"] + 2,
        )
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", ".25", ".5", ".75", "1"])
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], labels=["0", ".25", ".5", ".75", "1"])
    svg.style_axes(axes)


def draw_intervals(axes: "Axes", x: Sequence[float], ends: Sequence[tuple[float, float]], flat: bool) -> None:
    """A thin bar behind each mark, those of plain a little to the left and those of flat to the right."""
    from matplotlib.transforms import ScaledTranslation

    aside = ScaledTranslation(
        (INTERVAL_OFFSET_PX if flat else -INTERVAL_OFFSET_PX) / svg.UNITS_PER_INCH, 0, axes.figure.dpi_scale_trans
    )
    axes.vlines(
        x,
        [low for low, _ in ends],
        [high for _, high in ends],
        color=LINE_STYLES[flat]["color"],
        alpha=0.5,
        linewidth=1.4,
        zorder=2,
        transform=axes.transData + aside,
    )


def draw_counts(axes: "Axes", pooled: Mapping[bool, DiagramBins | None]) -> None:
    """How many predictions are in each bin, on a logarithmic scale."""
    for flat, bins in pooled.items():
        if bins is not None:
            look: dict[str, Any] = {"fill": True, "alpha": 0.25} if flat else {"linewidth": 1.0, "alpha": 0.9}
            axes.stairs(bins.counts, bins.edges, baseline=0.7, color=LINE_STYLES[flat]["color"], **look)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.set_xlim(0, 1.02)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], labels=["0", ".25", ".5", ".75", "1"])
    axes.set_ylabel("count")
    axes.yaxis.set_label_coords(LABEL_X, 0.5)
    axes.minorticks_off()
    svg.style_axes(axes, grid="x")
    axes.set_yticks([])
