"""A run folder is data: no verb imports or runs what a folder names."""

import json
import shutil
import sys

import numpy as np
import pytest

from flatbayes.cli import main
from flatbayes.cli.main import VERBS
from flatbayes.prediction.metadata import compute_metadata_checksum

CODE = """
from pathlib import Path
from torch import nn

Path("executed").touch()


class Net(nn.Module):
    pass
"""
EVIL = {"class_path": "runs.x.evil.Net", "init_args": {}}
POSITIONS = {
    "data": EVIL,
    "data argument": {"class_path": "flatbayes.data.Digits", "init_args": {"path": EVIL}},
    "dataset": {"class_path": "flatbayes.data.TorchDataset", "init_args": {"dataset": "runs.x.evil.Net"}},
    "model": EVIL,
    "model argument": {"class_path": "flatbayes.models.MLP", "init_args": {"hidden": EVIL}},
    "new head": {
        "class_path": "flatbayes.cli.models.build_with_new_head",
        "init_args": {"path": "runs.x.evil.Net", "arguments": {}, "num_outputs": 3},
    },
    "new head argument": {
        "class_path": "flatbayes.cli.models.build_with_new_head",
        "init_args": {"path": "torch.nn.Linear", "arguments": {"in_features": EVIL}, "num_outputs": 3},
    },
    "posterior": EVIL,
    "flatness": EVIL,
    "flatness argument": {"class_path": "flatbayes.flatness.Periodic", "init_args": {"flatness": EVIL}},
    "optimizer": EVIL,
    "schedule": EVIL,
    "likelihood": EVIL,
}
ARGUMENTS = {
    "fit": ["--data", "digits", "--data.train_size", "60", "--epochs", "1", "--out", "runs/x", "--resume"],
    "compare": ["--data", "digits", "--data.train_size", "60", "--epochs", "1", "--out", "runs/x"],
    "tune": ["--data", "digits", "--data.train_size", "60", "--epochs", "1", "--num_trials", "1", "--out", "runs/x"],
    "evaluate": ["runs/x"],
    "calibrate": ["runs/x", "--num_draws", "1"],
    "check": ["runs/x", "--num_draws", "2"],
    "predict": ["runs/x", "--input", "new.npz", "--output", "predictions.csv"],
    "export": ["runs/x", "--format", "torch", "--out", "x.pt2"],
    "diagnose": ["runs/x", "--num_draws", "1", "--max_examples", "8"],
    "certify": ["runs/x", "--num_draws", "9", "--num_trial_draws", "2", "--num_test_draws", "2"],
    "shift": ["runs/x", "--num_draws", "1", "--max_examples", "8"],
    "report": ["runs/x"],
    "reference": [
        "--data", "digits", "--data.train_size", "20", "--num_chains", "1", "--num_steps", "4", "--num_draws", "4",
        "--num_tuning_steps", "10", "--num_descent_steps", "0", "--out", "runs/x/reference.safetensors",
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "x"
    options = ["--data", "digits", "--data.train_size", "60", "--epochs", "1", "--model", "mlp", "--posterior", "map"]
    assert main(["fit", *options, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as for `python -m flatbayes`
    np.savez(tmp_path / "new.npz", x=np.zeros((2, 1, 8, 8), "float32"))
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "runs"]:
        del sys.modules[name]


def plant(run_folder, folder, position):
    """Copy a run, and name a module of its folder in every JSON file of it, with correct checksums."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run_folder, folder)
    (folder / "evil.py").write_text(CODE)
    axis = {"new": "model", "dataset": "data"}.get(position.split()[0], position.split()[0])
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        for entries in (content, content.get("info"), content.get("config"), *content.get("runs", ())):
            if isinstance(entries, dict) and (axis in entries or entries is content):
                entries[axis] = POSITIONS[position]
        if "checksum" in content:
            del content["checksum"]
            content["checksum"] = compute_metadata_checksum(content)
        path.write_text(json.dumps(content))


def test_every_verb_is_tried():
    assert set(ARGUMENTS) == set(VERBS)


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", ARGUMENTS)
def test_nothing_that_a_folder_names_is_run(run_folder, here, verb, step, capsys):
    for position in list(POSITIONS)[list(ARGUMENTS).index(verb) % step :: step]:
        plant(run_folder, here / "runs" / "x", position)
        main([verb, *ARGUMENTS[verb]])
        assert not (here / "executed").exists(), position
        assert "runs.x.evil" not in sys.modules, position
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "named", [["--trust", "runs.x"], ["--trust", "runs.x.evil.Net"], ["--model", "runs.x.evil.Net"]]
)
def test_what_the_user_names_is_imported(run_folder, here, named, capsys):
    plant(run_folder, here / "runs" / "x", "model")
    assert main(["predict", *ARGUMENTS["predict"], *named]) == 2
    assert "runs/x cannot be used" in capsys.readouterr().err
    assert (here / "executed").exists()


def test_arguments_of_a_named_model_run_nothing_else(run_folder, here, monkeypatch, capsys):
    for name in ("model argument", "new head argument"):
        plant(run_folder, here / "runs" / "x", name)
        assert main(["predict", *ARGUMENTS["predict"], "--model", "torch.nn.Linear"]) == 2
        assert not (here / "executed").exists()
        assert "runs.x.evil.Net" in capsys.readouterr().err
