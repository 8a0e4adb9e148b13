"""Comparisons and searches on several labels of each example."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from flatbayes import MAP, SWAG, Bernoulli, Gaussian, compare, evaluate, fit, tune
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
