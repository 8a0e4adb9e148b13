"""Calibration of fitted posteriors: artefact and evaluation have it; test_calibration_siblings.py has predictions."""

import pytest
import torch

from flatbayes import (
    MAP,
    MLP,
    SWAG,
    Diabetes,
    Digits,
    FittedPosterior,
    Plain,
    TrainingConfig,
    calibrate,
    evaluate,
    fit,
)
from flatbayes.core.files import read_json
from flatbayes.prediction.metadata import check_info
from flatbayes.training import OptimizationConfig
from support import make_multi_label_splits

METHODS = {
    "classes": ["temperature", "vector", "dirichlet", "isotonic"],
    "labels": ["temperature", "vector"],
    "numbers": ["scale", "quantile"],
}
CASES = [(kind, method) for kind, methods in METHODS.items() for method in methods]


@pytest.fixture(scope="module")
def posteriors():
    digits = Digits(train_size=200, val_size=150, test_size=200).load(seed=0)
    classes = fit(MLP, digits, SWAG(rank=2), Plain(), TrainingConfig(epochs=3, batch_size=32))
    patients = Diabetes(val_size=100).load(seed=0)
    config = TrainingConfig(epochs=3, optimization=OptimizationConfig(clip_norm=1.0))
    symptoms = make_multi_label_splits()
    labels = fit(MLP, symptoms, SWAG(rank=2), Plain(), TrainingConfig(epochs=20, batch_size=32))
    numbers = fit(MLP, patients, MAP(), Plain(), config)
    return {"classes": (digits, classes), "labels": (symptoms, labels), "numbers": (patients, numbers)}


@pytest.fixture(params=CASES, ids="-".join)
def case(request, posteriors):
    kind, method = request.param
    data, fitted = posteriors[kind]
    return data, fitted, calibrate(fitted, data.val, num_draws=4, method=method)


def test_a_calibration_is_not_fitted_to_calibrated_predictions(case):
    data, _, calibrated = case
    method = calibrated.calibration.method
    assert calibrate(calibrated, data.val, num_draws=4, method=method).calibration == calibrated.calibration


def test_the_artefact_has_the_calibration(case, tmp_path):
    data, _, calibrated = case
    loaded = FittedPosterior.load(calibrated.save(tmp_path / "artefact"))
    assert loaded.calibration == calibrated.calibration
    expected = calibrated.predict(data.test.inputs, 4)
    assert torch.equal(loaded.predict(data.test.inputs, 4).entropy, expected.entropy)
    assert calibrated.calibration.method in loaded.summary()
    assert read_json(tmp_path / "artefact" / "posterior.json")["info"]["calibration"]["num_examples"] == len(
        data.val.targets
    )
    with pytest.raises(ValueError, match="'calibration' must be a calibration written by"):
        check_info({"calibration": calibrated.info["calibration"] | {"weights": []}})


def test_an_evaluation_has_the_metrics_without_calibration(case):
    data, fitted, calibrated = case
    raw, evaluation = evaluate(fitted, data.test, num_draws=4), evaluate(calibrated, data.test, num_draws=4)
    assert evaluation.raw_metrics == raw.metrics
    assert raw.raw_metrics == {}
    assert evaluation.metrics["nll"] != raw.metrics["nll"]
    assert evaluate(calibrated, data.val, num_draws=4).metrics["nll"] == pytest.approx(
        calibrated.calibration.nll_calibrated
    )
    assert f"(uncalibrated {raw.metrics['nll']:.4g})" in evaluation.summary()
    assert "uncalibrated" not in raw.summary()
    assert evaluation.to_dict()["raw_metrics"] == raw.metrics
