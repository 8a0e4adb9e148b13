"""`compare` and `tune` from Python, and what their results show."""

from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from flatbayes import MAP, MLP, SAM, SGLD, SWAG, Arrays, Digits, Ensemble, MCDropout, Plain, compare, tune
from flatbayes.core.spec import short_name
from flatbayes.experiments import Comparison

mpl.use("Agg")
RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.normal(size=(60, 3)), np.arange(60) % 2
OPTIONS = {"config": {"epochs": 2, "batch_size": 20}, "num_seeds": 2, "num_draws": 2, "num_jobs": 1}


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def classification():
    return compare("MLP", (FEATURES, LABELS), [MAP(), SWAG(rank=2)], **OPTIONS)


@pytest.fixture(scope="module")
def regression():
    return compare(partial(MLP, hidden=(4,)), (FEATURES, FEATURES.sum(1)), [MAP()], **OPTIONS)


@pytest.mark.parametrize(
    "data",
    [
        Digits(train_size=40),
        Digits(train_size=40).load(0),
        TensorDataset(torch.as_tensor(FEATURES), torch.as_tensor(LABELS)),
    ],
    ids=["source", "splits", "dataset"],
)
def test_every_kind_of_data_is_compared(data):
    results = compare(partial(MLP, hidden=(4,)), data, [MAP()], **OPTIONS | {"num_seeds": 1})
    assert {run.flatness for run in results.runs} == {"Plain", "SAM"}


def test_a_trained_network_is_the_start_of_every_seed(tmp_path):
    network = nn.Linear(3, 2)
    weights = network.weight.detach().clone()
    first = compare(network, (FEATURES, LABELS), [MAP()], folder=tmp_path, **OPTIONS)
    assert torch.equal(network.weight, weights)
    files = set(tmp_path.rglob("*.json"))
    assert compare(network, (FEATURES, LABELS), [MAP()], folder=tmp_path, **OPTIONS).runs == first.runs
    assert set(tmp_path.rglob("*.json")) == files  # nothing was trained again
    with torch.no_grad():
        network.weight += 1.0
    with pytest.raises(ValueError, match="model_fingerprint"):
        compare(network, (FEATURES, LABELS), [MAP()], folder=tmp_path, **OPTIONS)


def test_other_data_in_the_same_folder_are_refused(tmp_path):
    compare("MLP", (FEATURES, LABELS), [MAP()], folder=tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="train has other values in its 43 rows"):
        compare("MLP", (FEATURES + 1, LABELS), [MAP()], folder=tmp_path, **OPTIONS)
    assert compare("MLP", (FEATURES + 1, LABELS), [MAP()], folder=tmp_path, overwrite=True, **OPTIONS).rows


def test_what_does_not_go_together_is_refused_before_training(monkeypatch):
    monkeypatch.setattr(Comparison, "run", lambda *args, **kwargs: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="Periodic"):
        compare("MLP", (FEATURES, LABELS), [SGLD()], "Periodic", **OPTIONS)


def test_a_network_is_compared_without_an_ensemble_by_default():
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2))
    results = compare(network, (FEATURES, LABELS), **OPTIONS)
    assert [row.posterior for row in results.rows[::8]] == ["MCDropout(rate=0.1)", "SWAG(rank=0)", "SWAG"]
    with pytest.raises(ValueError, match="Pass its class, or a function"):
        compare(network, (FEATURES, LABELS), [MCDropout(rate=0.1), Ensemble()], **OPTIONS)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (partial(nn.Linear, 3, 2), ["MAP", "SWAG(rank=0)", "SWAG", "Ensemble"]),
        (nn.Sequential(nn.Dropout(0.2), nn.Linear(3, 2)), ["MCDropout(rate=0.1)", "SWAG(rank=0)", "SWAG"]),
        ("MLP", ["MCDropout(rate=0.1)", "SWAG(rank=0)", "SWAG", "Ensemble"]),
    ],
    ids=["without", "with", "by name"],
)
def test_the_first_default_posterior_depends_on_the_dropout_of_the_network(model, expected):
    results = compare(model, (FEATURES, LABELS), **OPTIONS | {"num_seeds": 1})
    assert list(dict.fromkeys(row.posterior for row in results.rows)) == expected


def test_summary_has_every_metric_and_the_conclusion(classification, regression):
    text = classification.summary()
    assert all(row.metric in text for row in classification.rows)
    assert "a verdict needs at least 3 seeds" in text
    assert max(map(len, text.splitlines()[:14])) <= 100
    assert "coverage_95" in regression.summary()
    assert "nominal 0.95" in regression._repr_html_()


def test_results_show_themselves(classification, tmp_path):
    assert len(repr(classification).splitlines()) == 1
    assert classification._repr_html_().count("<tr>") == 1 + len(classification.rows)
    axes = classification.plot("accuracy")
    assert "right of zero: flat is better" in axes.get_xlabel()
    assert classification.plot(ax=axes) is axes
    with pytest.raises(ValueError, match="no metric 'rmse'; it has accuracy"):
        classification.plot("rmse")
    page = classification.report(tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert classification.report(tmp_path) == tmp_path / "report.html"


def test_tuning_returns_the_best_hyperparameters():
    result = tune("MLP", (FEATURES, LABELS), MAP(), SAM(), {"epochs": 2}, num_trials=3, num_seeds=1, num_draws=1)
    assert len(result.trials) == 3
    scores = {trial["score"]: trial["flatness.rho"] for trial in result.trials}
    assert result.best_score == min(*scores, result.plain_score)
    assert result.flatness_pays is (min(scores) < result.plain_score)
    assert result.flatness == (SAM(rho=scores[min(scores)]) if result.flatness_pays else Plain())
    assert result.summary().splitlines()[1].split()[1] == f"{min(scores):.4f}"
    assert len(result.to_pandas()) == 3
    label = short_name(result.flatness) if result.flatness_pays else "Plain (chosen radius 0)"
    assert f"x {label}, nll {result.best_score:.4g}" in repr(result)
    assert result.plot().get_xlabel() == "flatness.rho"
    with pytest.raises(ValueError, match="no hyperparameter 'x'"):
        result.plot("x")


def test_tuning_continues_in_its_folder(tmp_path):
    options = {"num_seeds": 1, "num_draws": 1, "folder": tmp_path, "config": {"epochs": 1}}
    data = Arrays(FEATURES, LABELS)
    first = tune("MLP", data, MAP(), num_trials=1, **options)
    assert tune("MLP", data, MAP(), num_trials=2, **options).trials[:1] == first.trials


def test_trials_of_a_network_with_other_weights_are_not_reused(tmp_path):
    options = {"num_seeds": 1, "num_draws": 1, "folder": tmp_path, "config": {"epochs": 1}, "num_trials": 1}
    network, data = nn.Linear(3, 2), Arrays(FEATURES, LABELS)
    first = tune(network, data, MAP(), **options)
    assert len(list(tmp_path.glob("runs/*.json"))) == 2  # a radius and plain training
    with torch.no_grad():
        network.weight.zero_()
    assert tune(network, data, MAP(), **options).best_run.cache_key() != first.best_run.cache_key()
    assert len(list(tmp_path.glob("runs/*.json"))) == 4


def test_runs_of_a_comparison_have_the_fingerprint_of_the_network():
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    comparisons = [
        Comparison(source=Arrays(FEATURES, LABELS), model=n, posteriors=[MAP()], num_seeds=1) for n in networks
    ]
    keys = [{run.cache_key() for run in comparison.list_runs()} for comparison in comparisons]
    assert not keys[0] & keys[1]
