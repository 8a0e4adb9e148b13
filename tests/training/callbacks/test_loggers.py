"""What is seen of a long training: logs of other tools, lines, messages that come before the hours are spent."""

import csv
import json
import sys
import warnings
from functools import partial
from unittest.mock import Mock, call

import pytest
import torch

from flatbayes.cli import main
from flatbayes.data import Digits
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SGLD, SWAG, Ensemble
from flatbayes.training import (
    Callback,
    Checkpoints,
    CollectionConfig,
    ConsoleLogger,
    MetricLogger,
    TrainingConfig,
    dry_run,
    fit,
    make_logger,
)
from flatbayes.training.callbacks.loggers import JSONLinesLogger
from flatbayes.training.compatibility import check_collection

SGD = partial(torch.optim.SGD, lr=0.05)
CONFIG = TrainingConfig(
    epochs=4,
    batch_size=16,
    collection=CollectionConfig(start_fraction=0.0, snapshots_per_epoch=1),
    validate_every_n_epochs=3,
    optimizer=SGD,
)
DATA = Digits(train_size=64).load(seed=1)
MODEL = partial(MLP, hidden=(8,))


class Remembering:
    """A logger of the user's own."""

    def __init__(self):
        self.rows, self.saved = [], 0

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def save(self):
        self.saved += 1


def test_everything_is_passed_on():
    logger = Remembering()
    fit(MODEL, DATA, MAP(), Plain(), CONFIG, callback=MetricLogger([logger], every_n_steps=5))
    epochs = {step: set(metrics) for step, metrics in logger.rows if "loss" in metrics}
    usual = {"epoch", "loss", "lr", "peak_memory_mb", "seconds"}
    assert epochs == {
        4: usual,
        8: usual,
        12: usual | {"val_nll", "val_accuracy"},
        16: usual | {"val_nll", "val_accuracy"},
    }
    assert [step for step, metrics in logger.rows if "step_loss" in metrics] == [5, 10, 15]
    assert logger.saved == 4
    memory = [metrics["peak_memory_mb"] for _, metrics in logger.rows if "loss" in metrics]
    assert all(50 < size < 50_000 for size in memory)


def test_runs_are_told_apart():
    logger = Remembering()
    fit(MODEL, DATA, Ensemble(MAP(), size=2), Plain(), CONFIG, callback=MetricLogger([logger]))
    assert [min(metrics) for _, metrics in logger.rows] == ["run0/epoch"] * 4 + ["run1/epoch"] * 4
    together = Remembering()
    config = CONFIG.with_options(distribution={"members": "vectorized"})
    fit(MODEL, DATA, Ensemble(MAP(), size=2), Plain(), config, callback=MetricLogger([together]))
    assert [min(metrics) for _, metrics in together.rows] == ["run0/epoch", "run1/epoch"] * 4


def test_csv_and_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    loggers = [make_logger("csv", tmp_path), make_logger("tensorboard", tmp_path)]
    fit(MODEL, DATA, MAP(), Plain(), CONFIG, callback=MetricLogger(loggers))
    [path] = tmp_path.glob("csv/version_0/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "8", "12", "16"]
    assert [bool(row["val_nll"]) for row in rows] == [False, False, True, True]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the reader, not ours
        events = EventAccumulator(str(tmp_path / "tensorboard" / "version_0")).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [4, 8, 12, 16]
    assert [event.value for event in losses] == pytest.approx([float(row["loss"]) for row in rows])


def test_weights_and_biases_get_the_step_as_a_number(tmp_path, monkeypatch):
    run = Mock()
    monkeypatch.setitem(sys.modules, "wandb", Mock(init=Mock(return_value=run)))
    logger = make_logger("wandb", tmp_path)
    for step in (20, 4):  # early stopping has gone back
        logger.log_metrics({"loss": 0.5}, step=step)
    assert run.log.call_args_list == [call({"loss": 0.5, "train_step": step}) for step in (20, 4)]
    run.define_metric.assert_called_once_with("*", step_metric="train_step")


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of that package, not ours
        logger = make_logger("wandb", tmp_path)
        fit(MODEL, DATA, MAP(), Plain(), CONFIG, callback=MetricLogger([logger]))
        logger._run.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_a_log_that_goes_on_is_whole(tmp_path):
    class Stop(Callback):
        def on_step_end(self, step, loss, lr):
            if step == 10:
                raise SystemError

    checkpoints = Checkpoints(tmp_path, min_interval_seconds=0)
    with pytest.raises(SystemError):
        fit(MODEL, DATA, MAP(), Plain(), CONFIG, checkpoints=checkpoints, callback=Stop())
    logger, lines = Remembering(), []
    fit(MODEL, DATA, MAP(), Plain(), CONFIG, checkpoints=checkpoints, callback=MetricLogger([logger]))
    assert [step for step, metrics in logger.rows if "loss" in metrics] == [4, 8, 12, 16]
    checkpoints.remove()
    with pytest.raises(SystemError):
        fit(MODEL, DATA, MAP(), Plain(), CONFIG, checkpoints=checkpoints, callback=Stop())
    fit(MODEL, DATA, MAP(), Plain(), CONFIG, checkpoints=checkpoints, callback=ConsoleLogger(lines.append))
    assert lines[0] == "continuing after epoch 2, step 8 of 16"


def test_lines(monkeypatch):
    now, lines = 0.0, []
    monkeypatch.setattr("flatbayes.training.callbacks.console.time.monotonic", lambda: now)
    monkeypatch.setattr("flatbayes.training.callbacks.console.get_peak_memory_mb", lambda: 1234.4)
    watch = ConsoleLogger(lines.append, min_interval_seconds=60)
    watch.on_run_start(1, 3, 400)
    for epoch in range(1, 41):
        now += 10.0
        watch.on_epoch_end(
            {"epoch": epoch, "step": 10 * epoch, "loss": 0.5, "lr": 0.1, **({"val_nll": 0.7} if epoch == 7 else {})}
        )
    assert lines[0] == (
        "member 2 of 3, epoch 1, step 10 of 400: loss 0.5000, learning rate 0.1, 1,234 MiB, 0:06:30 left"
    )
    assert lines[1].startswith("member 2 of 3, epoch 7, step 70 of 400: loss 0.5000, validation NLL 0.7000, ")
    assert lines[-1].endswith("0:00:00 left")
    assert len(lines) == 8
    watch.on_message("look")
    assert lines[-1] == "look"


def test_too_few_snapshots_are_an_error_before_the_first_step():
    config = CONFIG.with_options(epochs=4, collection={"start_fraction": 0.8})
    with pytest.raises(
        ValueError, match=r"SWAG needs at least 2 .* this configuration .epochs=4. collects 1. Lower collect"
    ):
        fit(MODEL, DATA, SWAG(), SAM(), config, callback=Never())
    with pytest.raises(ValueError, match="SWAG needs at least 2"):
        dry_run(MODEL, DATA, SWAG(), SAM(), config)
    with pytest.raises(ValueError, match="needs at least 2"):
        fit(MODEL, DATA, Ensemble(SWAG(), size=2), SAM(), config, callback=Never())


class Never(Callback):
    def on_step_end(self, step, loss, lr):
        raise AssertionError("it was trained")


def test_few_snapshots_are_said_early():
    seen = []

    class Notes(Never):
        def on_message(self, text):
            seen.append(text)

    with pytest.raises(AssertionError, match="trained"):
        fit(MODEL, DATA, SWAG(rank=20), SAM(), CONFIG, callback=Notes())
    [text] = seen
    assert text.startswith("SWAG can use 20 snapshots, and this configuration (epochs=4) collects 4: ")
    assert check_collection(SWAG(rank=8), CONFIG, 4) is None
    assert check_collection(SWAG(rank=0), CONFIG, 4) is None
    assert check_collection(SGLD(max_snapshots=9), CONFIG, 4) is not None
    assert check_collection(MAP(), CONFIG.with_options(collection={"start_fraction": 0.99}), 4) is None


def test_the_command_line_logs_and_says_how_long(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["fit", "--data", "digits", "--data.train_size", "60", "--model", "mlp", "--epochs", "3",
               "--num_draws", "2", "--posterior", "map", "--out", "run", "--log", "csv", "tensorboard"]  # fmt: skip
    assert main(command) == 0
    shown = capsys.readouterr().err
    assert "epoch 1, step 1 of 3: loss" in shown
    assert "MiB, 0:00:00 left" in shown
    assert (tmp_path / "run/logs/csv/version_0/metrics.csv").is_file()
    assert list((tmp_path / "run/logs/tensorboard/version_0").iterdir())
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    assert [path.name for path in (tmp_path / "run/logs/csv").iterdir()] == ["version_0"]
    assert main([*command[:-2], "nosuch"]) == 2


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="at least 1; got 0"):
        MetricLogger([], every_n_steps=0)
    with pytest.raises(ValueError, match="tensorboard, csv or wandb"):
        make_logger("paper", tmp_path)
    with pytest.raises(ValueError, match="validate_every_n_epochs must be at least 1"):
        TrainingConfig(validate_every_n_epochs=0)


def test_a_log_has_no_epoch_twice_after_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logger = JSONLinesLogger(path)
    for member in range(3):
        logger.on_run_start(member, 3, 10)
        logger.on_epoch_end({"epoch": 1})
    path.write_text(path.read_text() + '{"member": 2, "epo')  # killed while it wrote
    logger = JSONLinesLogger(path)
    logger.on_run_start(0, 3, 10)
    logger.on_resume([{"epoch": 1}])  # finished
    logger.on_run_start(1, 3, 10)
    logger.on_epoch_end({"epoch": 1})  # without a checkpoint, so from the beginning
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"member": 0, "epoch": 1},
        {"member": 1, "epoch": 1},
    ]


def test_records_of_vectorized_members_are_replaced_together(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        logger = JSONLinesLogger(path)
        logger.on_run_start(0, 1, 10)
        for member in range(3):
            logger.on_epoch_end({"member": member, "epoch": 1})
    assert len(path.read_text().splitlines()) == 3
