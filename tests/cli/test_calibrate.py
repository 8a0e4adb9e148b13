"""The command line with calibrated posteriors, prediction regions and abstention."""

import csv
import json
import re

import numpy as np
import pytest

from flatbayes import FittedPosterior, conformalize
from flatbayes.calibration import fit_abstention
from flatbayes.cli import main
from flatbayes.experiments.results import ComparisonResult

FIT = ["--posterior", "MAP", "--model", "MLP", "--model.hidden", "[8]", "--epochs", "3", "--num_draws", "1"]


def write_table(path, seed, kind, count=300):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(count, 2))
    values = features[:, 0] + 0.5 * generator.normal(size=count)
    targets = np.where(values > 0, "high", "low") if kind == "classes" else values
    sites = np.where(features[:, 1] > 0, "north", "south")
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "y", "site"])
        writer.writerows(zip(*features.T.tolist(), targets.tolist(), sites, strict=True))


def read_table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=["classes", "numbers"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    for seed, name in enumerate(("train.csv", "validation.csv", "new.csv")):
        write_table(folder / name, seed, request.param)
    data = ["--data", str(folder / "train.csv"), "--data.target", "y", "--data.ignore", "[site]"]
    assert main(["fit", *data, *FIT, "--out", str(folder / "run")]) == 0
    return request.param, folder


def test_the_path_of_a_new_user(trained, capsys, monkeypatch):
    """Fit, calibrate, evaluate, predict."""
    kind, folder = trained
    monkeypatch.chdir(folder)
    risk = ["--risk", "[0.25]"] if kind == "classes" else []
    calibrate = ["calibrate", "run", "--input", "validation.csv", "--conformal", "[0.8, 0.9]", *risk]
    assert main(calibrate) == 0
    text = capsys.readouterr().out
    assert FittedPosterior.load("run").training_inputs is not None  # for `predict` and `check`
    assert "at least 80 %" in text
    assert "at least 90 %" in text
    assert "Assumptions: " in text
    assert ("temperature" if kind == "classes" else "scale") in text
    assert "thresholds from 150 examples of validation.csv" in text
    assert main(["evaluate", "run"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("raw", "calibrated", "Conformal prediction at level 0.8", "expected"))
    run = ComparisonResult.load(folder / "run").runs[-1]
    assert run.raw_metrics
    assert run.raw_metrics["nll"] != run.metrics["nll"]
    assert f"{run.raw_metrics['nll']:.4f}" in text
    estimates = {level: region["estimates"] for level, region in run.regions["conformal"].items()}
    assert list(estimates) == ["0.8", "0.9"]
    assert all(f"coverage {rows[0]['coverage']:.4f}" in text for rows in estimates.values())
    assert run.regions["source"] == "validation.csv"
    if kind == "classes":
        assert [row["name"] for row in estimates["0.8"]] == ["all", "high", "low"]
        accepted = run.regions["abstention"]["0.25"]
        assert f"{100 * accepted['accepted']:.1f} % of" in text
        assert f"{100 * accepted['error']:.2f} % of them wrong" in text
    assert set(run.failed_checks) == set(re.findall(r"^ +(\w+): .* \(limit: ", text, re.MULTILINE))
    assert "raw_metrics" not in json.loads((folder / "run" / "results.json").read_text())["runs"][0]  # of fit
    options = ["--risk", "0.25"] if kind == "classes" else []
    assert main(["predict", "run", "--input", "new.csv", "--output", "p.csv", "--conformal", "0.9", "--overwrite",
                 "--keep_columns", "[y]", *options]) == 0  # fmt: skip
    assert "Guarantee: " in capsys.readouterr().out
    rows, fitted = read_table("p.csv"), FittedPosterior.load("run")
    assert fitted.calibration is not None
    if kind == "classes":
        covered = [row["y"] in row["set"].split() for row in rows]
        abstained = [row for row in rows if row["abstained"] == "True"]
        accepted = [row["class"] == row["y"] for row in rows if row["abstained"] == "False"]
        assert abstained
        assert np.mean(accepted) > 0.75
        assert max(float(row["confidence"]) for row in abstained) <= min(
            float(row["confidence"]) for row in rows if row["abstained"] == "False"
        )
    else:
        covered = [float(row["conformal_lower"]) <= float(row["y"]) <= float(row["conformal_upper"]) for row in rows]
    assert 0.82 < np.mean(covered) < 0.98


def test_thresholds_are_those_of_the_library(trained, capsys, monkeypatch):
    kind, folder = trained
    monkeypatch.chdir(folder)
    risk = ["--risk", "[0.3]"] if kind == "classes" else []
    assert main(["calibrate", "run", "--input", "validation.csv", "--method", "none", "--num_draws", "1", *risk]) == 0
    data = json.loads((folder / "run" / "calibration.json").read_text())
    rows, fitted = read_table("validation.csv"), FittedPosterior.load("run")
    assert fitted.calibration is None
    inputs = np.array([[float(row["a"]), float(row["b"])] for row in rows])
    targets = np.array([row["y"] if kind == "classes" else float(row["y"]) for row in rows])
    expected = conformalize(fitted, inputs, targets, 1, level=0.9)
    assert data["conformal"]["0.9"] == expected.predictor.to_dict()
    if kind == "classes":
        indices = np.array([fitted.info["class_names"].index(name) for name in targets])
        rule = fit_abstention(fitted.predict(inputs, 1), indices, risk=0.3)
        assert data["abstention"]["0.3"]["threshold"] == rule.threshold


def test_groups_of_a_column(trained, capsys, monkeypatch):
    _, folder = trained
    monkeypatch.chdir(folder)
    assert main(["calibrate", "run", "--input", "validation.csv", "--groups", "site", "--conformal", "[0.8]"]) == 0
    thresholds = json.loads((folder / "run" / "calibration.json").read_text())["conformal"]["0.8"]["thresholds"]
    assert set(thresholds) == {"north", "south"}
    predict = ["predict", "run", "--input", "new.csv", "--output", "g.csv", "--conformal", "0.8", "--overwrite"]
    assert main(predict) == 0
    assert "site" not in read_table("g.csv")[0]
    assert main(["evaluate", "run"]) == 0  # the run's data have no groups: no coverage is printed
    assert "Conformal prediction" not in capsys.readouterr().out


def test_classes_have_thresholds_of_their_own(trained, capsys, monkeypatch):
    kind, folder = trained
    monkeypatch.chdir(folder)
    command = ["calibrate", "run", "--split", "val", "--groups", "class", "--score", "APS", "--conformal", "[0.7]"]
    assert main(command) == (0 if kind == "classes" else 2)
    if kind == "classes":
        text = capsys.readouterr().out
        assert "whatever its class" in " ".join(text.split())
        assert "  high   threshold" in text
        assert main(["evaluate", "run", "--split", "val"]) == 0
        assert "Calibration used the val split: calibrated metrics are better" in capsys.readouterr().out


WRONG = {
    "--conformal": "--conformal needs a value after it: a list such as [0.1, 0.5]",
    "--conformal x": "--conformal must be a list such as [0.1, 0.5], got '[x]'",
    "--fraction 1": "--fraction lies between 0 and 1",
    "--split train": "Training examples are fitted better",
    "--groups site": "is a column: give a file",
    "--input new.csv --target z": "z",
}


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_are_refused(trained, options, capsys, monkeypatch):
    monkeypatch.chdir(trained[1])
    assert main(["calibrate", "run", *options.split()]) == 2
    assert WRONG[options] in capsys.readouterr().err


def test_predict_and_evaluate_refuse_thresholds_of_other_predictions(trained, capsys, monkeypatch):
    _, folder = trained
    monkeypatch.chdir(folder)
    predict = ["predict", "run", "--input", "new.csv", "--output", "w.csv", "--overwrite"]
    assert main(["calibrate", "run", "--num_draws", "2"]) == 0
    cases = {
        "for the levels 0.9, not for 0.5": ["--conformal", "0.5"],
        "hold for --num_draws 2": ["--conformal", "0.9", "--num_draws", "7"],
        "--risk and --abstain_below": ["--risk", "0.1", "--abstain_below", "0.5"],
        "not for 0.1": ["--risk", "0.1"],
    }
    for message, options in cases.items():
        capsys.readouterr()
        assert main([*predict, *options]) == 2
        assert message in capsys.readouterr().err
    assert main([*predict, "--conformal", "0.9"]) == 0
    other = FittedPosterior.load("run")
    del other.info["calibration"]
    other.save("run")
    capsys.readouterr()
    assert main([*predict, "--conformal", "0.9"]) == 2
    assert "computed for another calibration" in capsys.readouterr().err
    assert main(["evaluate", "run"]) == 0  # the metrics do not need thresholds
    assert "regions are not evaluated" in capsys.readouterr().out
    (folder / "run" / "calibration.json").write_text('{"num_draws": 1}')
    assert main([*predict, "--conformal", "0.9"]) == 2
    assert "calibration.json is damaged" in capsys.readouterr().err
    (folder / "run" / "calibration.json").unlink()
    assert main([*predict, "--conformal", "0.9"]) == 2
    assert "has no thresholds yet" in capsys.readouterr().err
