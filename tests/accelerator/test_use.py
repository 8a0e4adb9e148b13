"""Posteriors are fitted, predict, are evaluated, compiled, diagnosed, saved and loaded on a device."""

from functools import cache

import pytest
import torch

from accelerator.pretend_device import BACKEND, DEVICE, pretend_device
from accelerator.training import (
    BATCH_SIZE,
    FLATNESSES,
    NUM_CLASSES,
    POSTERIORS,
    choose_flatness,
    fit_on_device,
    make_inputs,
)
from flatbayes.core import State
from flatbayes.diagnostics import SharpnessConfig, compute_draw_slices, measure_posterior_sharpness
from flatbayes.prediction import FittedPosterior, evaluate

CASES = [
    *(("mlp", name) for name in POSTERIORS),
    *((network, name) for network in ("preresnet20", "vit") for name in ("SWAG", "SGVB", "Laplace")),
]
FEW_PASSES = SharpnessConfig(
    ascent_steps=1, num_random_starts=1, num_directions=2, num_eigenvalues=2, num_trace_probes=2
)
every_case = pytest.mark.parametrize(("network", "name"), CASES, ids=lambda value: value)


@cache
def fit_once(network: str, name: str) -> FittedPosterior:
    """Fitted with SAM, or with Plain if SAM is refused, inside of `pretend_device`."""
    return fit_on_device(network, POSTERIORS[name], choose_flatness(name), with_trial=True, num_validations=1)


@pytest.fixture(autouse=True)
def device():
    with pretend_device() as device:
        yield device


def make_targets() -> torch.Tensor:
    return torch.arange(BATCH_SIZE) % NUM_CLASSES


def locate_statistics(state: State) -> dict[str, torch.device]:
    """The device of each of the statistics."""
    return {name: value.device for name, value in state.statistics.items()}


@every_case
@pytest.mark.parametrize("on_device", [False, True], ids=["inputs of the host", "inputs of the device"])
def test_predictions_are_where_the_inputs_are(network, name, on_device):
    inputs = make_inputs(network, BATCH_SIZE)
    inputs = inputs.to(DEVICE) if on_device else inputs
    predictive = fit_once(network, name).predict(inputs, 2, batch_size=8)
    assert predictive.mean.device == inputs.device


@every_case
def test_metrics_are_computed(network, name):
    evaluation = evaluate(fit_once(network, name), make_inputs(network, BATCH_SIZE), make_targets(), num_draws=2)
    assert evaluation.metrics["nll"] is not None


@every_case
@pytest.mark.parametrize("place", ["cpu", str(DEVICE)])
def test_saved_posteriors_are_loaded_on_every_device(network, name, place, tmp_path):
    fitted = fit_once(network, name)
    fitted.save(tmp_path)
    assert fitted.device == DEVICE
    loaded = FittedPosterior.load(tmp_path, device=place)
    assert loaded.device == torch.device(place)
    if loaded.device == DEVICE:
        places = list(map(locate_statistics, loaded.states))
        assert places == list(map(locate_statistics, fitted.states)), "counts that a step reads stay in main memory"
    if (network, place) == ("preresnet20", "cpu"):
        return  # twenty layers overflow with weights that are no result of training
    assert loaded.predict(make_inputs(network, BATCH_SIZE), 2).mean.shape == (BATCH_SIZE, NUM_CLASSES)


@pytest.mark.parametrize(
    "name", [name for name in POSTERIORS if name not in ("MCDropout", "Laplace", "Laplace, kron")]
)
def test_vectorized_and_compiled_predictions_work(name):
    fitted = fit_once("mlp", name)
    inputs = make_inputs("mlp", BATCH_SIZE)
    assert fitted.predict(inputs, 2, vectorized=True).mean.shape == (BATCH_SIZE, NUM_CLASSES)
    assert fitted.compile(2)(inputs.to(DEVICE))["mean"].device == DEVICE


@pytest.mark.parametrize("name", ["SWAG", "LRT"])
def test_sharpness_and_landscapes_are_measured(name):
    fitted, inputs, targets = fit_once("mlp", name), make_inputs("mlp", BATCH_SIZE), make_targets()
    sharpness = measure_posterior_sharpness(fitted, inputs, targets, FEW_PASSES, num_draws=2, hessian=name == "SWAG")
    assert sharpness.to_dict()
    slices = compute_draw_slices({"a": fitted}, inputs, targets, num_slices=2, num_steps=3)
    assert len(slices["a"]) == 2


@pytest.mark.parametrize("name", ["SWAG", "MCDropout", "SGLD", "LRT"])
def test_the_random_state_of_the_caller_is_left_alone(name):
    BACKEND.manual_seed_all(7)
    BACKEND.count_draw(torch.device(DEVICE.type, 1))
    before = [BACKEND.get_rng_state(index) for index in range(2)]
    fitted = fit_on_device("mlp", POSTERIORS[name], FLATNESSES["SAM"], with_trial=True)
    fitted.predict(make_inputs("mlp", BATCH_SIZE), 2)
    after = [BACKEND.get_rng_state(index) for index in range(2)]
    assert all(map(torch.equal, after, before))
