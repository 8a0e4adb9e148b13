"""Tuning: on validation data, within its ranges, resumable, and it finds what is better."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes.comparison import Task, tune, usual_ranges
from flatbayes.comparison.tuning import changed
from flatbayes.data import Digits
from flatbayes.flatness import SAM, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import SGVB, SWAG, Point
from flatbayes.training import Constant, Recipe

SGD = partial(torch.optim.SGD, lr=0.3)
TASK = Task(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posterior=Point(),
    flatness=SAM(rho=0.05),
    recipe=Recipe(epochs=2, batch_size=20, validations=0, schedule=Constant(), optimizer=SGD),
    seed=0,
)


def test_tries_within_the_ranges_and_goes_on_where_it_was(tmp_path, monkeypatch):
    parts = []
    attempt = Task.attempt
    monkeypatch.setattr(Task, "attempt", lambda task, folder: (parts.append(task.part), attempt(task, folder))[1])
    ranges = {"flatness.rho": (0.01, 50.0)}
    first = tune(TASK, ranges, trials=3, seeds=1, folder=tmp_path, progress=False)
    assert (len(first.trials), set(parts)) == (3, {"val"})
    assert all(0.01 <= trial["flatness.rho"] <= 50 for trial in first.trials)
    best = min(first.trials, key=lambda trial: trial["score"])
    assert first.best == replace(TASK, flatness=SAM(rho=best["flatness.rho"]))

    more = tune(TASK, ranges, trials=5, seeds=1, folder=tmp_path, progress=False)
    assert more.trials[:3] == first.trials
    assert len({trial["flatness.rho"] for trial in more.trials}) == len(parts) == 5
    assert tune(TASK, ranges, trials=5, seeds=1, folder=tmp_path, progress=False).trials == more.trials
    assert len(parts) == 5


def test_what_diverges_is_a_trial_without_a_score(tmp_path):
    diverging = replace(TASK, recipe=replace(TASK.recipe, optimizer=partial(torch.optim.SGD, lr=1e30)))
    with pytest.raises(RuntimeError, match=r"Nothing that was tried came to an end.*The last one said: The loss is"):
        tune(diverging, {"flatness.rho": (0.1, 1.0)}, trials=2, seeds=1, folder=tmp_path, progress=False)


def test_numbers_of_both_axes_may_change():
    task = changed(replace(TASK, posterior=SGVB()), {"posterior.temperature": 0.3, "flatness.rho": 0.2})
    assert (task.posterior, task.flatness) == (SGVB(temperature=0.3), SAM(rho=0.2))
    assert usual_ranges(TASK) == {"flatness.rho": (pytest.approx(0.005), pytest.approx(1.0))}


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
        tune(TASK, ranges, trials=1, seeds=1, folder=tmp_path)
    with pytest.raises(ValueError, match="has no radius to tune"):
        usual_ranges(replace(TASK, flatness=Plain()))


def test_another_metric_is_another_study_in_its_own_direction(tmp_path):
    ranges = {"flatness.rho": (0.01, 0.5)}
    by_nll = tune(TASK, ranges, trials=3, seeds=1, folder=tmp_path, progress=False)
    by_accuracy = tune(TASK, ranges, trials=3, seeds=1, folder=tmp_path, metric="accuracy", progress=False)
    assert by_accuracy.higher_is_better
    assert not by_nll.higher_is_better
    assert all(0 <= trial["score"] <= 1 for trial in by_accuracy.trials)
    best = max(by_accuracy.trials, key=lambda trial: trial["score"])
    assert by_accuracy.best.flatness.rho in [
        trial["flatness.rho"] for trial in by_accuracy.trials if trial["score"] == best["score"]
    ]
    two_seeds = tune(TASK, ranges, trials=1, seeds=2, folder=tmp_path, progress=False)
    assert len(two_seeds.trials) == 1
    other = tune(
        replace(TASK, posterior=SWAG(rank=2), recipe=replace(TASK.recipe, collect_from=0.0)),
        {"posterior.rank": (2, 6)}, trials=2, seeds=1, folder=tmp_path, progress=False,
    )  # fmt: skip
    assert all(isinstance(trial["posterior.rank"], int) for trial in other.trials)


def test_a_metric_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="Unknown metric 'loss'. Known: accuracy, nll"):
        tune(TASK, usual_ranges(TASK), trials=1, seeds=1, folder=tmp_path, metric="loss")
    with pytest.raises(ValueError, match="These data have no metric 'rmse'; they have accuracy"):
        tune(TASK, usual_ranges(TASK), trials=1, seeds=1, folder=tmp_path, metric="rmse", progress=False)


def test_says_which_extra_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'flatbayes\[tune\]'"):
        tune(TASK, usual_ranges(TASK), trials=1, seeds=1, folder=tmp_path)
