"""Every figure of every report can be read: labels, titles, units, and nothing written on top of something else."""

import math
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from figure_checks import check_figure
from flatbayes.core.files import read_json
from flatbayes.diagnostics import LossGrid, LossSlice
from flatbayes.experiments import ComparisonResult
from flatbayes.metrics import DEFINITIONS
from flatbayes.plotting.labels import spread_positions
from flatbayes.plotting.scales import label_metric, needs_log_scale, scale_axis
from flatbayes.prediction import CorruptionMetrics
from flatbayes.reporting import svg
from flatbayes.reporting.calibration_figures import coverage_panels, reliability_panels
from flatbayes.reporting.curves import LANDSCAPE_CURVES, LEARNING_CURVES, SHIFT_CURVES, curve_panels
from flatbayes.reporting.figures import difference_panels, metric_panels
from flatbayes.reporting.landscape import draw_plane, draw_slices
from flatbayes.reporting.queries import default_glossary, list_metrics, select_family
from flatbayes.reporting.shift import write_shift_figure
from flatbayes.reporting.summary_figure import draw_summary

ROOT = Path(__file__).parents[2]
LONG_LABEL = "Ensemble(member=SWAG(rank=10, scale=1.0, prior_precision=0.001), size=3)"


@pytest.fixture
def figures(monkeypatch):
    """Checks every figure at the moment at which it becomes an SVG; the number of figures."""
    checked, clean = [], svg.clean_svg

    def check(figure, name, colours):
        root = clean(figure, name, colours)  # first, since drawing it otherwise changes its resolution
        check_figure(figure, titled=colours is svg.FILE_COLOURS)
        checked.append(name)
        return root

    monkeypatch.setattr(svg, "clean_svg", check)
    return checked


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("case", ["demo", "one seed", "long names", "no reliability"])
def test_summary_figures(figures, make_results, case, narrow):
    if case == "demo":
        results = read_json(ROOT / "docs" / "results" / "demo.json")
    else:
        labels = [LONG_LABEL, "MAP()"] if case == "long names" else None
        results = make_results(
            seeds=1 if case == "one seed" else 5, posteriors=labels, metrics=["nll", "ece"], epochs=2
        )
    if case == "no reliability":
        for run in results["runs"]:
            run["reliability"] = None
    draw_summary(ComparisonResult.from_dict(results), narrow=narrow)
    assert len(figures) == 1


@pytest.mark.parametrize("draw", [metric_panels, difference_panels])
@pytest.mark.parametrize("family", ["", "Shift", "Sharpness"])
def test_panels_of_metrics(figures, measured, family, draw):
    results = select_family(ComparisonResult.from_dict(measured), family)
    draw(results, default_glossary())
    assert len(figures) == len(list_metrics(results)) > 1


@pytest.mark.parametrize("curves", [LEARNING_CURVES, SHIFT_CURVES, LANDSCAPE_CURVES], ids=lambda curves: curves.name)
def test_curves(figures, measured, curves):
    for run in measured["runs"]:
        run["details"]["loss_slice"] = {"distances": [-1.0, 0.0, 1.0], "losses": [2.0, 0.1, 1.7]}
    assert len(curve_panels(ComparisonResult.from_dict(measured), curves)) == len(figures) == 2


def test_reliability(figures, measured):
    assert len(reliability_panels(select_family(ComparisonResult.from_dict(measured)))) == len(figures) == 2


def test_coverage(figures, measured):
    levels = [0.1 * k for k in range(1, 10)]
    for run in measured["runs"]:
        run["reliability"] = {"levels": levels, "coverage": levels, "count": 40}
    assert len(coverage_panels(select_family(ComparisonResult.from_dict(measured)))) == len(figures) == 2


@pytest.mark.parametrize("num_corruptions", [1, 19])
def test_every_line_of_a_corruption_has_its_name(figures, tmp_path, num_corruptions):
    def row(name, severity, value):
        return CorruptionMetrics(name, severity, {"accuracy": 1 - value, "nll": 30 * value, "ece": value})

    names = [f"kind_of_noise_{k}" for k in range(num_corruptions)]
    rows = [row("clean", 0, 0.01)] + [
        row(name, severity, 0.02 * severity + 0.001 * (k % 3)) for k, name in enumerate(names) for severity in (1, 5)
    ]
    path = write_shift_figure(rows, "SWAG(rank=10) x SAM(rho=0.1) on CIFAR10(path='somewhere')", tmp_path / "a.svg")
    text = path.read_text(encoding="utf-8")
    for name in names:
        assert text.count(f">{name.replace('_', ' ')}<") == 3
    assert figures == ["shift"]


def test_planes_with_neighbouring_solutions(figures):
    xs = tuple(k / 4 for k in range(-4, 9))
    losses = tuple(tuple(1.8 + 0.001 * (x * x + 3 * y * y) for x in xs) for y in xs)
    points = {"plain": (0.0, 0.0, 0.0), "flat": (0.01, 0.01, 0.3), LONG_LABEL: (0.02, 0.0, 0.0), "x": (2.0, 2.0, 0.0)}
    draws = {"plain": ((0.5, 0.5, 0.1),), "flat": ((1.0, 0.3, 0.2),)}
    text = draw_plane(LossGrid(xs, xs, losses, points, draws), {"flat": True})
    assert all(f">{name}<" in text for name in ("plain", "flat (0.3 away)", "x"))
    assert figures == ["plane"]


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_slices(figures, scale):
    slices = [LossSlice((-1.0, 0.0, 1.0), (2.0 * scale, 1.0, 3.0 * scale))]
    draw_slices({"plain": slices, LONG_LABEL: slices}, {"plain": False})
    assert figures == ["slices"]


def test_every_metric_has_a_label_with_its_unit():
    for metric, definition in DEFINITIONS.items():
        label = label_metric(metric)
        assert "_" not in label
        assert ("nats" in label) == any(word in definition.lower() for word in ("nats", "nll", "loss", "rise"))
        assert ("target's unit" in label) == ("target's unit" in definition)


def draw_axes(*, label="loss", text=None, mark=(0.5, 0.5)):
    """A small figure; the text is in the middle."""
    figure = Figure()
    axes = figure.subplots()
    axes.plot(*mark, "o")
    axes.set(xlabel=label, ylabel="value", title="title", xlim=(0, 1), ylim=(0, 1))
    for entry in text or ():
        axes.text(0.2, 0.2, entry)
    return figure


def test_the_check_finds_what_cannot_be_read():
    check_figure(draw_axes(text=["free"]))
    for faulty in (
        draw_axes(label=""),
        draw_axes(text=["first", "second"]),
        draw_axes(text=["under a mark"], mark=(0.25, 0.22)),
        draw_axes(text=["far too long for the figure" * 8]),
    ):
        with pytest.raises(AssertionError):
            check_figure(faulty)
    unlabelled = draw_axes()
    unlabelled.axes[0].set_yticks([])
    with pytest.raises(AssertionError):
        check_figure(unlabelled)


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([1.0, 10.0], False),
        ([1.0, 10.1], True),
        ([0.0, 100.0], False),
        ([-1.0, 100.0], False),
        ([1.0, math.inf, 5.0], False),
        ([math.nan, 1e-3, 1.0], True),
        ([], False),
    ],
)
@pytest.mark.parametrize("name", ["x", "y"])
def test_axes_are_logarithmic_over_more_than_a_power_of_ten(name, values, is_log):
    axes = Figure().subplots()
    scale_axis(axes.xaxis if name == "x" else axes.yaxis, values)
    scales = {"x": axes.get_xscale(), "y": axes.get_yscale()}
    assert needs_log_scale(values) == is_log
    assert scales == {"x": "linear", "y": "linear"} | {name: "log" if is_log else "linear"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.2, 0.8], [0.2, 0.8]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.5, 0.45, 0.55], [0.5, 0.4, 0.6]),
        ([0.0, 0.0], [0.0, 0.1]),
        ([1.0, 1.0, 0.99], [0.9, 1.0, 0.8]),
    ],
)
def test_positions_are_spread_as_little_as_possible(values, expected):
    assert spread_positions(values, 0.1, 0.0, 1.0) == pytest.approx(expected)


def test_every_colour_of_a_file_has_a_dark_one(make_results):
    text = draw_summary(ComparisonResult.from_dict(make_results(seeds=2, metrics=["nll"], epochs=2)))
    style, drawing = re.search(r"<style>(.*?)</style>(.*)", text, re.DOTALL).groups()
    assert style.startswith("@media (prefers-color-scheme: dark)")
    for key, colour in set(re.findall(r"(fill|stroke): (#[0-9a-f]{6})", drawing)):
        assert re.search(rf'\[style\*="{key}: {colour}"\] {{ {key}: #(?!{colour[1:]})', style), colour
