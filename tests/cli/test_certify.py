"""Command `flatbayes certify`: table, file, and refused input."""

import json
import sys

import pytest
from torch import nn

from flatbayes.certification.result import format_upper_bound
from flatbayes.cli import certify, main

TINY = ["--data", "digits", "--data.train_size", "60", "--batch_size", "20", "--epochs", "3", "--num_draws", "2",
        "--posterior", "map"]  # fmt: skip
QUICK = [
    "--num_draws",
    "20",
    "--epochs",
    "1",
    "--num_trial_draws",
    "2",
    "--num_test_draws",
    "3",
    "--prior_stds",
    "[0.01, 0.03]",
]


class Own(nn.Module):
    """A network outside flatbayes.

    Args:
        num_classes: Outputs.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    return tmp_path


@pytest.fixture
def fitted(here, capsys):
    optimizer = ["--optimizer", "torch.optim.SGD", "--optimizer.lr", "0.05"]
    schedule = ["--schedule", "cosine"]
    assert main(["fit", *TINY, "--model", "mlp", "--model.hidden", "[16]", *optimizer, *schedule, "--out", "x"]) == 0
    capsys.readouterr()
    return here / "x"


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_certificates_of_flat_and_plain_training(fitted, capsys):
    before = files(fitted)
    assert main(["certify", "x", *QUICK, "--compare_plain", "--prior_fraction", "0.4"]) == 0
    out = capsys.readouterr().out
    kept = json.loads((fitted / "certificate.json").read_text())
    sam, plain = kept["certificates"]
    assert (sam["flatness"], plain["flatness"]) == ("SAM", "Plain")
    assert (sam["num_prior_examples"], sam["error"]["num_data"]) == (24, 36)
    assert kept["config"]["prior_stds"] == [0.01, 0.03]
    assert sam["error"]["kl"] >= 0
    assert format_upper_bound(sam["error"]["bound"]) in out
    assert "trained with Plain" in out
    assert " ".join(sam["statement"].split()) in " ".join(out.split())
    after = files(fitted)
    assert {name: after[name] for name in before} == before

    assert main(["certify", "x", *QUICK]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["certify", "x", *QUICK, "--overwrite"]) == 0
    again = json.loads((fitted / "certificate.json").read_text())
    assert [one["flatness"] for one in again["certificates"]] == ["SAM"]


def test_interrupt_leaves_the_folder_unchanged(fitted, capsys, monkeypatch):
    (fitted / "certificate.json").write_text("{}")
    before = files(fitted)

    def interrupted(*args, **others):
        raise KeyboardInterrupt

    monkeypatch.setattr(certify, "certify", interrupted)
    assert main(["certify", "x", *QUICK, "--overwrite"]) == 130
    assert files(fitted) == before


def test_folder_without_a_single_run_is_refused(here, capsys):
    assert main(["certify", "nowhere"]) == 2
    assert "holds no run" in capsys.readouterr().err
    (here / "config.json").write_text(json.dumps({"data": {}, "posteriors": []}))
    assert main(["certify", "."]) == 2
    said = "does not hold a single run: its config.json has no model, posterior, flatness, config, seed"
    assert said in capsys.readouterr().err


def test_invalid_settings_are_refused(fitted, capsys):
    assert main(["certify", "x", "--delta", "2"]) == 2
    assert "delta must lie strictly between 0 and 1, got 2.0" in capsys.readouterr().err
    assert main(["certify", "x", *QUICK, "--prior_fraction", "0.001"]) == 2
    assert "both need one" in capsys.readouterr().err
    assert not (fitted / "certificate.json").exists()


def test_model_outside_flatbayes_needs_its_path(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])
    monkeypatch.setattr(Own, "__module__", "my_nets")
    assert main(["fit", *TINY, "--model", "my_nets.Own", "--out", "own"]) == 0
    capsys.readouterr()
    assert main(["certify", "own", *QUICK]) == 2
    assert "If you trust it: --model" in capsys.readouterr().err
    assert main(["certify", "own", *QUICK, "--model", "my_nets.Own"]) == 0
