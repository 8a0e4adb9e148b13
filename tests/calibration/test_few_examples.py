"""What is fitted to validation examples says when they are too few, with the number that it needs."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from flatbayes import MAP, MLP, SWAG, Plain, TrainingConfig, calibrate, conformalize, fit, tune_draws
from flatbayes.calibration import CalibrationWarning, fit_abstention, fit_calibration, fit_conformal
from flatbayes.data import Split
from flatbayes.likelihoods import Categorical, GaussianPredictive
from flatbayes.prediction import evaluate_recalibration
from flatbayes.training import Callback, fit_cross_conformal

X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(200) % 2
SMALL = partial(MLP, hidden=(4,))
CONFIG = TrainingConfig(epochs=2, batch_size=50)


def make_predictive(count, numbers):
    if numbers:
        return GaussianPredictive(torch.zeros(1, count), torch.ones(1, count)), X[:count, 0]
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])[LABELS[:count]]
    return Categorical(2).predictive([logits]), LABELS[:count]


@pytest.fixture(scope="module")
def fitted():
    return fit(SMALL, (X, LABELS), SWAG(rank=2), Plain(), CONFIG)


def calibrated(count, method, numbers=False):
    return fit_calibration(*make_predictive(count, numbers), method)


def by_class(count, level=0.8):
    predictive, labels = make_predictive(2 * count, numbers=False)
    return fit_conformal(predictive, labels, level=level, groups="class")


def recalibrate(count, fitted):
    val, test = (Split(inputs=X[:n], targets=LABELS[:n]) for n in (count, 200))
    return evaluate_recalibration(fitted, val, test, 2)


def cross_conformal(count, _):
    return fit_cross_conformal(SMALL, (X[:count], LABELS[:count]), MAP(), Plain(), CONFIG, num_folds=2, level=0.8)


def tune(count, fitted):
    return tune_draws(replace(fitted, posterior=SWAG(rank=2, scale="auto")), X[:count], LABELS[:count])


def by_group(count, _):
    return fit_conformal(*make_predictive(count, numbers=False), level=0.8, groups=["a"] * count)


FITS = {
    "temperature": (10, lambda n, _: calibrated(n, "temperature")),
    "vector": (10, lambda n, _: calibrated(n, "vector")),
    "dirichlet": (10, lambda n, _: calibrated(n, "dirichlet")),
    "isotonic": (100, lambda n, _: calibrated(n, "isotonic")),
    "scale": (10, lambda n, _: calibrated(n, "scale", numbers=True)),
    "quantile": (10, lambda n, _: calibrated(n, "quantile", numbers=True)),
    "calibrate": (10, lambda n, fitted: calibrate(fitted, (X[:n], LABELS[:n]), num_draws=2)),
    "evaluate_recalibration": (10, recalibrate),
    "tune_draws": (10, tune),
    "conformal": (9, lambda n, _: fit_conformal(*make_predictive(n, numbers=False))),
    "conformal, numbers": (99, lambda n, _: fit_conformal(*make_predictive(n, numbers=True), level=0.99)),
    "conformal, class": (4, lambda n, _: by_class(n)),
    "conformal, group": (4, by_group),
    "conformalize": (9, lambda n, fitted: conformalize(fitted, (X[:n], LABELS[:n]), num_draws=2)),
    "abstention": (117, lambda n, _: fit_abstention(*make_predictive(n, numbers=False), risk=0.05)),
    "cross-conformal": (4, cross_conformal),
}
"""Smallest number of examples without a warning, and the function of a number."""


@pytest.mark.parametrize(("needed", "function"), FITS.values(), ids=FITS)
def test_too_few_examples_give_a_warning_with_the_number_that_is_needed(needed, function, fitted):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(needed, fitted)
    for count in {2 if needed == 4 else 1, needed - 1}:
        with pytest.warns(CalibrationWarning, match=rf"(?s)\b{needed}\b") as caught:
            function(count, fitted)
        assert len(caught) == 1


def test_the_number_for_a_region_and_a_threshold_is_the_least_with_a_finite_one():
    with warnings.catch_warnings(action="ignore"):
        predictors = [fit_conformal(*make_predictive(n, numbers=False)) for n in (8, 9)]
        rules = [fit_abstention(*make_predictive(n, numbers=False), risk=0.05) for n in (116, 117)]
    assert [predictor.thresholds["all"].values[0] < float("inf") for predictor in predictors] == [False, True]
    assert [rule.threshold < float("inf") for rule in rules] == [False, True]


def test_a_fitted_number_at_the_end_of_its_range_is_warned_of():
    predictive = Categorical(2).predictive([torch.tensor([[0.6, 0.4]] * 20).log()])
    is_rare = pytest.warns(CalibrationWarning, match="0 of the 20 examples are not of the most frequent class")
    with is_rare, pytest.warns(CalibrationWarning, match="temperature is 100, an end of its range"):
        fit_calibration(predictive, torch.ones(20, dtype=torch.int64))
    exact = GaussianPredictive(torch.zeros(1, 20), torch.ones(1, 20))
    with pytest.warns(CalibrationWarning, match=r"factor on the standard deviations is 0\.01, an end"):
        fit_calibration(exact, torch.zeros(20))
    with warnings.catch_warnings(record=True, action="always") as caught:
        calibration = fit_calibration(predictive, torch.zeros(20, dtype=torch.int64))
    assert [str(warning.message)[:14] for warning in caught] == ["0 of the 20 ex"]
    assert calibration.apply(predictive).mean[0, 1] > 0.4 / 21 * 0.99


def test_a_class_without_examples_is_named():
    predictive, labels = make_predictive(20, numbers=False)
    with pytest.warns(CalibrationWarning, match=r"of each class.*\['1 \(0\)'\]"):
        fit_conformal(predictive, 0 * labels, level=0.8, groups="class")


@pytest.mark.parametrize(("num_val", "num_messages"), [(9, 1), (10, 0), (0, 0)])
def test_fit_reports_that_few_examples_decide(num_val, num_messages):
    messages = []

    class Reporter(Callback):
        def on_message(self, text):
            messages.append(text)

    data, val = (X, LABELS), (X[:num_val], LABELS[:num_val]) if num_val else None
    config = {"min_epochs": 1, "min_steps": 4}
    fit(SMALL, data, MAP(), Plain(), config, val=val, callback=Reporter())
    assert sum("validation examples decide when training stops" in text for text in messages) == num_messages
    messages.clear()
    fit(SMALL, data, MAP(), Plain(), CONFIG, val=val, callback=Reporter())
    assert not messages


@pytest.mark.parametrize("method", ["vector", "dirichlet", "isotonic"])
def test_a_class_without_an_example_gives_a_warning_where_the_map_has_parameters_of_each_class(method):
    """The accuracy of `dirichlet` fell from 0.96 to 0.82, without notice."""
    logits = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictive, labels = Categorical(3).predictive([2 * logits]), logits[:, :2].argmax(1)
    with pytest.warns(CalibrationWarning, match=rf"1 of the 3 classes has no validation example.*'2'.*{method}"):
        fit_calibration(predictive, labels, method)
    fit_calibration(predictive, labels, "temperature")  # an error if it warned
