"""The command line on several labels of each example."""

import csv
import json

import numpy as np
import pytest

from flatbayes.cli import main

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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shift"], "Shift is evaluated for classifications only, and * holds a regression or several labels"),
        (["certify"], "Certificates exist for classification only, and * holds several labels"),
    ],
    ids=["shift", "certify"],
)
def test_what_is_for_classes_is_refused(run, arguments, message, capsys):
    assert main([arguments[0], str(run)]) == 2
    before, after = message.split(" * ")
    shown = capsys.readouterr().err
    assert before in shown
    assert after in shown


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


def test_tables_refuse_several_labels(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("x,y\n1,0\n2,1\n3,0\n")
    data = ["--data", str(tmp_path / "t.csv"), "--data.target", "y", "--data.task", "multi_label"]
    assert main(["fit", *data, *SHORT, "--out", str(tmp_path / "run")]) == 2
    assert "A table has one target column, here 'y'" in capsys.readouterr().err


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
