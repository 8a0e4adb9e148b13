"""The command line on counts: `--likelihood` of fit, compare and tune, and the verbs on the run."""

import csv
import json

import numpy as np
import pytest
import torch

from flatbayes.cli import main
from flatbayes.prediction import FittedPosterior

SHORT = ["--model", "MLP", "--model.hidden", "[8]", "--epochs", "4", "--num_draws", "4"]
DATA = ["--data", "visits.csv", "--data.target", "visits"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    rows = [(x, z, random.poisson(np.exp(1 + x))) for x, z in random.normal(size=(150, 2))]
    with open("visits.csv", "w", newline="") as file:
        csv.writer(file).writerows([("x", "z", "visits"), *rows])
    return tmp_path


def test_counts_from_fit_to_conformal_intervals(here, capsys):
    assert main(["fit", *DATA, "--likelihood", "negative_binomial", *SHORT, "--out", "run"]) == 0
    spec = json.loads((here / "run" / "posterior.json").read_text())["likelihood"]
    assert spec["init_args"]["distribution"] == "NegativeBinomial"
    assert main(["evaluate", "run", "--num_draws", "4"]) == 0
    assert "crps" in capsys.readouterr().out
    assert main(["calibrate", "run", "--num_draws", "4", "--conformal", "[0.8]"]) == 0
    options = ["--input", "visits.csv", "--output", "p.csv", "--conformal", "0.8"]
    assert main(["predict", "run", *options]) == 0
    with open("p.csv") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert float(row["lower"]).is_integer()
        assert float(row["conformal_upper"]).is_integer()
        assert float(row["conformal_lower"]) >= 0
    assert main(["check", "run"]) in (0, 1)


def test_a_run_of_counts_is_exported(here, capsys):
    import onnxruntime

    assert main(["fit", *DATA, "--likelihood", "negative_binomial", *SHORT, "--out", "run"]) == 0
    capsys.readouterr()
    assert main(["export", "run", "--format", "onnx", "--num_draws", "3", "--out", "m.onnx"]) == 0
    assert "outputs  mean, std, epistemic_std" in capsys.readouterr().out
    assert main(["export", "run", "--format", "torch", "--num_draws", "3", "--out", "m.pt2"]) == 0
    x = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    expected = FittedPosterior.load(here / "run").predict(x, 3)
    mean, std = onnxruntime.InferenceSession("m.onnx").run(["mean", "std"], {"inputs": x})
    tensors = torch.export.load("m.pt2").module()(torch.from_numpy(x))
    for values in (mean, tensors["mean"].numpy()):
        np.testing.assert_allclose(values, expected.mean, rtol=1e-5)
    for values in (std, tensors["std"].numpy()):
        np.testing.assert_allclose(values, expected.std, rtol=1e-5)


def test_comparisons_take_it(here):
    options = ["--likelihood", "poisson", "--num_seeds", "1", "--posteriors", "[MAP]", "--num_jobs", "1"]
    assert main(["compare", *DATA, *SHORT, *options, "--out", "runs"]) == 0
    assert '"crps"' in (here / "runs" / "results.json").read_text()


def test_unknown_names_are_refused_before_the_data_are_read(here, capsys):
    assert main(["fit", *DATA, "--likelihood", "poison", *SHORT, "--out", "run"]) == 2
    assert "Did you mean Poisson?" in capsys.readouterr().err
    assert not (here / "run").exists()
