"""Everything that predicts applies the calibration map or refuses it: no path gives uncalibrated numbers silently."""

import pickle

import numpy as np
import pytest
import torch

from flatbayes import (
    MAP,
    MLP,
    SWAG,
    Bernoulli,
    BernoulliPredictive,
    Diabetes,
    Digits,
    FittedPosterior,
    Plain,
    TrainingConfig,
    calibrate,
    conformalize,
    evaluate,
    fit,
)
from flatbayes.distillation.students import make_student
from flatbayes.estimators import FlatBayesClassifier, FlatBayesRegressor
from flatbayes.integrations import join_posteriors
from flatbayes.prediction import export_onnx, export_torch, replace_calibration
from flatbayes.prediction.distributed import predict_distributed
from flatbayes.training import OptimizationConfig
from support import make_multi_label_splits

pytestmark = pytest.mark.filterwarnings("ignore::flatbayes.calibration.CalibrationWarning")

METHODS = {
    "classes": ["temperature", "vector", "dirichlet", "isotonic"],
    "labels": ["temperature", "vector"],
    "numbers": ["scale", "quantile"],
}
CASES = [(kind, method) for kind, methods in METHODS.items() for method in methods]
DRAWS = 3


@pytest.fixture(scope="module")
def posteriors():
    digits = Digits(train_size=150, val_size=120, test_size=60).load(seed=0)
    patients, symptoms = Diabetes(val_size=100).load(seed=0), make_multi_label_splits()
    config = TrainingConfig(epochs=2, optimization=OptimizationConfig(clip_norm=1.0))
    return {
        "classes": (digits, fit(MLP, digits, SWAG(rank=2, scale=0.5), Plain(), config)),
        "labels": (symptoms, fit(MLP, symptoms, SWAG(rank=2, scale=0.5), Plain(), TrainingConfig(epochs=20))),
        "numbers": (patients, fit(MLP, patients, SWAG(rank=2, scale=0.5), Plain(), config)),
    }


@pytest.fixture(params=CASES, ids="-".join)
def case(request, posteriors):
    """Data, the posterior, its calibrated copy, and the calibrated predictions of the test inputs."""
    kind, method = request.param
    data, fitted = posteriors[kind]
    calibrated = calibrate(fitted, data.val, num_draws=DRAWS, method=method)
    raw = fitted.predict(data.test.inputs, DRAWS)
    expected = calibrated.calibration.apply(raw)
    assert (expected.entropy - raw.entropy).abs().max() > 1e-3
    assert fitted.calibration is None
    assert torch.equal(replace_calibration(calibrated, None).predict(data.test.inputs, DRAWS).entropy, raw.entropy)
    return data, fitted, calibrated, expected


def predict_directly(calibrated, inputs, folder):
    return calibrated.predict(inputs, DRAWS)


def predict_in_chunks(calibrated, inputs, folder):
    chunks = list(calibrated.stream_predictions(inputs, DRAWS, batch_size=7))
    return type(chunks[0]).concatenate(chunks)


def predict_compiled(calibrated, inputs, folder):
    return calibrated.predict(inputs, DRAWS, vectorized=True)


def predict_in_processes(calibrated, inputs, folder):
    halves = [
        pickle.loads(pickle.dumps(predict_distributed(calibrated, part, DRAWS).to("cpu")))
        for part in inputs.split(40)
    ]
    return type(halves[0]).concatenate(halves)


def predict_from_the_artefact(calibrated, inputs, folder):
    return FittedPosterior.load(calibrated.save(folder / "artefact")).predict(inputs, DRAWS)


def predict_shared(calibrated, inputs, folder):
    with calibrated.share_predictions():
        replace_calibration(calibrated, None).predict(inputs, DRAWS)
        return calibrated.predict(inputs, DRAWS)


def predict_on_a_row_of_an_array(calibrated, inputs, folder):
    return calibrated.predict(inputs.numpy(), DRAWS)


PATHS = [
    predict_directly,
    predict_in_chunks,
    predict_compiled,
    predict_in_processes,
    predict_from_the_artefact,
    predict_shared,
    predict_on_a_row_of_an_array,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_predictions_are_calibrated(case, path, tmp_path):
    data, _, calibrated, expected = case
    predictive = path(calibrated, data.test.inputs, tmp_path)
    assert type(predictive) is type(expected)
    for name, values in expected.columns().items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(predictive.columns()[name], values, rtol=2e-4, atol=2e-5, err_msg=name)


def is_exported(calibrated):
    """Whether an export is tried; the other maps of classes are linear in log p."""
    return isinstance(calibrated.likelihood, Bernoulli) or calibrated.calibration.method in ("isotonic", "scale")


def test_exported_programs_are_calibrated_or_refused(case, tmp_path):
    data, _, calibrated, expected = case
    if calibrated.calibration.method == "quantile":
        with pytest.raises(ValueError, match="'quantile' changes distribution functions"):
            calibrated.compile(DRAWS)
        return
    compiled, inputs = calibrated.compile(DRAWS), data.test.inputs[:10].float()
    outputs = [compiled(inputs)]
    if is_exported(calibrated):
        outputs.append(torch.export.load(export_torch(compiled, tmp_path / "x.pt2", inputs)).module()(inputs))
    names = [name for name in compiled.output_names if name != "epistemic_std"]
    for tensors in outputs:
        for name in names:
            torch.testing.assert_close(tensors[name].double(), getattr(expected, name)[:10], rtol=2e-3, atol=1e-3)


@pytest.mark.slow
def test_onnx_files_are_calibrated(case, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    data, _, calibrated, expected = case
    if not is_exported(calibrated):
        return
    compiled, inputs = calibrated.compile(DRAWS), data.test.inputs[:10].float()
    session = runtime.InferenceSession(str(export_onnx(compiled, tmp_path / "x.onnx", inputs)))
    (mean,) = session.run(["std" if "std" in compiled.output_names else "mean"], {"inputs": inputs.numpy()})
    reference = expected.std if "std" in compiled.output_names else expected.mean
    np.testing.assert_allclose(mean, reference[:10], rtol=2e-3, atol=1e-3)


def test_students_learn_calibrated_predictions(case):
    data, fitted, calibrated, expected = case
    student = make_student(calibrated.likelihood)
    targets = student.make_targets(calibrated.predict(data.test.inputs, DRAWS))
    assert torch.equal(targets, student.make_targets(expected))
    assert not torch.allclose(targets, student.make_targets(fitted.predict(data.test.inputs, DRAWS)), rtol=1e-3)


def test_evaluations_checks_and_regions_are_those_of_calibrated_predictions(case):
    data, fitted, calibrated, expected = case
    evaluation = evaluate(calibrated, data.test, num_draws=DRAWS)
    assert evaluation.raw_metrics == evaluate(fitted, data.test, num_draws=DRAWS).metrics
    assert evaluation.metrics["nll"] != evaluation.raw_metrics["nll"]
    calibrated.check(data.test.inputs, data.test.targets, DRAWS)
    if isinstance(expected, BernoulliPredictive):
        return
    conformal = conformalize(calibrated, data.val, num_draws=DRAWS)
    region = conformal.predict(data.test.inputs)
    assert torch.equal(region.size, conformal.predictor.predict(expected).size)


def test_an_ensemble_has_no_calibration_of_a_member(case):
    _, fitted, calibrated, _ = case
    assert join_posteriors([fitted, fitted]).calibration is None
    with pytest.raises(ValueError, match="fitted to the predictions of a member"):
        join_posteriors([fitted, calibrated])


@pytest.mark.parametrize("method", ["isotonic", "quantile"])
def test_estimators_predict_with_the_calibration_of_their_posterior(method):
    random = np.random.default_rng(0)
    inputs = random.normal(size=(80, 3))
    numbers = inputs[:, 0] + random.normal(size=80)
    kind = FlatBayesClassifier if method == "isotonic" else FlatBayesRegressor
    targets = (numbers > 0).astype(int) if method == "isotonic" else numbers
    estimator = kind(MAP(), Plain(), hidden=(4,), epochs=2, num_draws=1, random_state=0).fit(inputs, targets)
    raw = estimator.predict_distribution(inputs)
    estimator.posterior_ = calibrate(estimator.posterior_, inputs, targets, 1, method=method)
    expected = estimator.posterior_.calibration.apply(raw)
    if method == "isotonic":
        np.testing.assert_allclose(estimator.predict_proba(inputs), expected.mean, rtol=1e-5)
        return
    mean, std = estimator.predict(inputs, return_std=True)
    np.testing.assert_allclose(mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(std, expected.std, rtol=1e-5)
    assert not np.allclose(std, raw.std, rtol=1e-2)
