"""Tables and the figure of the shift command."""

import math
from xml.etree import ElementTree

from rich.console import Console

from flatbayes.prediction import CorruptionMetrics, OODEvaluation, RecalibrationResult
from flatbayes.prediction.shift import DetectionMetrics
from flatbayes.reporting.shift import (
    corruption_table,
    group_by_corruption,
    mean_defined,
    ood_table,
    severity_table,
    temperature_table,
    write_shift_figure,
)


def row(name, severity, accuracy, nll=1.0):
    metrics = {"accuracy": accuracy, "nll": nll, "ece": 0.1, "brier": 0.2}
    return CorruptionMetrics(name, severity, metrics)


ROWS = [
    row("clean", 0, 0.9),
    row("fog", 1, 0.8),
    row("fog", 5, 0.6, math.inf),
    row("snow", 1, 0.7),
    row("snow", 5, 0.5),
]


def shown(table):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_means_by_severity_and_by_corruption():
    table = shown(severity_table(ROWS))
    assert [line.split("│")[1:3] for line in table.splitlines() if "│" in line] == [
        [" clean    ", "   0.9000 "],
        [" 1        ", "   0.7500 "],
        [" 5        ", "   0.5500 "],
    ]
    assert "∞" in table
    table = shown(corruption_table(ROWS))
    assert "fog        │   0.7000" in table
    assert "snow       │   0.6000" in table


def test_a_mean_with_an_infinite_value_is_infinite():
    assert mean_defined([1.0, math.inf]) == math.inf
    assert mean_defined([1.0, math.nan, 3.0]) == 2
    assert math.isnan(mean_defined([math.nan]))


def test_every_curve_starts_at_the_clean_data():
    curves = group_by_corruption(ROWS)
    assert list(curves) == ["fog", "snow"]
    assert {name: [point.metrics["accuracy"] for point in points.values()] for name, points in curves.items()} == {
        "fog": [0.9, 0.8, 0.6],
        "snow": [0.9, 0.7, 0.5],
    }


def test_the_figure_is_complete_and_reproducible(tmp_path):
    path = write_shift_figure(ROWS, "SWAG x SAM on Digits", tmp_path / "shift.svg")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    text = path.read_text()
    for words in ("SWAG x SAM on Digits", "2 corruptions", "accuracy", "NLL in nats", "ECE", "severity"):
        assert words in text
    assert write_shift_figure(ROWS, "SWAG x SAM on Digits", tmp_path / "again.svg").read_text() == text


def test_detection():
    scores = {"entropy": DetectionMetrics(auroc=0.91, aupr_out=0.82, aupr_in=0.73, fpr95=math.nan)}
    evaluation = OODEvaluation(scores, entropy_divergence=3.31, num_test=50, num_ood=40)
    table = shown(ood_table(evaluation, "digits"))
    assert "40 examples of digits (positive) against 50 test examples" in " ".join(table.split())
    assert "0.9100 │   0.8200 │  0.7300 │               –" in table
    assert "3.3100 nats" in table


def test_temperature():
    metrics = dict.fromkeys(("nll", "ece", "adaptive_ece", "classwise_ece", "brier", "accuracy"), 0.5)
    table = shown(temperature_table(RecalibrationResult(1.5, metrics, metrics | {"nll": 0.25})))
    assert "1.500" in table
    assert "nll           │ 0.5000 │   0.2500" in table
