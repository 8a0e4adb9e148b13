"""Options of an optimizer that is not named, and the name of a training whose chosen radius is 0."""

import json

import pytest

from flatbayes.cli.main import main
from flatbayes.training import choices

TINY = ["--data", "digits", "--data.train_size", "60", "--posterior", "MAP", "--epochs", "1", "--out", "run"]
TRANSFORMER = """
from torch import nn


class Net(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, num_classes))

    def forward(self, images):
        return self.layers(images)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "transformer_nets.py").write_text(TRANSFORMER)
    return tmp_path / "run"


def read_optimizer(folder):
    spec = json.loads((folder / "config.json").read_text())["config"]["optimizer"]
    return spec["class_path"], spec["init_args"]


def test_a_transformer_keeps_its_default_optimizer_with_another_learning_rate(folder):
    assert main(["fit", *TINY, "--model", "transformer_nets.Net", "--optimizer.lr", "0.002"]) == 0
    assert read_optimizer(folder) == ("torch.optim.AdamW", {"lr": 0.002, "weight_decay": 0.01})
    assert main(["fit", *TINY, "--model", "transformer_nets.Net", "--lr", "0.002", "--overwrite"]) == 0
    assert read_optimizer(folder)[0] == "torch.optim.AdamW"
    named = ["--optimizer", "SGD", "--optimizer.lr", "0.002"]
    assert main(["fit", *TINY, "--model", "transformer_nets.Net", *named, "--overwrite"]) == 0
    assert read_optimizer(folder)[0] == "torch.optim.SGD"


def test_other_networks_keep_that_of_the_posterior(folder):
    assert main(["fit", *TINY, "--optimizer.lr", "0.002", "--optimizer.momentum", "0.5"]) == 0
    name, options = read_optimizer(folder)
    assert (name, options["lr"], options["momentum"], options["weight_decay"]) == (
        "torch.optim.SGD",
        0.002,
        0.5,
        5e-4,
    )


def test_an_option_that_the_default_optimizer_lacks_is_refused(folder, capsys):
    assert main(["fit", *TINY, "--model", "transformer_nets.Net", "--optimizer.momentum", "0.5"]) == 2
    message = capsys.readouterr().err
    assert "is AdamW, which has no option momentum" in message
    assert "--optimizer SGD" in message


def test_a_comparison_has_the_default_optimizer_of_the_network(folder):
    runs = ["--posteriors", "MAP", "--num_seeds", "1", "--num_jobs", "1", "--share_trainings", "false"]
    common = ["compare", *TINY[:4], *TINY[6:], *runs, "--model", "transformer_nets.Net"]
    assert main([*common, "--optimizer.lr", "0.0003"]) == 0
    given = json.loads((folder / "results.json").read_text())["runs"]
    assert main([*common, "--overwrite"]) == 0  # 3e-4 is the default learning rate
    default = json.loads((folder / "results.json").read_text())["runs"]
    assert [run["metrics"] for run in given] == [run["metrics"] for run in default]


def test_a_chosen_radius_of_0_is_called_plain(folder, capsys, monkeypatch):
    monkeypatch.setattr(choices, "select_radius", lambda *_: 0.0)
    assert main(["fit", *TINY, "--epochs", "8", "--flatness", "SAM", "--flatness.rho", "auto"]) == 0
    assert "MAP x Plain (chosen radius 0) on 360 val examples" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", "run"]) == 0
    assert "MAP x Plain (chosen radius 0) on 898 test examples" in " ".join(capsys.readouterr().out.split())
