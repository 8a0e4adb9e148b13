"""Tuning on validation data: within its ranges, resumable, and in the direction of the metric."""

import sys
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch

from flatbayes.data import Digits
from flatbayes.experiments import ExperimentRun, default_ranges, tune_hyperparameters
from flatbayes.experiments import run as run_module
from flatbayes.experiments.ranges import extend_ranges, is_whole_number, replace_hyperparameters
from flatbayes.flatness import LESAM, SAM, Delayed, Flatness, Plain
from flatbayes.models import MLP
from flatbayes.posteriors import MAP, SGHMC, SGVB, SWAG, BLoB, Ensemble, Laplace
from flatbayes.training import Constant, TrainingConfig, recording
from flatbayes.training.loop import train

SGD = partial(torch.optim.SGD, lr=0.3)
RUN = ExperimentRun(
    source=Digits(train_size=60, val_size=40),
    model=partial(MLP, hidden=(16,)),
    posterior=MAP(),
    flatness=SAM(rho=0.05),
    config=TrainingConfig(epochs=2, batch_size=20, num_validations=0, schedule=Constant(), optimizer=SGD),
    seed=0,
)


def test_trials_are_within_the_ranges_and_continue_an_earlier_call(tmp_path, monkeypatch):
    splits = []
    execute = run_module.execute_together
    monkeypatch.setattr(
        run_module,
        "execute_together",
        lambda runs, *args: (splits.extend(run.split for run in runs), execute(runs, *args))[1],
    )
    ranges = {"flatness.rho": (0.01, 50.0)}
    first = tune_hyperparameters(RUN, ranges, num_trials=3, num_seeds=1, folder=tmp_path, show_progress=False)
    assert (len(first.trials), set(splits)) == (3, {"val"})
    assert all(0.01 <= trial["flatness.rho"] <= 50 for trial in first.trials)
    best = min(first.trials, key=lambda trial: trial["score"])
    flat = SAM(rho=best["flatness.rho"])
    plain_score = replace(RUN, flatness=Plain(), split="val").execute().metrics["nll"]
    assert first.plain_score == pytest.approx(plain_score)
    assert first.flatness_pays is (best["score"] < plain_score)
    assert first.best_run == replace(RUN, flatness=flat if best["score"] < plain_score else Plain())
    verdict = "pays here" if first.flatness_pays else "does not pay here"
    assert f"Flatness {verdict}: plain training nll {plain_score:.4f}" in first.summary()

    more = tune_hyperparameters(RUN, ranges, num_trials=5, num_seeds=1, folder=tmp_path, show_progress=False)
    assert more.trials[:3] == first.trials
    assert len({trial["flatness.rho"] for trial in more.trials}) == len(splits) - 2 == 5  # and plain training, twice
    assert (
        tune_hyperparameters(RUN, ranges, num_trials=5, num_seeds=1, folder=tmp_path, show_progress=False).trials
        == more.trials
    )
    assert len(splits) == 7


def test_a_radius_is_extended_at_an_edge_and_0_can_win(tmp_path):
    options = {"num_seeds": 1, "num_trials": 1, "show_progress": False}
    small = tune_hyperparameters(
        RUN, {"flatness.rho": (1e-6, 1.1e-6)}, folder=tmp_path / "a", **options | {"num_trials": 6}
    )
    assert any(trial["flatness.rho"] < 1e-6 or trial["flatness.rho"] > 1.1e-6 for trial in small.trials)
    large = tune_hyperparameters(RUN, {"flatness.rho": (1e3, 2e3)}, folder=tmp_path / "b", **options)
    assert large.flatness_pays is False
    assert large.flatness == Plain()
    assert large.best_score == large.plain_score
    assert "Flatness does not pay here" in large.summary()
    large.plot()
    rank = replace(RUN, posterior=SWAG(rank=2), config=RUN.config.with_options(collection={"start_fraction": 0.0}))
    other = tune_hyperparameters(rank, {"posterior.scale": (0.1, 0.2)}, folder=tmp_path / "c", **options)
    assert other.flatness_pays is None
    assert all(0.1 <= trial["posterior.scale"] <= 0.2 for trial in other.trials)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, 0.3, 0.2, 0.1], (0.025, 1.0)),
        ([0.1, 0.3, 0.5, 1.0], (0.1, 4.0)),
        ([0.1, 0.5, 0.3, 0.4], (0.1, 1.0)),
        ([0.5, 0.3, 0.1], (0.1, 1.0)),  # too few
        ([0.9, 0.5, 0.2, 0.1, 0.09, 0.08, 0.07, 0.026, *[0.0065 / 4**k for k in range(20)]], (0.1 / 4**3, 1.0)),
    ],
)
def test_ranges_grow_where_the_best_value_is_at_an_edge(values, expected):
    trials = [{"flatness.rho": value, "score": 10.0 - k} for k, value in enumerate(values)]
    ranges, names = {"flatness.rho": (0.1, 1.0)}, ["flatness.rho"]
    assert extend_ranges(ranges, trials, names, higher_is_better=False)["flatness.rho"] == pytest.approx(expected)
    assert extend_ranges(ranges, trials, [], higher_is_better=False) == ranges
    upside_down = [{**trial, "score": -trial["score"]} for trial in trials]
    assert extend_ranges(ranges, upside_down, names, higher_is_better=True)["flatness.rho"] == pytest.approx(expected)


def test_a_diverging_trial_has_no_score(tmp_path):
    diverging = replace(RUN, config=replace(RUN.config, optimizer=partial(torch.optim.SGD, lr=1e30)))
    with pytest.raises(RuntimeError, match=r"All trials failed.*The last reason: The loss is"):
        tune_hyperparameters(
            diverging, {"flatness.rho": (0.1, 1.0)}, num_trials=2, num_seeds=1, folder=tmp_path, show_progress=False
        )


def test_the_annotation_says_which_hyperparameters_are_whole_numbers():
    for flat, name in (
        (SAM(rho=1.0), "rho"),
        (LESAM(loss_budget=1.0), "loss_budget"),
        (Delayed(SAM(rho=1.0)), "flatness.rho"),
    ):
        assert not is_whole_number(replace(RUN, flatness=flat), f"flatness.{name}")
    for posterior, name in ((SWAG(), "rank"), (BLoB(), "kl_cycle"), (Ensemble(SWAG()), "member.rank")):
        assert is_whole_number(replace(RUN, posterior=posterior), f"posterior.{name}")
    assert not is_whole_number(replace(RUN, posterior=SWAG(scale=1.0)), "posterior.scale")


def test_the_value_says_it_where_an_annotation_cannot_be_evaluated():
    @dataclass(frozen=True)
    class Flat(SAM):
        loader: "Missing | None" = None  # noqa: F821
        epochs: int = 3

    run = replace(RUN, flatness=Flat(rho=0.1))
    assert not is_whole_number(run, "flatness.rho")
    assert is_whole_number(run, "flatness.epochs")


def test_hyperparameters_of_posterior_and_flatness_can_be_replaced():
    run = replace_hyperparameters(replace(RUN, posterior=SGVB()), {"posterior.temperature": 0.3, "flatness.rho": 0.2})
    assert (run.posterior, run.flatness) == (SGVB(temperature=0.3), SAM(rho=0.2))
    assert default_ranges(RUN) == {"flatness.rho": (pytest.approx(0.005), pytest.approx(1.0))}
    for flat, name, low in [
        (LESAM(), "flatness.loss_budget", 0.005),
        (Delayed(SAM(rho=0.2)), "flatness.flatness.rho", 0.02),
        (SAM(rho="auto"), "flatness.rho", 0.005),
    ]:
        run = replace(RUN, flatness=flat)
        assert default_ranges(run)[name][0] == pytest.approx(low)
        assert replace_hyperparameters(run, {name: 0.3}).flatness == flat.with_radius(0.3)
        assert replace_hyperparameters(run, {name: 0.0}).flatness == Plain()


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({}, "nothing to tune"),
        ({"rho": (0.1, 1.0)}, "neither of the posterior nor of the flatness"),
        ({"flatness.radius": (0.1, 1.0)}, "has no number 'radius' to tune. It has rho, ascent_steps"),
        ({"flatness.rho": (1.0, 0.1)}, "must satisfy 0 < low <= high"),
        ({"flatness.rho": (0.0, 0.1)}, "must satisfy 0 < low <= high"),
    ],
)
def test_bad_ranges(ranges, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tune_hyperparameters(RUN, ranges, num_trials=1, num_seeds=1, folder=tmp_path)
    with pytest.raises(ValueError, match="has no radius to tune"):
        default_ranges(replace(RUN, flatness=Plain()))


def test_another_metric_is_another_study_in_its_own_direction(tmp_path):
    ranges = {"flatness.rho": (0.01, 0.5)}
    by_nll = tune_hyperparameters(RUN, ranges, num_trials=3, num_seeds=1, folder=tmp_path, show_progress=False)
    by_accuracy = tune_hyperparameters(
        RUN, ranges, num_trials=3, num_seeds=1, folder=tmp_path, metric="accuracy", show_progress=False
    )
    assert by_accuracy.higher_is_better
    assert not by_nll.higher_is_better
    assert all(0 <= trial["score"] <= 1 for trial in by_accuracy.trials)
    best = max(by_accuracy.trials, key=lambda trial: trial["score"])
    if by_accuracy.flatness_pays:
        radii = [t["flatness.rho"] for t in by_accuracy.trials if t["score"] == best["score"]]
        assert by_accuracy.best_run.flatness.rho in radii
    else:
        assert by_accuracy.best_score >= best["score"]
    two_seeds = tune_hyperparameters(RUN, ranges, num_trials=1, num_seeds=2, folder=tmp_path, show_progress=False)
    (trial,) = two_seeds.trials
    tuned = replace_hyperparameters(RUN, {"flatness.rho": trial["flatness.rho"]})
    results = [replace(tuned, seed=seed, split="val").load_result(tmp_path / "runs") for seed in (0, 1)]
    assert trial["score"] == pytest.approx(sum(result.metrics["nll"] for result in results) / 2)
    other = tune_hyperparameters(
        replace(RUN, posterior=SWAG(rank=2), config=RUN.config.with_options(collection={"start_fraction": 0.0})),
        {"posterior.rank": (2, 6)}, num_trials=2, num_seeds=1, folder=tmp_path, show_progress=False,
    )  # fmt: skip
    assert all(isinstance(trial["posterior.rank"], int) for trial in other.trials)


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Unknown metric 'loss'. Known: accuracy, nll"):
        tune_hyperparameters(RUN, default_ranges(RUN), num_trials=1, num_seeds=1, folder=tmp_path, metric="loss")
    with pytest.raises(ValueError, match="These data have no metric 'rmse'; they have accuracy"):
        tune_hyperparameters(
            RUN, default_ranges(RUN), num_trials=1, num_seeds=1, folder=tmp_path, metric="rmse", show_progress=False
        )


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"pip install 'flatbayes\[tune\]'"):
        tune_hyperparameters(RUN, default_ranges(RUN), num_trials=1, num_seeds=1, folder=tmp_path)


@pytest.mark.parametrize(
    ("posterior", "ranges", "num_trainings"),
    [
        (SWAG(rank=2), {"posterior.rank": (2, 4), "posterior.scale": (0.1, 1.0)}, 2),
        (Ensemble(SGHMC(max_snapshots=2), size=2), {"posterior.size": (2, 3)}, 6),
        pytest.param(Laplace(), {"posterior.temperature": (0.01, 1.0)}, 2, marks=pytest.mark.slow),
        pytest.param(
            Laplace(),
            {"posterior.temperature": (0.01, 1.0), "flatness.rho": (0.01, 0.1)},
            8,  # with those of radius 0
            marks=pytest.mark.slow,
        ),
    ],
    ids=["SWAG", "size", "Laplace", "rho"],
)
def test_trials_with_the_same_training_train_once(tmp_path, monkeypatch, posterior, ranges, num_trainings):
    trained = []
    monkeypatch.setattr(recording, "train", lambda run, *args: (trained.append(run), train(run, *args))[1])
    optimizer = partial(torch.optim.SGD, lr=0.05, weight_decay=1e-3)
    run = replace(RUN, posterior=posterior, config=replace(RUN.config, optimizer=optimizer))
    options = {"num_trials": 3, "num_seeds": 2, "show_progress": False}
    shared = tune_hyperparameters(run, ranges, folder=tmp_path / "shared", **options)
    assert len(trained) == num_trainings
    alone = tune_hyperparameters(run, ranges, folder=tmp_path / "alone", share_trainings=False, **options)
    assert shared.trials == alone.trials
    values = {tuple(trial[name] for name in ranges) for trial in alone.trials}
    if "posterior.size" not in ranges:
        assert len(trained) == num_trainings + 2 * (len(values) + ("flatness.rho" in ranges))


def test_a_method_that_is_no_dataclass_has_no_hyperparameters(tmp_path):
    class Mine(Flatness):
        gradients_per_step = 1

        def __init__(self):
            self.rho = 0.1

        def __call__(self, closure, model, progress=None):
            return closure

    run = replace(RUN, flatness=Mine())
    with pytest.raises(
        ValueError, match=r"'flatness.rho' cannot be tuned: Mine is no dataclass, .* @dataclass\(frozen"
    ):
        tune_hyperparameters(run, {"flatness.rho": (0.1, 1)}, num_trials=1, num_seeds=1, folder=tmp_path)
