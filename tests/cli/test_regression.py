"""The command line on regression data."""

import csv
import json

import numpy as np
import pytest

from flatbayes.cli import main

SHORT = [
    "--model",
    "MLP",
    "--model.hidden",
    "[8]",
    "--optimization.clip_norm",
    "1",
    "--epochs",
    "6",
    "--num_draws",
    "4",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = [(x, z, 3 * x + random.normal()) for x, z in random.normal(size=(150, 2))]
    with open("line.csv", "w", newline="") as file:
        csv.writer(file).writerows([("x", "z", "y"), *rows])
    return tmp_path


def test_fit_evaluate_predict(here, capsys):
    assert main(["fit", "--data", "line.csv", "--data.target", "y", *SHORT, "--out", "run"]) == 0
    assert main(["evaluate", "run", "--num_draws", "4"]) == 0
    assert "rmse" in capsys.readouterr().out
    assert main(["predict", "run", "--input", "line.csv", "--output", "p.csv", "--num_draws", "4"]) == 0
    with open("p.csv") as file:
        rows = list(csv.DictReader(file))
    columns = ["mean", "std", "lower", "upper", "aleatoric", "epistemic", "epistemic_std", "outside_training"]
    assert list(rows[0]) == columns
    assert len(rows) == 150
    assert all(float(row["lower"]) < float(row["mean"]) < float(row["upper"]) for row in rows)


def test_compare_with_the_default_posteriors(here, capsys):
    arguments = ["compare", "--data", "diabetes", *SHORT, "--num_seeds", "2", "--num_jobs", "1", "--out", "runs"]
    assert main(arguments) == 0
    results = json.loads((here / "runs" / "results.json").read_text())
    assert {row["metric"] for row in results["summary"]} == {"nll", "rmse", "crps", "miscalibration"}
    assert 'id="coverage"' in (here / "runs" / "report.html").read_text()


def test_constant_target_is_refused(here, capsys):
    (here / "flat.csv").write_text("x,y\n1,2.5\n2,2.5\n3,2.5\n")
    assert main(["fit", "--data", "flat.csv", "--data.target", "y", *SHORT, "--out", "run"]) == 2
    assert "Target 'y' is 2.5 in all 3 given examples" in capsys.readouterr().err
    assert not (here / "run").exists()
