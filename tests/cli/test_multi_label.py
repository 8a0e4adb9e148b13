"""The command line on several labels of each example."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from flatbayes import Bernoulli, FittedPosterior, Gaussian, calibrate
from flatbayes.cli import main
from flatbayes.metrics import MULTI_LABEL_METRICS

SHORT = ["--model", "MLP", "--model.hidden", "[8]", "--epochs", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("labels")
    random = np.random.default_rng(0)
    x = random.normal(size=(120, 4)).astype("float32")
    y = (x @ random.normal(size=(4, 3)) > 0).astype("int64")
    np.savez(folder / "task.npz", x=x, y=y)
    np.savez(folder / "new.npz", x=x[:5])
    np.savez(folder / "one_hot.npz", x=x, y=np.eye(3, dtype="int64")[np.arange(120) % 3])
    np.savez(folder / "images.npz", x=random.random((120, 8, 8)).astype("float32"), y=y)
    arguments = [
        "fit",
        "--data",
        str(folder / "task.npz"),
        *SHORT,
        "--posterior",
        "map",
        "--out",
        str(folder / "run"),
    ]
    assert main(arguments) == 0
    return folder / "run"


def test_fit_evaluate_predict_check(run, tmp_path, capsys):
    assert main(["evaluate", str(run)]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Accuracy: fraction of labels that are predicted right" in shown
    assert "class" not in shown
    path = tmp_path / "p.csv"
    assert main(["predict", str(run), "--input", str(run.parent / "new.npz"), "--output", str(path)]) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    labels = [f"probability_y_{k}" for k in range(3)]
    assert list(rows[0]) == ["entropy", "mutual_information", *labels, "outside_training"]
    assert len(rows) == 5
    assert main(["check", str(run)]) == 0


def test_certificates_are_refused(run, capsys):
    assert main(["certify", str(run)]) == 2
    shown = capsys.readouterr().err
    assert "Certificates exist for classification only, and" in shown
    assert "holds several labels" in shown


def test_shift(run, tmp_path, capsys):
    other = tmp_path / "other.npz"
    with np.load(run.parent / "task.npz") as task:
        np.savez(other, x=10 * task["x"], y=task["y"])
    assert main(["shift", str(run), "--ood", str(other), "--ood.task", "multi_label"]) == 0
    results = json.loads((run / "shift.json").read_text())
    assert results["recalibrated"]["temperature"] > 0
    assert set(results["recalibrated"]["raw"]) == set(MULTI_LABEL_METRICS)
    assert set(results["ood"]["scores"]) == {"entropy", "mutual_information"}
    assert "macro_auroc" in capsys.readouterr().out


def test_one_hot_rows_are_labels_on_request(run, tmp_path, capsys):
    data = ["--data", str(run.parent / "one_hot.npz")]
    assert main(["fit", *data, *SHORT, "--out", str(tmp_path / "run")]) == 2
    assert "--data.task multi_label" in capsys.readouterr().err
    arguments = [
        "fit",
        *data,
        "--data.task",
        "multi_label",
        *SHORT,
        "--posterior",
        "map",
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(arguments) == 0
    assert "exact_match" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_several_target_columns_of_a_table(tmp_path, capsys, kind):
    rows = np.random.default_rng(0).normal(size=(80, 4))
    targets = (rows[:, :2] > 0).astype(int) if kind == "labels" else rows[:, :2] - rows[:, 2:].round(2)
    frame = pd.DataFrame(np.concatenate([rows, targets], 1), columns=["a", "b", "c", "d", "wet", "cold"])
    file, folder = str(tmp_path / "t.csv"), str(tmp_path / "run")
    frame.astype({"wet": targets.dtype, "cold": targets.dtype}).to_csv(file, index=False)
    assert main(["fit", "--data", file, "--data.target", "[wet, cold]", *SHORT, "--out", folder]) == 0
    fitted = FittedPosterior.load(folder)
    assert fitted.info["target_names"] == ["wet", "cold"]
    assert isinstance(fitted.likelihood, Bernoulli if kind == "labels" else Gaussian)
    assert main(["evaluate", folder]) == 0
    assert main(["predict", folder, "--input", file, "--output", str(tmp_path / "p.csv")]) == 0
    names = pd.read_csv(tmp_path / "p.csv").columns
    assert {f"{'probability' if kind == 'labels' else 'mean'}_{name}" for name in ("wet", "cold")} <= {*names}
    assert main(["calibrate", folder, "--input", file]) == 0
    assert f"fitted to {80 if kind == 'labels' else 40} examples" in capsys.readouterr().out


def test_compare(run, tmp_path, capsys):
    options = [*SHORT, "--posteriors", "map", "--num_seeds", "1", "--num_jobs", "1", "--num_draws", "2"]
    out = tmp_path / "runs"
    data = ["--data", str(run.parent / "images.npz")]
    assert main(["compare", *data, *options, "--diagnose", "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    usual = {row["metric"] for row in results["summary"] if not row["family"]}
    assert usual == {"accuracy", "exact_match", "nll", "ece", "brier", "macro_auroc", "macro_aupr"}
    report = (out / "report.html").read_text()
    assert "Accuracy: fraction of labels that are predicted right" in report
    assert "most probable class" not in report
    assert main(["compare", *data, *options, "--ood", "digits", "--out", str(tmp_path / "ood")]) == 0
    results = json.loads((tmp_path / "ood" / "results.json").read_text())
    assert "ood_auroc" in {row["metric"] for row in results["summary"]}


def test_calibrate(run, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    arguments = ["calibrate", str(copy), "--input", str(run.parent / "task.npz")]
    assert main([*arguments, "--method", "vector"]) == 0
    shown = capsys.readouterr().out
    assert "fitted to 120 examples" in shown
    assert "thresholds" not in shown
    fitted = FittedPosterior.load(copy)
    with np.load(run.parent / "task.npz") as task:
        raw = FittedPosterior.load(run)
        expected = calibrate(raw, task["x"], task["y"], method="vector").calibration
    assert fitted.calibration.weights == pytest.approx(expected.weights)
    assert main([*arguments, "--conformal", "[0.9]"]) == 2
    assert "no regions for several labels" in capsys.readouterr().err
    assert main([*arguments, "--risk", "[0.1]", "--conformal", "[]"]) == 2
    assert "one class of each example" in capsys.readouterr().err
    path = tmp_path / "p.csv"
    arguments = ["predict", str(copy), "--input", str(run.parent / "task.npz"), "--output", str(path)]
    assert main([*arguments, "--keep_columns", "[y]"]) == 2
    assert "Arrays to keep have one value" in capsys.readouterr().err
