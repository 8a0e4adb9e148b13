"""Figure of the law: gain against the feature of the rule, and the accuracy of all rules on data sets left out."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from flatbayes.plotting import theme
from flatbayes.reporting import svg

WIDTH, HEIGHT = 900.0, 430.0
MARKERS = {"radius": "o", "uci": "s", "cifar10-small": "D", "interpolation": "^", "sentences": "v", "images": "P"}
STUDY_LABELS = {
    "radius": "MLP without early stopping, MAP",
    "uci": "UCI regression, 10 methods",
    "cifar10-small": "CIFAR-10, 500 images, small ConvNet",
    "interpolation": "digits and CIFAR-10, interpolating networks",
    "sentences": "fine-tuning on sentences, not fitted to",
    "images": "fine-tuning on images, not fitted to",
}
FEATURE_LABELS = {
    "gap": "generalization gap of plain training: validation NLL − training loss",
    "rise": "rise of the validation NLL in plain training, nats",
    "sharpness": "rise of the training loss after a step of 0.05 in plain training",
    "weights_per_example": "weights per training example",
}
MIN_FEATURE = 1e-3
"""Smaller features are drawn here."""
LINEAR_GAIN = 0.01
"""Gain in nats up to which the vertical axis is linear."""


def draw_figure(results: Mapping[str, Any]) -> str:
    """Both panels, from `law.json`, as the text of an SVG file."""
    with svg.new_figure(WIDTH, HEIGHT) as figure:
        draw_gains(figure.add_axes((0.075, 0.13, 0.51, 0.82)), results)
        draw_accuracies(figure.add_axes((0.775, 0.13, 0.205, 0.82)), results)
        counts, test = results["counts"]["law"], results["law_test"][results["rule"]]
        label = (
            f"NLL gained by flat training against {results['rule']} of plain training, {counts['twins']} pairs on "
            f"{counts['data_sets']} data sets; accuracy of the rule on data sets left out {test['accuracy']:.2f}"
        )
        return svg.to_svg_file(figure, "law", label, card=True)


def draw_gains(axes: Axes, results: Mapping[str, Any]) -> None:
    """A mark for each twin: its place is the feature and the gain, its colour the verdict, its shape the study."""
    from matplotlib.lines import Line2D

    feature = results["law"]["features"][0]
    twins = [*results["twins"], *results["fine_tuning"]]
    studies = [study for study in MARKERS if any(twin["study"] == study for twin in twins)]
    for twin in twins:
        colour = theme.VERDICT_COLOURS[twin["outcome"]]
        axes.plot(
            [max(twin[feature], MIN_FEATURE)],
            [twin["gain"]],
            marker=MARKERS[twin["study"]],
            color=colour,
            markerfacecolor=theme.PAGE if twin["outcome"] == "tie" else colour,
            markersize=5.5,
            markeredgewidth=1.1,
            alpha=0.85,
            linestyle="none",
        )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=LINEAR_GAIN)
    axes.axhline(0.0, color=theme.INK, linewidth=0.8)
    if feature in ("gap", "rise"):
        ends = [MIN_FEATURE, max(twin[feature] for twin in twins)]
        axes.plot(ends, ends, color=theme.INK, linewidth=0.9, alpha=0.5, zorder=1)
        axes.annotate(
            f"gain = {feature}",
            (ends[1] ** 0.6, ends[1] ** 0.6),
            xytext=(8, -12),
            textcoords="offset points",
            fontsize=9,
            alpha=0.8,
        )
    axes.xaxis.set_major_formatter(lambda value, _: f"≤ {value:g}" if value == MIN_FEATURE else f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
    low, high = (pick(twin["gain"] for twin in twins) for pick in (min, max))
    axes.set_ylim(3 * min(low, -LINEAR_GAIN), 3 * max(high, LINEAR_GAIN))
    threshold = results["threshold"]
    if threshold is not None:
        axes.axvline(threshold, color=theme.INK, linewidth=1.0, linestyle=(0, (4, 1.6)))
        axes.annotate(
            f"rule: flat to the right of {threshold:.2g}",
            (threshold, 0.985),
            xycoords=("data", "axes fraction"),
            xytext=(5, 0),
            textcoords="offset points",
            va="top",
            fontsize=9.5,
        )
    theme.style_axes(axes)
    axes.set_xlabel(FEATURE_LABELS[feature])
    axes.set_ylabel("test NLL: plain − flat, nats")
    shapes = [
        Line2D([], [], marker=MARKERS[s], color=theme.INK, linestyle="none", markersize=5.5, label=STUDY_LABELS[s])
        for s in studies
    ]
    colours = [
        Line2D([], [], marker="o", color=theme.VERDICT_COLOURS[k], linestyle="none", markersize=5.5, label=text)
        for k, text in (("flat", "flat wins"), ("plain", "plain wins"))
    ]
    tie = Line2D([], [], marker="o", color=theme.TIE, markerfacecolor=theme.PAGE, linestyle="none", markersize=5.5)
    tie.set_label("within noise")
    axes.legend(handles=[*shapes, *colours, tie], loc="lower right", fontsize=8.5, frameon=False, handletextpad=0.3)


def draw_accuracies(axes: Axes, results: Mapping[str, Any]) -> None:
    """Accuracy of every rule on data sets left out, with its 95 % interval over data sets."""
    tests = results["tests"]
    names = sorted(tests, key=lambda name: tests[name]["accuracy"])
    for y, name in enumerate(names):
        low, high = tests[name]["accuracy_interval"]
        is_baseline = name == "majority guess"
        colour = theme.PLAIN if is_baseline else theme.FLAT if name == results["rule"] else theme.TIE
        axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot(
            [tests[name]["accuracy"]],
            [y],
            marker="s" if is_baseline else "o",
            color=colour,
            markerfacecolor=theme.PAGE if is_baseline else colour,
            markersize=7,
            markeredgewidth=1.6,
        )
    baseline = tests["majority guess"]["accuracy"]
    axes.axvline(baseline, color=theme.PLAIN, linewidth=1.0, linestyle=(0, (4, 1.6)), zorder=1)
    axes.set_yticks(range(len(names)), [name.replace(" and ", " and\n") for name in names])
    axes.set_xlim(min(0.3, math.floor(10 * min(t["accuracy_interval"][0] for t in tests.values())) / 10), 1.02)
    theme.style_axes(axes, grid="x")
    axes.set_xlabel("accuracy, data sets left out")
