"""Devices of predictions, random numbers and float64, on the pretend device."""

from unittest.mock import patch

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from accelerator.pretend_device import BACKEND, NAME, pretend_device
from accelerator.training import POSTERIORS, fit_on_device, make_splits
from flatbayes.core import devices
from flatbayes.diagnostics import LossSurface, SharpnessConfig, compute_curvature, measure_posterior_sharpness
from flatbayes.flatness import SAM
from flatbayes.likelihoods import Gaussian

DATA = make_splits("mlp")
INPUTS, TARGETS = DATA.test.inputs, DATA.test.targets
FEW_PASSES = SharpnessConfig(ascent_steps=2, num_random_starts=1, num_directions=2)


@pytest.mark.parametrize("name", ["MAP", "SWAG", "MCDropout", "Laplace"])
def test_predictions_are_on_the_device_of_the_inputs(name):
    with pretend_device():
        fitted = fit_on_device("mlp", POSTERIORS[name], SAM())
        assert fitted.device.type == NAME
        loader = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=8)
        for inputs in (INPUTS, INPUTS.numpy(), loader, [INPUTS[:8], INPUTS[8:]]):
            predictive = fitted.predict(inputs, 2)
            assert {t.device.type for t in vars(predictive).values() if isinstance(t, torch.Tensor)} == {"cpu"}
            assert predictive.top_class.device == TARGETS.device
        there = torch.device(NAME, 0)
        for inputs in (INPUTS.to(there), [INPUTS.to(there)]):
            assert fitted.predict(inputs, 2).log_probs.device == there


def test_the_random_state_of_every_device_is_left_alone():
    before = [state.clone() for state in BACKEND.generator_states]
    with pretend_device():
        fit_on_device("mlp", POSTERIORS["MCDropout"], SAM()).predict(INPUTS, 2)
    assert all(torch.equal(a, b) for a, b in zip(BACKEND.generator_states, before, strict=True))


@pytest.mark.parametrize("name", ["SWAG", "SGLD", "SGVB", "LRT", "Laplace"])
def test_nothing_asks_for_float64_where_there_is_none(name):
    without = devices.DEVICES_WITHOUT_FLOAT64 | {NAME}
    with patch.object(devices, "DEVICES_WITHOUT_FLOAT64", without), pretend_device(has_float64=False):
        fitted = fit_on_device("mlp", POSTERIORS[name], SAM(), num_validations=1)
        there = torch.device(NAME, 0)
        assert fitted.predict(INPUTS.to(there), 2).log_probs.dtype == torch.float32
        assert fitted.predict(INPUTS.double(), 2).log_probs.dtype == torch.float64


def test_diagnostics_do_not_ask_for_float64_where_there_is_none():
    without = devices.DEVICES_WITHOUT_FLOAT64 | {NAME}
    with patch.object(devices, "DEVICES_WITHOUT_FLOAT64", without), pretend_device(has_float64=False):
        there = torch.device(NAME, 0)
        fitted = fit_on_device("mlp", POSTERIORS["SWAG"], SAM())
        surface = LossSurface(fitted.states[0].model, fitted.likelihood.loss, [(INPUTS, TARGETS)])  # in main memory
        compute_curvature(surface, num_eigenvalues=1, num_trace_probes=2)
        measure_posterior_sharpness(fitted, INPUTS, TARGETS, FEW_PASSES, num_draws=2)
        likelihood = Gaussian.fit(torch.randn(16).to(there))
        outputs = torch.randn(16, 2).to(there)
        likelihood.loss(outputs, torch.randn(16).to(there))
        predictive = likelihood.predictive([outputs]).to(there)
        assert predictive.mean.dtype == torch.float32
        predictive.interval()


def test_laplace_takes_examples_in_main_memory():
    with pretend_device():
        fitted = fit_on_device("mlp", POSTERIORS["Laplace"], SAM())
        (state,) = fitted.states
        fitted.posterior.finalize(state, [(INPUTS, TARGETS)], fitted.likelihood.loss)
        fitted.posterior.check_model(state, [(INPUTS, TARGETS)], fitted.likelihood.loss)
