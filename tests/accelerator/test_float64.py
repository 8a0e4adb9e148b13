"""No tensor of float64 is made on a device that has none, such as Apple's GPUs."""

from unittest.mock import patch

import pytest
import torch

from accelerator.pretend_device import DEVICE, pretend_device
from accelerator.training import (
    BATCH_SIZE,
    NUM_CLASSES,
    POSTERIORS,
    choose_flatness,
    fit_on_device,
    make_inputs,
    make_regression_splits,
)
from flatbayes.core import devices
from flatbayes.diagnostics import SharpnessConfig, measure_posterior_sharpness
from flatbayes.likelihoods import Categorical, DistributionLikelihood, Gaussian
from flatbayes.prediction import FittedPosterior, evaluate

FEW_PASSES = SharpnessConfig(
    ascent_steps=1, num_random_starts=1, num_directions=2, num_eigenvalues=2, num_trace_probes=2
)
TARGETS = {"classes": torch.arange(BATCH_SIZE) % NUM_CLASSES, "numbers": torch.linspace(-1, 1, BATCH_SIZE)}


@pytest.fixture(autouse=True)
def device():
    without = devices.DEVICES_WITHOUT_FLOAT64 | {DEVICE.type}
    with patch.object(devices, "DEVICES_WITHOUT_FLOAT64", without), pretend_device(has_float64=False) as device:
        yield device


def fit_kind(kind: str, name: str) -> FittedPosterior:
    """Classification or regression, with a validation after the epoch."""
    options = {}
    if kind == "numbers":
        likelihood = Gaussian.fit(torch.linspace(-1, 1, 8))
        options = {"make_data": make_regression_splits, "likelihood": likelihood}
    return fit_on_device(
        "mlp", POSTERIORS[name], choose_flatness(name), with_trial=True, num_validations=1, **options
    )


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("name", POSTERIORS)
def test_fit_and_predictions_need_no_float64(kind, name):
    fitted = fit_kind(kind, name)
    inputs = make_inputs("mlp", BATCH_SIZE)
    fitted.predict(inputs, 2, vectorized=False)
    fitted.predict(inputs.to(DEVICE), 2, vectorized=False)
    fitted.predict(inputs.double(), 2)
    evaluate(fitted, inputs, TARGETS[kind], num_draws=2)


@pytest.mark.parametrize("kind", ["classes", "numbers"])
@pytest.mark.parametrize("name", ["SWAG", "SGVB"])
def test_vectorized_and_compiled_predictions_need_no_float64(kind, name):
    fitted = fit_kind(kind, name)
    inputs = make_inputs("mlp", BATCH_SIZE)
    fitted.predict(inputs, 2, vectorized=True)
    fitted.compile(2)(inputs.to(DEVICE))


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_sharpness_needs_no_float64(kind):
    fitted = fit_kind(kind, "SWAG")
    measure_posterior_sharpness(
        fitted, make_inputs("mlp", BATCH_SIZE), TARGETS[kind], FEW_PASSES, num_draws=1, hessian=True
    )


@pytest.mark.parametrize(
    "likelihood",
    [Categorical(NUM_CLASSES), Gaussian.fit(torch.linspace(-1, 1, 8)), DistributionLikelihood("StudentT")],
)
def test_losses_need_no_float64(likelihood):
    outputs = torch.randn(BATCH_SIZE, likelihood.num_outputs).to(DEVICE)
    kind = "classes" if isinstance(likelihood, Categorical) else "numbers"
    assert likelihood.loss(outputs, likelihood.prepare_targets(TARGETS[kind].to(DEVICE))).device == DEVICE
