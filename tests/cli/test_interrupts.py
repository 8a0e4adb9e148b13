"""Ctrl-C and SIGTERM: a checkpoint of the exact step, true messages, and what the folder can do afterwards."""

import json
import os
import signal
from functools import partial

import pytest
import torch

from flatbayes import MAP, SAM, SWAG, Interrupted, Laplace, TrainingConfig, fit
from flatbayes.cli import main
from flatbayes.data import Digits
from flatbayes.estimators import FlatBayesClassifier
from flatbayes.models import MLP
from flatbayes.training import Callback, Checkpoints, loop

FIT = ["fit", "--data", "digits", "--data.train_size", "60", "--model", "mlp", "--hidden", "16", "--epochs", "3",
       "--batch_size", "20", "--collection.start_fraction", "0", "--rank", "2", "--num_draws", "2"]  # fmt: skip


@pytest.fixture(autouse=True)
def _default_handlers():
    """A job in the background ignores SIGINT, and one started by nohup ignores SIGHUP."""
    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in defaults.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def send_at_step(monkeypatch, step, number=signal.SIGINT, times=1):
    """Send signals to this process in the middle of a training step, counted from 1."""
    closure, count = loop.BatchClosure, 0

    def make_closure(*args):
        nonlocal count
        count += 1
        for _ in range(times if count == step else 0):
            os.kill(os.getpid(), number)
        return closure(*args)

    monkeypatch.setattr(loop, "BatchClosure", make_closure)


def read_words(capsys):
    output = capsys.readouterr()
    return " ".join((output.out + output.err).split())


@pytest.mark.parametrize(
    ("number", "exit_code", "step"),  # within an epoch, and its last step
    [(signal.SIGINT, 130, 5), (signal.SIGINT, 130, 6), (signal.SIGTERM, 143, 6), (signal.SIGHUP, 129, 5)],
)
def test_fit_continues_from_the_exact_step(here, monkeypatch, capsys, number, exit_code, step):
    with monkeypatch.context() as patch:
        send_at_step(patch, step, number)
        assert main([*FIT, "--out", "run"]) == exit_code
    words = read_words(capsys)
    assert f"after step {step} of 9" in words
    assert f"--resume, which continues after step {step}." in words
    assert "(it can predict: flatbayes evaluate run)" in words
    assert [path.name for path in (here / "run" / "checkpoints").glob("0*")] == [f"0000-{step:010d}.pt"]
    assert main(["evaluate", "run", "--num_draws", "2"]) == 0
    assert main([*FIT, "--out", "run", "--resume"]) == 0
    assert main([*FIT, "--out", "whole"]) == 0
    resumed, whole = (next((here / name).glob("*.safetensors")).read_bytes() for name in ("run", "whole"))
    assert resumed == whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_stops_at_once(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        send_at_step(patch, 5, times=2)
        assert main([*FIT, "--out", "run"]) == 130
    words = read_words(capsys)
    assert "after step 4 of 9" in words
    assert "starts again, since there is no checkpoint" in words


def test_what_cannot_predict_yet_is_said(here, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        send_at_step(patch, 2)
        assert main([*FIT, "--collection.start_fraction", "0.5", "--out", "run"]) == 130
    assert "it cannot predict yet: SWAG needs" in read_words(capsys)
    assert main(["evaluate", "run"]) == 2
    assert "note: The training in run was interrupted" in read_words(capsys)
    assert main([*FIT, "--collection.start_fraction", "0.5", "--out", "run", "--resume"]) == 0
    assert main(["evaluate", "run"]) == 0
    assert "note:" not in read_words(capsys)


def test_other_verbs_say_what_was_written(here, monkeypatch, capsys):
    assert main([*FIT, "--out", "run"]) == 0
    before = (here / "run" / "results.json").read_bytes()

    def interrupt(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("flatbayes.cli.evaluate.evaluate", interrupt)
        assert main(["evaluate", "run"]) == 143
        assert "terminated: nothing was written" in read_words(capsys)
        assert main([*FIT, "--out", "other"]) == 143
        assert "the posterior is complete and saved in other" in read_words(capsys)
    assert (here / "run" / "results.json").read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("flatbayes.cli.fit.train_prepared", interrupt)
        assert main([*FIT, "--out", "early"]) == 143
        assert "before the first step; early holds no posterior" in read_words(capsys)


@pytest.mark.parametrize("verb", ["compare", "tune"])
def test_comparison_and_tuning_keep_finished_runs(here, monkeypatch, capsys, verb):
    pytest.importorskip("optuna")
    command = [argument for argument in FIT[1:] if argument not in ("--rank", "2")]
    command = [verb, *command, "2", "--out", "o", "--num_seeds", "1"]
    command += ["--posteriors", "MAP", "--num_jobs", "1"] if verb == "compare" else ["--posterior", "MAP"]
    command += [] if verb == "compare" else ["--num_trials", "2"]
    with monkeypatch.context() as patch:
        send_at_step(patch, 14)  # the second run
        assert main(command) == 130
    words = read_words(capsys)
    assert ("1 of 2 runs is finished" if verb == "compare" else "finished trials are kept in o") in words
    assert len(list((here / "o" / "runs").glob("*.json"))) == 1
    assert len(list((here / "o" / "runs").glob("*.checkpoints/*/0000-0000000005.pt"))) == 1
    assert main(command) == 0


class _Stop(Callback):
    def on_step_end(self, step, loss, lr):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("posterior", [SWAG(rank=2), Laplace(), MAP()])
def test_python_api_and_checkpoints(tmp_path, posterior):
    data, config = Digits(train_size=60).load(seed=0), TrainingConfig(epochs=2, batch_size=20)
    arguments = (partial(MLP, hidden=(16,)), data, posterior, SAM(), config)
    with pytest.raises(Interrupted, match="No checkpoint was kept") as caught:
        fit(*arguments, callback=_Stop())
    assert caught.value.resume_step is None
    checkpoints = Checkpoints(tmp_path / "c")
    with pytest.raises(Interrupted, match="continues after step 2") as caught:
        fit(*arguments, callback=_Stop(), checkpoints=checkpoints)
    assert bool(caught.value.missing) == ("cannot predict yet" in str(caught.value))
    assert ".." not in str(caught.value)
    resumed, whole = fit(*arguments, checkpoints=checkpoints), fit(*arguments)
    inputs = data.test.input_tensor[:5]
    assert torch.equal(resumed.predict(inputs, 2).mean, whole.predict(inputs, 2).mean)


def test_estimators_raise_the_interrupt(monkeypatch):
    data = Digits(train_size=60).load(seed=0).train
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 2"):
        send_at_step(patch, 2)
        FlatBayesClassifier(MAP(), epochs=2).fit(data.input_tensor.flatten(1).numpy(), data.targets.numpy())


def test_results_of_interrupted_runs_say_so(here, monkeypatch):
    with monkeypatch.context() as patch:
        send_at_step(patch, 5)
        main([*FIT, "--out", "run"])
    info = json.loads((here / "run" / "posterior.json").read_text())["info"]
    assert "after step 5 of 9" in info["interrupted"]
