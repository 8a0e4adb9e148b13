"""The command line with calibrated posteriors."""

import json

import pytest

from flatbayes import FittedPosterior, calibrate
from flatbayes.cli import main
from flatbayes.data import Digits
from flatbayes.experiments.results import ComparisonResult

FIT = ["fit", "--data", "digits", "--model", "MLP", "--model.hidden", "[8]", "--posterior", "MAP", "--epochs", "2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "run"
    assert main([*FIT, "--num_draws", "1", "--out", str(folder)]) == 0
    return folder


def test_evaluate_shows_metrics_without_and_with_the_calibration(run, capsys):
    fitted = FittedPosterior.load(run)
    calibrate(fitted, Digits().load(seed=0).val, num_draws=1, method="vector").save(run)
    assert main(["evaluate", str(run), "--num_draws", "1"]) == 0
    text = capsys.readouterr().out
    assert "raw" in text
    assert "calibrated" in text
    assert "calibration: vector, fitted to" in text
    result = json.loads((run / "results.json").read_text())["runs"][-1]
    assert result["split"] == "test"
    assert result["metrics"]["nll"] != result["raw_metrics"]["nll"]
    assert f"{result['raw_metrics']['nll']:.4f}" in text
    assert f"{result['metrics']['nll']:.4f}" in text
    assert result["settings"]["calibration"].startswith("vector")
    assert ComparisonResult.load(run).runs[-1].raw_metrics == result["raw_metrics"]
    assert "raw_metrics" not in json.loads((run / "results.json").read_text())["runs"][0]  # of fit
