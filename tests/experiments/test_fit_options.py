"""Options of `fit` in every function that fits posteriors: likelihood, output, trained weights, transform."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from flatbayes import (
    MAP,
    MLP,
    SAM,
    SWAG,
    Arrays,
    Ensemble,
    Gaussian,
    Plain,
    compare,
    evaluate,
    fit,
    fit_together,
    tune,
)
from flatbayes.cli.main import main
from flatbayes.core.files import read_json
from flatbayes.data import Standardize
from flatbayes.experiments import Comparison, ExperimentRun, FitOptions, Method, select_methods
from flatbayes.reference import ReferenceConfig, sample_reference
from flatbayes.training import FINE_TUNING, Checkpoints, TrainingConfig, dry_run, fit_cross_conformal

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(60, 3))
LABELS, COUNTS = np.arange(60) % 2, np.arange(60)
CONFIG = TrainingConfig(epochs=2, batch_size=20)
SMALL = partial(MLP, hidden=(4,))
ONE = {"config": CONFIG, "num_seeds": 1}
WHOLE = Arrays(FEATURES, COUNTS)


def read_metrics(folder):
    """Metrics of the first run in the folder of a selection."""
    return read_json(next((folder / "runs").glob("*.json")))["metrics"]


def select(source, folder, **options):
    fit_options = FitOptions(**options)
    comparison = Comparison(fit_options.apply_task(source), SMALL, [MAP()], options=fit_options, **ONE)
    select_methods(comparison, {"MAP": [Method(MAP())]}, [SAM()], folder, jobs=1, num_extensions=0)
    return read_metrics(folder)


def tune_and_read(source, folder, **options):
    tune(SMALL, source, MAP(), num_trials=1, folder=folder, **ONE, **options)
    return read_metrics(folder)


def cross_fit(source, folder, **options):
    pair = source.inputs, source.targets
    cross = fit_cross_conformal(SMALL, pair, MAP(), Plain(), CONFIG, num_folds=2, **options)
    return evaluate(cross.members[0], pair).metrics


def sample(source, folder, **options):
    config = ReferenceConfig(num_chains=1, num_steps=4, num_draws=4, num_tuning_steps=10, num_descent_steps=1)
    return {"rmse": 0} if isinstance(sample_reference(SMALL, source, config, **options).likelihood, Gaussian) else {}


def score(fitted):
    return evaluate(fitted, (FEATURES, COUNTS)).metrics


FUNCTIONS = {
    "fit": lambda source, _, **options: score(fit(SMALL, source, MAP(), config=CONFIG, **options)),
    "fit_together": lambda source, _, **options: score(
        fit_together(SMALL, source, [MAP()], config=CONFIG, **options)[0]
    ),
    "dry_run": lambda source, _, **options: dry_run(SMALL, source, MAP(), SAM(), CONFIG, **options) or {"rmse": 0},
    "compare": lambda source, _, **options: (
        compare(SMALL, source, [MAP()], num_jobs=1, **ONE, **options).runs[0].metrics
    ),
    "tune": tune_and_read,
    "select_methods": select,
    "fit_cross_conformal": cross_fit,
    "sample_reference": sample,
}
"""Metrics of what each function fits."""


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("likelihood", ["Gaussian", Gaussian()], ids=["name", "instance"])
def test_a_gaussian_makes_whole_numbers_a_regression(function, likelihood, tmp_path):
    with pytest.raises(ValueError, match="regression"):
        function(WHOLE, tmp_path / "classes")
    assert "rmse" in function(WHOLE, tmp_path, likelihood=likelihood)


class WithHidden(nn.Module):
    """A network with two outputs."""

    def __init__(self, num_outputs):
        super().__init__()
        self.layer = nn.Linear(3, num_outputs)

    def forward(self, x):
        return {"hidden": x, "logits": self.layer(x)}


STATE_DICTS = [SMALL(input_shape=(3,), num_classes=k).state_dict() for k in (2, 5)]
OPTIONS = {
    "output": (WithHidden, {"output": "logits"}),
    "init": (SMALL, {"init": STATE_DICTS[0]}),
    "new_head": (SMALL, {"init": STATE_DICTS[1], "new_head": True}),
    "freeze": (SMALL, {"freeze": ["layers.1.*"]}),
    "transform": (SMALL, {"transform": Standardize(mean=torch.ones(3), std=torch.full((3,), 2.0))}),
}


@pytest.mark.parametrize(("model", "options"), OPTIONS.values(), ids=list(OPTIONS))
def test_a_run_of_a_comparison_is_the_fit_with_its_options(model, options, tmp_path):
    source = Arrays(FEATURES, LABELS)
    arguments = {"folder": tmp_path, "num_draws": 3, "num_jobs": 1, **ONE}
    results = compare(model, source, [SWAG(rank=2)], **arguments, **options)
    data = source.load(0)
    fitted = fit(model, data, SWAG(rank=2), Plain(), CONFIG, **options)
    expected = evaluate(fitted, data.test, num_draws=3, seed=0).metrics
    plain = next(run for run in results.runs if run.flatness == "Plain")
    assert {name: plain.metrics[name] for name in expected} == expected
    unlike = evaluate(fit(SMALL, data, SWAG(rank=2), Plain(), CONFIG), data.test, num_draws=3, seed=0).metrics
    assert unlike["nll"] != expected["nll"]
    files = set(tmp_path.rglob("*.json"))
    assert compare(model, source, [SWAG(rank=2)], **arguments, **options).runs == results.runs
    assert set(tmp_path.rglob("*.json")) == files  # nothing was trained again
    with pytest.raises(ValueError, match="another"):
        compare(SMALL, source, [SWAG(rank=2)], **arguments)


def test_options_that_are_not_set_leave_the_names_of_results_as_they_were():
    run = ExperimentRun(Arrays(FEATURES, LABELS), SMALL, MAP(), SAM(), CONFIG, seed=0)
    options = FitOptions(init=STATE_DICTS[0])
    starts = [options.fingerprint_start(SMALL), FitOptions(init=STATE_DICTS[1]).fingerprint_start(SMALL)]
    runs = [run, *(replace(run, options=options, model_fingerprint=start) for start in starts)]
    assert len({run.cache_key() for run in runs}) == len({run.training_key() for run in runs}) == 3
    comparisons = [Comparison(run.source, SMALL, [MAP()], options=each) for each in (FitOptions(), options)]
    assert [comparison.describe()["options"] is None for comparison in comparisons] == [True, False]


def test_starts_of_every_kind_are_told_apart():
    networks = [SMALL(input_shape=(3,), num_classes=2) for _ in range(2)]
    fitted = [
        fit(network, (FEATURES[:40], LABELS[:40]), MAP(), Plain(), TrainingConfig(epochs=0), val=None)
        for network in networks
    ]

    def fingerprint(init):
        return FitOptions(init=init).fingerprint_start(SMALL)

    assert [fingerprint(network) for network in networks] == [fingerprint(net.state_dict()) for net in networks]
    assert len({fingerprint(init) for init in (*networks, *fitted, networks)}) == 5
    assert fingerprint(fitted[0]) == fingerprint(fitted[0])


def test_trained_weights_are_fine_tuned_without_an_ensemble_of_equal_starts(monkeypatch):
    compared = []
    monkeypatch.setattr(Comparison, "run", lambda self, *args, **options: compared.append(self) or 1 / 0)
    for options in ({"init": STATE_DICTS[0]}, {"init": STATE_DICTS[1], "new_head": True}):
        with pytest.raises(ZeroDivisionError):
            compare(SMALL, Arrays(FEATURES, LABELS), **options)
    assert [any(isinstance(p, Ensemble) for p in comparison.posteriors) for comparison in compared] == [False, True]
    assert [comparison.config for comparison in compared] == [FINE_TUNING, FINE_TUNING]


VERBS = {
    "compare": ["--posteriors", "[MAP]", "--num_jobs", "1"],
    "tune": ["--posterior", "MAP", "--num_trials", "1"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_commands_start_from_trained_weights(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=FEATURES, y=LABELS)
    torch.save(STATE_DICTS[1], "net.pt")
    command = [
        verb, "--data", "data.npz", "--model", "MLP", "--model.hidden", "[4]", "--num_seeds", "1", "--num_draws", "2",
        "--init", "net.pt", "--new_head", "--freeze", "[layers.1.*]", "--epochs", "1", "--out", "out",
        *VERBS[verb],
    ]  # fmt: skip
    assert main(command) == 0
    if verb == "compare":
        options = read_json(tmp_path / "out" / "config.json")["options"]["init_args"]
        assert (options["new_head"], options["freeze"]) == (True, ["layers.1.*"])
        return
    tuned = yaml.safe_load((tmp_path / "out" / "tuned.yaml").read_text(encoding="utf-8"))
    assert (tuned["init"], tuned["new_head"], tuned["freeze"]) == (["net.pt"], True, ["layers.1.*"])
    assert main(["fit", "--config", "out/tuned.yaml", "--out", "mine", "--num_draws", "2"]) == 0
    assert read_json(tmp_path / "mine" / "config.json")["freeze"] == ["layers.1.*"]


def test_folds_have_checkpoints_of_their_own(tmp_path):
    checkpoints = Checkpoints(tmp_path / "kept", min_interval_seconds=0.0)
    arguments = SMALL, (FEATURES, LABELS), MAP(), Plain(), CONFIG
    first = fit_cross_conformal(*arguments, num_folds=2, checkpoints=checkpoints)
    again = fit_cross_conformal(*arguments, num_folds=2, checkpoints=checkpoints)
    assert torch.equal(first.fold_scores[1], again.fold_scores[1])
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"fold-0", "fold-1"}
    checkpoints.remove()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("function", [compare, tune])
def test_an_unknown_argument_is_refused_with_the_name_that_was_meant(function):
    with pytest.raises(TypeError, match=r"\(\) got an unexpected keyword argument 'num_seed'.*num_seeds"):
        function(SMALL, WHOLE, num_seed=2)


@pytest.mark.parametrize("posterior", [MAP(), "MAP"], ids=str)
def test_a_single_posterior_is_compared(posterior):
    result = compare(SMALL, (FEATURES, LABELS), posterior, config=CONFIG, num_seeds=1, num_jobs=1)
    assert {run.posterior for run in result.runs} == {"MAP"}
