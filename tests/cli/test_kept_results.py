"""Results of other settings are kept side by side, or not replaced without a word."""

import json

import pytest

from flatbayes.cli import main

FIT = ["fit", "--data", "digits", "--data.train_size", "60", "--model", "mlp", "--hidden", "8", "--epochs", "1",
       "--posterior", "MCDropout(rate=0.1)", "--num_draws", "2", "--out", "run"]  # fmt: skip
VERBS = {
    "shift": (["shift", "run", "--corruptions", "none", "--num_draws", "2"], ["--num_draws", "3"], "shift.json"),
    "diagnose": (["diagnose", "run", "--num_draws", "2", "--max_examples", "20"], ["--rho", "0.1"], "diagnosis.json"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
    return folder


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_evaluate_keeps_results_side_by_side(here, capsys):
    for more in ([], ["--num_draws", "3"], ["--num_draws", "3", "--seed", "1"], ["--num_draws", "3"]):
        assert main(["evaluate", "run", *more]) == 0
    assert "has 3 results on the test split" in " ".join(capsys.readouterr().out.split())
    runs = json.loads((here / "run" / "results.json").read_text())["runs"]
    settings = [tuple(run["settings"].values()) for run in runs if run["split"] == "test"]
    assert sorted(settings) == [(3, 0), (3, 1), (30, 0)]


@pytest.mark.parametrize("verb", VERBS)
def test_results_of_other_settings_need_a_word(here, capsys, verb):
    command, other, file = VERBS[verb]
    assert main(command) == 0
    before = (here / "run" / file).read_text()
    assert main(command) == 0  # the same settings
    assert main([*command, *other]) == 2
    error = capsys.readouterr().err
    option = other[0].removeprefix("--")
    assert f"{file} has results of other settings ({option} " in error
    assert "--overwrite replaces them" in error
    assert json.loads((here / "run" / file).read_text())["settings"] == json.loads(before)["settings"]
    assert main([*command, *other, "--out", "elsewhere"]) == 0
    assert (here / "elsewhere" / file).is_file()
    assert main([*command, *other, "--overwrite"]) == 0
    assert json.loads((here / "run" / file).read_text())["settings"] != json.loads(before)["settings"]


def test_tune_replaces_no_result_of_other_settings(here, capsys):
    options = ["--model", "mlp", "--hidden", "8", "--epochs", "1", "--posterior", "map"]
    command = ["tune", *FIT[1:5], *options, "--num_trials", "1", "--num_seeds", "1", "--out", "tuned"]
    assert main([*command, "--num_draws", "0"]) == 2  # nothing is written
    assert main(command) == 0
    before = (here / "tuned" / "tuned.yaml").read_text()
    for other in (["--metric", "ece"], ["--ranges", '{"flatness.rho": [0.1, 0.2]}'], ["--lr", "0.3"]):
        assert main([*command, *other]) == 2
    assert 'tuning.json has results of other settings (metric "nll", now "ece")' in capsys.readouterr().err
    assert (here / "tuned" / "tuned.yaml").read_text() == before
    assert main([*command, "--metric", "ece", "--overwrite"]) == 0
    (here / "tuned" / "tuning.json").unlink()
    assert main(command) == 2
    assert "unknown settings: --overwrite" in capsys.readouterr().err


@pytest.mark.filterwarnings("default::flatbayes.training.DivergenceWarning")
def test_a_training_that_diverged_is_noted(here, capsys):
    assert main([*FIT[:-1], "diverged", "--optimizer.lr", "1e12"]) == 0
    assert "flatbayes: note: The training has probably diverged" in " ".join(capsys.readouterr().err.split())
