"""Resuming of interrupted fits and comparisons."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from flatbayes.cli import main
from flatbayes.data import Digits
from flatbayes.experiments import Comparison
from flatbayes.models import MLP
from flatbayes.posteriors import SWAG
from flatbayes.prediction import FittedPosterior
from flatbayes.training import CollectionConfig, TrainingConfig, loop
from support import find_tensors_file

FIT = ["fit", "--data", "digits", "--data.train_size", "60", "--model", "mlp", "--model.hidden", "[16]",
       "--epochs", "3", "--batch_size", "20", "--collection.start_fraction", "0", "--posterior",
       "swag", "--posterior.rank", "2", "--num_draws", "3",
       "--checkpoint_steps", "1", "--checkpoint_seconds", "0"]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fail_at_step(monkeypatch, after, error=SystemError):
    """Raise an error at a training step."""
    closure, left = loop.BatchClosure, after

    def until(*args):
        nonlocal left
        left -= 1
        if left < 0:
            raise error
        return closure(*args)

    monkeypatch.setattr(loop, "BatchClosure", until)


def tensors(folder):
    return find_tensors_file(folder).read_bytes()


def test_resume_is_allowed_for_new_and_finished_runs(here, monkeypatch, capsys):
    assert main([*FIT, "--out", "whole", "--resume"]) == 0
    for after in (4, 2):
        with monkeypatch.context() as patch, pytest.raises(SystemError):
            fail_at_step(patch, after)
            main([*FIT, "--out", "run", "--resume"])
    assert {p.name for p in (here / "run").iterdir()} == {
        "checkpoints", "config.json", "environment.json", "metrics.jsonl",
    }  # fmt: skip
    assert main([*FIT, "--out", "run"]) == 2
    assert "go on with this run (--resume)" in capsys.readouterr().err
    assert main([*FIT, "--out", "run", "--resume", "--epochs", "4"]) == 2
    assert "differs in config" in capsys.readouterr().err
    assert main([*FIT, "--out", "run", "--resume", "--overwrite"]) == 2
    assert "choose one of them" in capsys.readouterr().err
    assert main([*FIT, "--out", "run", "--resume"]) == 0
    assert not (here / "run" / "checkpoints").exists()
    assert tensors(here / "run") == tensors(here / "whole")
    assert (here / "run" / "metrics.jsonl").read_text() == (here / "whole" / "metrics.jsonl").read_text()
    (here / "run" / "results.json").unlink()
    assert main([*FIT, "--out", "run", "--resume"]) == 0
    assert (here / "run" / "results.json").is_file()
    capsys.readouterr()
    assert main([*FIT, "--out", "run", "--resume"]) == 0
    assert "complete: there is nothing to resume" in capsys.readouterr().out


def test_interrupted_fit_can_be_resumed(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        fail_at_step(patch, 5, KeyboardInterrupt)
        assert main([*FIT, "--out", "run"]) == 130
    assert "To continue: the same command with --resume" in " ".join(capsys.readouterr().out.split())
    assert (here / "run" / "posterior.json").is_file()
    assert main([*FIT, "--out", "run", "--resume"]) == 0
    assert main([*FIT, "--out", "whole"]) == 0
    assert tensors(here / "run") == tensors(here / "whole")


def test_overwrite_removes_checkpoints(here, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        fail_at_step(patch, 4)
        main([*FIT, "--out", "run"])
    assert any((here / "run" / "checkpoints").iterdir())
    assert main([*FIT, "--out", "run", "--overwrite", "--seed", "3"]) == 0
    assert not (here / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_killed_fit_can_be_resumed(here):
    command = [sys.executable, "-m", "flatbayes", *FIT, "--epochs", "40", "--resume"]
    subprocess.run([*command, "--out", "whole"], check=True, capture_output=True, timeout=120)
    for _ in range(3):
        with subprocess.Popen([*command, "--out", "run"], stdout=subprocess.DEVNULL) as process:
            had = set((here / "run" / "checkpoints").glob("0*.pt"))
            while set((here / "run" / "checkpoints").glob("0*.pt")) <= had:
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
    subprocess.run([*command, "--out", "run"], check=True, capture_output=True, timeout=120)
    assert tensors(here / "run") == tensors(here / "whole")


def test_comparison_resumes_within_a_run(here, monkeypatch):
    config = TrainingConfig(
        epochs=3,
        batch_size=20,
        collection=CollectionConfig(start_fraction=0.0),
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    model = partial(MLP, hidden=(16,))
    comparison = Comparison(Digits(train_size=60), model, [SWAG(rank=2)], config=config, num_seeds=1, num_draws=3)
    monkeypatch.setattr("flatbayes.experiments.run.CHECKPOINT_INTERVAL_SECONDS", 0.0)
    with monkeypatch.context() as patch, pytest.raises(SystemError):
        fail_at_step(patch, 5)
        comparison.run(here / "out", jobs=1, show_progress=False)
    [checkpoints] = (here / "out" / "runs").glob("*.checkpoints")
    assert any(checkpoints.rglob("*.pt"))
    results = comparison.run(here / "out", jobs=1, show_progress=False)
    assert not list((here / "out" / "runs").glob("*.checkpoints"))
    whole = comparison.run(here / "whole", jobs=1, show_progress=False)
    assert [run.metrics for run in results.runs] == [run.metrics for run in whole.runs]


class TestEndOfTraining:
    """Checkpoints are removed once the artefact has been read back, and changed data are noticed."""

    WORDS = (
        *(
            "fit",
            "--data",
            "data.npz",
            "--model",
            "mlp",
            "--model.hidden",
            "[4]",
            "--epochs",
            "2",
            "--num_draws",
            "2",
        ),
        *("--posterior.rank", "2", "--collection.start_fraction", "0", "--checkpoint_seconds", "0"),
    )

    @pytest.fixture
    def run(self, here):
        self.write_data(0)
        return lambda *words: main([*self.WORDS, "--out", "run", *words])

    def write_data(self, offset):
        x = np.random.default_rng(0).normal(size=(90, 3))
        np.savez("data.npz", x=x + offset, y=x.argmax(1))

    def test_a_fit_is_tried_once_and_each_split_is_hashed_once(self, run, monkeypatch):
        calls = []
        for module, name in (
            ("flatbayes.training.dry_run", "run_trial"),
            ("flatbayes.training.fit", "run_trial"),
            ("flatbayes.data.fingerprint", "describe_split"),
        ):
            function = getattr(sys.modules[module], name)
            record = lambda *args, function=function: [calls.append(function.__name__), function(*args)][1]  # noqa: E731
            monkeypatch.setattr(sys.modules[module], name, record)
        assert run() == 0
        assert sorted(calls) == [*["describe_split"] * 3, "run_trial"]

    def test_checkpoints_stay_if_the_artefact_cannot_be_read_back(self, run, here, monkeypatch, capsys):
        def fail(*args, **kwargs):
            raise ValueError("run is damaged.")

        with monkeypatch.context() as patch:
            patch.setattr("flatbayes.cli.fit.load_on_cpu", fail)
            assert run() == 2
        assert list(here.glob("run/checkpoints/*.pt"))
        capsys.readouterr()
        assert run("--resume") == 0
        assert not list(here.glob("run/checkpoints/*.pt"))

    def test_a_damaged_posterior_is_not_complete(self, run, here, capsys):
        assert run() == 0
        path = find_tensors_file(here / "run")
        path.write_bytes(path.read_bytes()[:-1])
        assert run("--resume") == 2
        error = capsys.readouterr().err
        assert "is damaged" in error
        assert "There is no checkpoint to continue from: --overwrite trains again." in error

    def test_a_damaged_posterior_is_trained_again_from_its_checkpoints(self, run, here, monkeypatch, capsys):
        with monkeypatch.context() as patch:
            patch.setattr("flatbayes.cli.fit.Checkpoints.remove", lambda self: None)
            assert run() == 0
        expected = tensors(here / "run")
        path = find_tensors_file(here / "run")
        path.write_bytes(path.read_bytes()[:-1])
        assert run("--resume") == 0
        assert "Training continues from its checkpoints" in capsys.readouterr().out
        assert tensors(here / "run") == expected

    @pytest.mark.parametrize("verb", ["evaluate", "diagnose", "certify", "shift"])
    def test_changed_data_are_noticed(self, run, here, capsys, verb):
        assert run() == 0
        self.write_data(1)
        assert main([verb, "run"]) == 2
        assert "have changed since its training: train has other values in its" in capsys.readouterr().err
        if verb == "evaluate":
            assert main([verb, "run", "--allow_changed_data"]) == 0

    def test_training_does_not_continue_on_changed_data(self, run, here, monkeypatch, capsys):
        with monkeypatch.context() as patch:
            patch.setattr("flatbayes.cli.fit.train_prepared", lambda *args, **kwargs: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run()
        self.write_data(1)
        assert run("--resume") == 2
        assert "have changed since its training" in capsys.readouterr().err
        assert run("--resume", "--allow_changed_data") == 0

    def test_the_artefact_has_the_fingerprint_of_its_data(self, run, here, capsys):
        assert run() == 0
        config = json.loads((here / "run" / "config.json").read_text())
        fingerprint = json.loads((here / "run" / "posterior.json").read_text())["info"]["data_fingerprint"]
        assert fingerprint == {name: config["data_fingerprint"][name] for name in ("train", "val")}
        del config["data_fingerprint"]
        (here / "run" / "config.json").write_text(json.dumps(config))
        assert main(["evaluate", "run"]) == 0
        self.write_data(1)
        assert main(["evaluate", "run"]) == 2
        assert "have changed since its training" in capsys.readouterr().err

    def test_each_run_of_a_diagnosis_is_compared_with_the_data(self, run, here, capsys):
        assert run() == 0
        (here / "run").rename(here / "first")
        self.write_data(1)
        assert run() == 0
        assert main(["diagnose", "run", "first", "--num_draws", "1", "--max_examples", "8"]) == 2
        assert "The data of first have changed since its training" in capsys.readouterr().err

    @pytest.mark.parametrize("damage", [{"info": 5}, {"info": None}, []])
    def test_damaged_metadata_is_not_complete(self, run, here, capsys, damage):
        assert run() == 0
        (here / "run" / "posterior.json").write_text(json.dumps(damage))
        assert run("--resume") == 2
        assert "There is no checkpoint to continue from" in capsys.readouterr().err


def test_training_inputs_can_be_left_out_of_the_artefact(here, capsys):
    """Also of one that another command has kept them in; the networks that were drawn can be drawn again."""
    fit = [*FIT[:6], "convnet", "--model.width", "2", *FIT[9:], "--out", "run"]  # a network with BatchNorm
    assert main(fit) == 0
    with_inputs = FittedPosterior.load(here / "run")
    assert with_inputs.statistics_inputs
    assert main([*fit, "--resume", "--without_training_inputs"]) == 0
    without = FittedPosterior.load(here / "run")
    inputs = Digits().load(0).test.inputs[:8]
    assert not without.statistics_inputs
    assert torch.equal(without.predict(inputs, 3).mean, with_inputs.predict(inputs, 3).mean)
    with pytest.raises(ValueError, match="BatchNorm"):
        without.predict(inputs, 4)
    assert main([*fit, "--overwrite", "--without_training_inputs"]) == 0
    assert not FittedPosterior.load(here / "run").statistics_inputs
    assert main(["evaluate", "run", "--num_draws", "3"]) == 0
    assert len([*(here / "run").glob("*.safetensors")]) == 2  # weights, and statistics of the draws
