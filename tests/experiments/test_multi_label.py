"""Comparisons and searches on several labels of each example."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from flatbayes import MAP, SWAG, Arrays, Bernoulli, Gaussian, compare, evaluate, fit, tune
from flatbayes.experiments import EvaluationConfig
from flatbayes.metrics import CLASSIFICATION_METRICS, DEFINITIONS, MULTI_LABEL_METRICS
from flatbayes.metrics.definitions import select_definitions

mpl.use("Agg")
RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(80, 3))
LABELS = (FEATURES @ RNG.normal(size=(3, 3)) > 0).astype("int64")
ONE_HOT = np.eye(3, dtype="int64")[np.arange(80) % 3]
OPTIONS = {"config": {"epochs": 4, "batch_size": 20}, "num_seeds": 2, "num_draws": 2}


@pytest.fixture(scope="module")
def results():
    return compare("MLP", (FEATURES, LABELS), [MAP(), SWAG(rank=2)], num_jobs=1, **OPTIONS)


def test_metrics_are_those_of_several_labels(results):
    assert {row.metric for row in results.rows} == set(MULTI_LABEL_METRICS)
    assert not results.failures
    assert not results.notes  # on the deep-ensemble equivalent, which is for classes


def test_report_and_summary_do_not_speak_of_classes(results, tmp_path):
    results.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert MULTI_LABEL_METRICS["brier"].text in page
    for text in (page, results.summary()):
        assert "classes" not in text
        assert "probable class" not in text
    results.plot("macro_auroc")
    plt.close("all")


@pytest.mark.parametrize(
    ("targets", "likelihood", "metric"),
    [(ONE_HOT, Bernoulli(3), "exact_match"), (LABELS, Gaussian(3), "rmse")],
    ids=["labels", "numbers"],
)
def test_the_likelihood_decides_what_targets_are(targets, likelihood, metric):
    results = compare("MLP", (FEATURES, targets), [MAP()], num_jobs=1, likelihood=likelihood, **OPTIONS)
    assert metric in results.runs[0].metrics


def test_one_hot_rows_are_refused():
    with pytest.raises(ValueError, match=r"likelihood=Bernoulli\(num_labels\)"):
        compare("MLP", (FEATURES, ONE_HOT), [MAP()], num_jobs=1, **OPTIONS)


def test_a_search_takes_a_metric_of_several_labels():
    result = tune("MLP", (FEATURES, LABELS), MAP(), num_trials=2, metric="macro_auroc", **OPTIONS)
    assert "macro_auroc" in repr(result)
    with pytest.raises(ValueError, match="no metric 'rmse'; they have accuracy, exact_match"):
        tune("MLP", (FEATURES, LABELS), MAP(), num_trials=2, metric="rmse", **OPTIONS)


def test_an_evaluation_has_the_definitions_of_its_task():
    evaluation = evaluate(fit("MLP", (FEATURES, LABELS), MAP(), config={"epochs": 2}), (FEATURES, LABELS))
    for text in (evaluation.summary(), evaluation._repr_html_()):
        assert "fraction of labels that are predicted right" in text
        assert "most probable class" not in text
    assert select_definitions(CLASSIFICATION_METRICS) is DEFINITIONS


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (LABELS, {"calibration": True}, "calibration=True is for classes, and the targets are several labels"),
        (LABELS, {"shift": True}, r"shift=True is for classes or labels of images, .* inputs of the shape \(3,\)"),
        (FEATURES, {"calibration": True}, "calibration=True is for classes, and the targets are numbers"),
        (FEATURES, {"shift": True}, "shift=True is for classes or labels of images, and the data have numbers"),
        (
            FEATURES,
            {"ood": Arrays(FEATURES + 9, LABELS)},
            "ood is for classes or labels, and the targets are numbers",
        ),
        (LABELS, {"ood": Arrays(FEATURES[:, :2], LABELS)}, r"inputs have the shape \(2,\)"),
    ],
    ids=["labels-calibration", "labels-shift", "numbers-calibration", "numbers-shift", "numbers-ood", "other-inputs"],
)
def test_evaluations_that_do_not_suit_the_data_are_refused_before_a_training(monkeypatch, targets, options, message):
    monkeypatch.setattr("flatbayes.experiments.run.try_fit_together", None)
    with pytest.raises(ValueError, match=message):
        compare("MLP", (FEATURES, targets), [MAP()], num_jobs=1, evaluations=EvaluationConfig(**options), **OPTIONS)


def test_inputs_that_are_out_of_distribution_are_told_apart_by_the_entropy_of_all_labels():
    evaluations = EvaluationConfig(ood=Arrays(9 * FEATURES, LABELS))
    results = compare("MLP", (FEATURES, LABELS), [MAP()], num_jobs=1, evaluations=evaluations, **OPTIONS)
    assert not results.failures
    assert all(0 <= run.metrics["ood_auroc"] <= 1 for run in results.runs)
