"""Numbers behind the figures, their axes, and that drawing does not change the state of matplotlib."""

import re
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from flatbayes.experiments import ComparisonResult, RunResult
from flatbayes.experiments.run_result import TrainingHistory
from flatbayes.reporting import write_summary_figure
from flatbayes.reporting.curves import LEARNING_CURVES, average_runs, curve_panels
from flatbayes.reporting.figures import describe_direction, difference_panels, metric_panels

AXIS_LABEL = "flat − plain: NLL in nats"


def test_curves_are_averaged_over_recorded_values():
    columns = ((None, 1.0, None), (None, 3.0, 5.0))
    histories = [TrainingHistory(epoch=(1, 2, 3), val_nll=column) for column in columns]
    runs = [RunResult("MAP", "Plain", seed, {}, history=history) for seed, history in enumerate(histories)]
    runs.append(RunResult("MAP", "Plain", 2, {}))
    assert list(average_runs(runs, LEARNING_CURVES, "val_nll")) == [(2, 2.0, pytest.approx(2**0.5)), (3, 5.0, None)]
    assert average_runs(runs, LEARNING_CURVES, "loss") == []


def test_flat_is_better_on_the_side_that_the_metric_says(glossary):
    assert describe_direction(glossary, "accuracy").startswith("right")
    assert describe_direction(glossary, "nll").startswith("left")
    assert describe_direction(glossary, "novelty") == "flat − plain"


@pytest.mark.parametrize("rounding", [0.0, 1e-17])
def test_differences_that_are_zero_have_an_axis_that_can_be_read(make_results, glossary, rounding):
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=1)
    results["summary"][0].update(difference=rounding, interval=[-rounding, rounding], winner="tie")
    (panel,) = difference_panels(ComparisonResult.from_dict(results), glossary)
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", panel.svg)
    assert {"MAP()", "0", AXIS_LABEL} < set(labels)
    numbers = {*labels} - {"MAP()", AXIS_LABEL}
    assert not any("e" in label for label in numbers)
    assert max(map(len, numbers)) < 9


def test_tiny_differences_have_exponents(make_results, glossary):
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=1)
    results["summary"][0].update(difference=-2e-6, interval=[-4e-6, -1e-7], winner="tie")
    labels = re.findall(
        r"<text[^>]*>([^<]*)</text>", difference_panels(ComparisonResult.from_dict(results), glossary)[0].svg
    )
    assert all(re.fullmatch(r"0|−[\d.]+e−0[67]", label) for label in labels if label not in ("MAP()", AXIS_LABEL))
    assert len(labels) > 2


def test_drawing_does_not_change_the_state_of_matplotlib(make_results, glossary):
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=1)
    before = dict(matplotlib.rcParams)
    metric_panels(ComparisonResult.from_dict(results), glossary)
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_style_of_the_user_does_not_change_the_figures(make_results):
    results = make_results(seeds=2, posteriors=["MAP()"], metrics=["nll"], epochs=4)
    expected = curve_panels(ComparisonResult.from_dict(results))
    with matplotlib.rc_context({"lines.linewidth": 9.0, "axes.facecolor": "red", "text.usetex": True}):
        assert curve_panels(ComparisonResult.from_dict(results)) == expected


@pytest.mark.parametrize(("seeds", "posteriors"), [(5, None), (1, ["A" * 90]), (2, [f"P{k}()" for k in range(8)])])
def test_the_summary_figure_is_a_reproducible_svg_with_fixed_colours(tmp_path, make_results, seeds, posteriors):
    results = make_results(seeds=seeds, posteriors=posteriors, epochs=2)
    first = write_summary_figure(ComparisonResult.from_dict(results), tmp_path / "a.svg")
    second = write_summary_figure(ComparisonResult.from_dict(results), tmp_path / "b.svg")
    text = first.read_text(encoding="utf-8")
    assert text == second.read_text(encoding="utf-8")
    assert "currentColor" not in text
    assert "var(" not in text
    assert text.count("http") == 1
    root = ElementTree.fromstring(text)
    assert root.attrib["width"] == "900"
    words = "".join(root.itertext())
    assert "plain" in words
    assert "flat" in words


def test_the_summary_figure_without_nll_and_reliability_shows_another_metric(tmp_path, make_results):
    results = make_results(seeds=2, metrics=["ece"], epochs=2)
    for run in results["runs"]:
        run["reliability"] = None
    words = write_summary_figure(ComparisonResult.from_dict(results), tmp_path / "a.svg").read_text(encoding="utf-8")
    assert ">ECE; bold" in words
    assert "confidence" not in words
