"""Regression tests for the defects found by the disturbances."""

import io
import os
import signal
import sys
import time
from concurrent.futures import BrokenExecutor
from functools import partial

import pytest
import torch
import yaml

from flatbayes.cli import main
from flatbayes.cli.parsing import load_bounded_yaml
from flatbayes.data import Digits
from flatbayes.experiments.folder_lock import lock_folder
from flatbayes.flatness import Plain
from flatbayes.models import MLP
from flatbayes.posteriors import MAP
from flatbayes.training import TrainingConfig, fit

TINY = ["--data=digits", "--data.train_size=40", "--model=mlp", "--model.hidden=[8]", "--epochs=1", "--num_draws=2"]
POINT = [*TINY, "--posterior=map"]
COMPARE = ["compare", *TINY, "--posteriors=[map]", "--num_seeds=1", "--num_jobs=1", "--out=cmp"]
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


DAMAGED = {
    "an entry for the file itself": ("config: {a: 1}\nepochs: 1\n", "cannot be read"),
    "a billion laughs": (LAUGHS, "entries once its aliases are written out"),
    "a snake that bites its tail": ("data: &d [*d]\n", "contains itself"),
    "no schedule": ("schedule: null\n", "schedule must be a name such as"),
    "no posterior": ("posterior: null\n", "posterior must be a name such as"),
    "a program as a posterior": (
        "posterior: {class_path: os.system, init_args: {command: touch pwned}}\n",
        "does not correspond to a subclass of Posterior",
    ),
    "a program as a tag": ("posterior: !!python/object/apply:os.system ['touch pwned']\n", "python/object"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the parser's, of arguments that a wrong class would lose
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_configuration_gives_a_message(here, capsys, kind):
    text, message = DAMAGED[kind]
    (here / "c.yaml").write_text(text)
    before = sorted(here.iterdir())
    assert main(["fit", *TINY, "--config=c.yaml", "--out=run"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("flatbayes: ")
    assert message in said
    assert sorted(here.iterdir()) == before


def test_aliases_within_the_bound_are_read():
    text = "flatness: &f {rho: 0.1}\nposterior: [*f, *f]\n"
    assert load_bounded_yaml(text) == yaml.safe_load(text)


def test_missing_device_is_refused_before_anything_is_written(here, capsys):
    for command in (["fit", *POINT, "--out=run"], COMPARE):
        assert main([*command, "--distribution.accelerator=abacus"]) == 2
        assert "abacus" in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["epochs", "batch_size", "optimization.accumulation_steps", "num_validations"])
def test_integers_above_the_largest_float_are_refused(name):
    with pytest.raises(
        ValueError, match=f"{name.rpartition('.')[2]} must be at least [01] and at most 1000000000, got"
    ):
        TrainingConfig().with_options(**{name: 10**400})


@pytest.mark.parametrize("kind", [TypeError, UnboundLocalError])
def test_interrupt_turned_into_another_error_exits_with_130(here, capsys, monkeypatch, kind):
    def load(*_):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            while True:  # until it is delivered
                pass
        except KeyboardInterrupt:
            raise kind("could not determine the shape") from None

    monkeypatch.setattr("flatbayes.data.Digits.load", load)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(["fit", *POINT, "--out=run"]) == 130
    assert capsys.readouterr().err == "flatbayes: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_inside_a_finalizer_is_sent_again(here, capsys, monkeypatch):
    class Last:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs between two of them
                pass

    def load(*_):
        last = Last()
        del last
        time.sleep(60)
        raise AssertionError("Ctrl-C went unheard")

    monkeypatch.setattr("flatbayes.data.Digits.load", load)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    assert main(["fit", *POINT, "--out=run"]) == 130
    assert time.monotonic() - began < 30
    assert capsys.readouterr().err == "flatbayes: interrupted\n"


def test_overflow_gives_a_message(here, capsys):
    for more in (
        ["--flatness=looksam", f"--flatness.every={10**400}"],
        ["--schedule=cyclical", f"--schedule.times={10**400}"],
    ):
        code, said = main(["fit", *POINT, *more, "--out=run", "--overwrite"]), capsys.readouterr().err
        assert code in (0, 2)
        assert "Traceback" not in said
        assert code == 0 or said.startswith("flatbayes: ")


def test_divergence_in_the_last_step_is_an_error(here, capsys):
    far = ["--optimizer=SGD", "--batch_size=40", "--flatness=plain"]
    assert main(["fit", *POINT, *far, "--optimizer.lr=1e38", "--out=run"]) == 2
    assert "flatbayes: The validation loss is nan in epoch 1 of 1. Try a lower" in capsys.readouterr().err
    assert {path.name for path in (here / "run").glob("*.json")} == {"config.json", "environment.json"}


class Breaking(torch.optim.SGD):
    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(torch.inf)
        return loss


def test_divergence_in_the_last_step_is_detected_without_validation():
    config = TrainingConfig(epochs=1, batch_size=40, num_validations=0, optimizer=partial(Breaking, lr=0.1))
    with pytest.raises(RuntimeError, match="Some weights are not finite after the last step"):
        fit(partial(MLP, hidden=(4,)), Digits(train_size=40).load(seed=0), MAP(), Plain(), config)


def test_too_many_draws_are_refused_before_training(here, capsys):
    assert main(["fit", *POINT, f"--num_draws={10**400}", "--out=run"]) == 2
    assert "at most a million draws" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_defect_of_flatbayes_shows_its_traceback(here, monkeypatch):
    monkeypatch.setattr("flatbayes.data.Digits.load", lambda *_: {}["no such key"])
    with pytest.raises(KeyError, match="no such key"):
        main(["fit", *POINT, "--out=run"])


def test_memory_error_gives_a_message(here, capsys, monkeypatch):
    def load(*_):
        raise MemoryError("Unable to allocate 8 EiB")

    monkeypatch.setattr("flatbayes.data.Digits.load", load)
    assert main(["fit", *POINT, "--out=run"]) == 2
    assert "flatbayes: There is not enough memory (Unable to allocate 8 EiB)" in capsys.readouterr().err


def test_unprintable_characters_are_replaced(here, monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    command = ["tune", *TINY, "--posterior=map", "--num_trials=1", "--num_seeds=1", "--out=tuned"]
    assert main(command) == 0
    sys.stdout.flush()
    assert b"best" in shown.getvalue()


def test_killed_worker_gives_a_message(here, capsys, monkeypatch):
    def killed(**_):
        raise BrokenExecutor("A worker process was unexpectedly terminated")

    monkeypatch.setattr("joblib.Parallel", killed)
    assert main(COMPARE) == 2
    said = capsys.readouterr().err
    assert (
        "A process was killed, as happens when memory runs out. Finished runs are kept in cmp/runs, and the same"
        in said
    )
    monkeypatch.undo()
    os.chdir(here)
    assert main(COMPARE) == 0


@pytest.mark.parametrize("command", [["fit", *POINT, "--out=cmp"], COMPARE, [*COMPARE, "--overwrite"]])
def test_second_process_ends_at_once_and_writes_nothing(here, capsys, command):
    (here / "cmp").mkdir()
    (here / "cmp" / "results.json").write_text("{}")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock_folder(here / "cmp")
            os.write(writing, b"held")
            signal.pause()
        finally:
            os._exit(1)
    try:
        os.read(reading, 4)
        assert main(command) == 2
        assert f"cmp is being written to by process {child} on" in capsys.readouterr().err
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert {path.name for path in (here / "cmp").iterdir()} == {".lock", ".lock-holder", "results.json"}
