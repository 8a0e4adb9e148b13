"""Tuning: on validation data, within its ranges, resumable, and it finds what is better."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes.data import Digits
from flatbayes.experiments import ExperimentRun, default_ranges, tune_hyperparameters
from flatbayes.experiments.tuning import replace_hyperparameters
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SGVB, SWAG
from flatbayes.training import Constant, TrainingConfig

SGD = partial(torch.optim.SGD, lr=0.3)
TASK = ExperimentRun(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posterior=MAP(),
    flatness=SAM(rho=0.05),
    config=TrainingConfig(epochs=2, batch_size=20, num_validations=0, schedule=Constant(), optimizer=SGD),
    seed=0,
)


def test_tries_within_the_ranges_and_goes_on_where_it_was(tmp_path, monkeypatch):
    parts = []
    attempt = ExperimentRun.try_execute
    monkeypatch.setattr(
        ExperimentRun, "try_execute", lambda task, folder: (parts.append(task.split), attempt(task, folder))[1]
    )
    ranges = {"flatness.rho": (0.01, 50.0)}
    first = tune_hyperparameters(TASK, ranges, num_trials=3, num_seeds=1, folder=tmp_path, show_progress=False)
    assert (len(first.trials), set(parts)) == (3, {"val"})
    assert all(0.01 <= trial["flatness.rho"] <= 50 for trial in first.trials)
    best = min(first.trials, key=lambda trial: trial["score"])
    assert first.best_run == replace(TASK, flatness=SAM(rho=best["flatness.rho"]))

    more = tune_hyperparameters(TASK, ranges, num_trials=5, num_seeds=1, folder=tmp_path, show_progress=False)
    assert more.trials[:3] == first.trials
    assert len({trial["flatness.rho"] for trial in more.trials}) == len(parts) == 5
    assert (
        tune_hyperparameters(TASK, ranges, num_trials=5, num_seeds=1, folder=tmp_path, show_progress=False).trials
        == more.trials
    )
    assert len(parts) == 5


def test_what_diverges_is_a_trial_without_a_score(tmp_path):
    diverging = replace(TASK, config=replace(TASK.config, optimizer=partial(torch.optim.SGD, lr=1e30)))
    with pytest.raises(RuntimeError, match=r"Nothing that was tried came to an end.*The last one said: The loss is"):
        tune_hyperparameters(
            diverging, {"flatness.rho": (0.1, 1.0)}, num_trials=2, num_seeds=1, folder=tmp_path, show_progress=False
        )


def test_numbers_of_both_axes_may_change():
    task = replace_hyperparameters(
        replace(TASK, posterior=SGVB()), {"posterior.temperature": 0.3, "flatness.rho": 0.2}
    )
    assert (task.posterior, task.flatness) == (SGVB(temperature=0.3), SAM(rho=0.2))
    assert default_ranges(TASK) == {"flatness.rho": (pytest.approx(0.005), pytest.approx(1.0))}


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "nothing to tune"),
        ({"rho": (0.1, 1.0)}, "neither of the posterior nor of the flatness"),
        ({"flatness.radius": (0.1, 1.0)}, "has no number 'radius'; it has rho, ascent_steps"),
        ({"flatness.rho": (1.0, 0.1)}, "must satisfy 0 < low <= high"),
        ({"flatness.rho": (0.0, 0.1)}, "must satisfy 0 < low <= high"),
    ],
)
def test_bad_ranges(ranges, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tune_hyperparameters(TASK, ranges, num_trials=1, num_seeds=1, folder=tmp_path)
    with pytest.raises(ValueError, match="has no radius to tune"):
        default_ranges(replace(TASK, flatness=Plain()))


def test_another_metric_is_another_study_in_its_own_direction(tmp_path):
    ranges = {"flatness.rho": (0.01, 0.5)}
    by_nll = tune_hyperparameters(TASK, ranges, num_trials=3, num_seeds=1, folder=tmp_path, show_progress=False)
    by_accuracy = tune_hyperparameters(
        TASK, ranges, num_trials=3, num_seeds=1, folder=tmp_path, metric="accuracy", show_progress=False
    )
    assert by_accuracy.higher_is_better
    assert not by_nll.higher_is_better
    assert all(0 <= trial["score"] <= 1 for trial in by_accuracy.trials)
    best = max(by_accuracy.trials, key=lambda trial: trial["score"])
    assert by_accuracy.best_run.flatness.rho in [
        trial["flatness.rho"] for trial in by_accuracy.trials if trial["score"] == best["score"]
    ]
    two_seeds = tune_hyperparameters(TASK, ranges, num_trials=1, num_seeds=2, folder=tmp_path, show_progress=False)
    assert len(two_seeds.trials) == 1
    other = tune_hyperparameters(
        replace(TASK, posterior=SWAG(rank=2), config=TASK.config.with_options(collection={"start_fraction": 0.0})),
        {"posterior.rank": (2, 6)}, num_trials=2, num_seeds=1, folder=tmp_path, show_progress=False,
    )  # fmt: skip
    assert all(isinstance(trial["posterior.rank"], int) for trial in other.trials)


def test_a_metric_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="Unknown metric 'loss'. Known: accuracy, nll"):
        tune_hyperparameters(TASK, default_ranges(TASK), num_trials=1, num_seeds=1, folder=tmp_path, metric="loss")
    with pytest.raises(ValueError, match="These data have no metric 'rmse'; they have accuracy"):
        tune_hyperparameters(
            TASK, default_ranges(TASK), num_trials=1, num_seeds=1, folder=tmp_path, metric="rmse", show_progress=False
        )


def test_says_which_extra_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'flatbayes\[tune\]'"):
        tune_hyperparameters(TASK, default_ranges(TASK), num_trials=1, num_seeds=1, folder=tmp_path)
