"""Sharpness of the trained network and of draws."""

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from flatbayes.data import Standardize
from flatbayes.diagnostics import (
    SHARPNESS_MEASURES,
    LossSurface,
    SharpnessConfig,
    compare_sharpness,
    compute_curvature,
    measure_posterior_sharpness,
    measure_sharpness,
)
from flatbayes.diagnostics.posterior_sharpness import prepare_batches
from flatbayes.flatness import Plain
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import LRT, MAP, SGLD, SGVB, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior
from support import assert_same, batch, network, snapshot, train

CONFIG = SharpnessConfig(ascent_steps=2, num_random_starts=1, num_directions=2, num_eigenvalues=2, num_trace_probes=2)


def fit_posterior(posterior, dtype=torch.float32):
    states = []
    for k in range(posterior.num_members):
        model = network(dtype)
        with torch.no_grad():
            model[9].weight.mul_(1 + k)
        states.append(train(posterior, Plain(), model=model, dtype=dtype)[0])
    for state in states:
        state.model.eval()
        state.model.zero_grad()
    inputs = [batch(k)[0] for k in range(3)]
    return FittedPosterior(posterior, states, Categorical(3), Standardize.fit(torch.cat(inputs)), inputs)


def make_examples():
    parts = [batch(k) for k in range(3)]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


POSTERIORS = [
    pytest.param(MAP(), marks=pytest.mark.slow),
    MCDropout(),
    SWAG(rank=3),
    pytest.param(SGLD(), marks=pytest.mark.slow),
    pytest.param(SGVB(), marks=pytest.mark.slow),
    LRT(),
    pytest.param(Ensemble(size=2), marks=pytest.mark.slow),
    Ensemble(SWAG(rank=2), size=2),
]


@pytest.mark.parametrize("posterior", POSTERIORS, ids=lambda p: type(p).__name__)
def test_posterior_is_measured_and_restored(posterior):
    fitted = fit_posterior(posterior)
    before = [snapshot(state.model) for state in fitted.states]
    kept = [{k: v.clone() for k, v in state.statistics.items()} for state in fitted.states]
    sharpness = measure_posterior_sharpness(fitted, *make_examples(), CONFIG, 3, hessian=True)
    for state, weights, statistics in zip(fitted.states, before, kept, strict=True):
        assert_same(weights, snapshot(state.model))
        assert all(torch.equal(state.statistics[k], v) for k, v in statistics.items())
        assert all(p.grad is None for p in state.model.parameters())
    assert len(sharpness.trained) == posterior.num_members
    assert len(sharpness.draws) == len(fitted.sample_ids(3))
    assert [row.measure for row in sharpness.rows] == list(SHARPNESS_MEASURES)
    assert sharpness.num_examples == 36
    assert sharpness.notes == ("Hessian by double backward",)
    assert sharpness == measure_posterior_sharpness(fitted, *make_examples(), CONFIG, 3, hessian=True)
    json.dumps(sharpness.to_dict())


def test_rows_equal_a_loop_over_draws():
    fitted = fit_posterior(SWAG(rank=3))
    inputs, targets = make_examples()
    sharpness = measure_posterior_sharpness(fitted, inputs, targets, CONFIG, 4, batch_size=7, seed=5)
    data = [(fitted.transform(inputs), targets)]
    loss_fn = Categorical(3).loss
    each = [
        measure_sharpness(LossSurface(model, loss_fn, data), CONFIG) for model in fitted.sample_networks(4, seed=5)
    ]
    trained = measure_sharpness(LossSurface(fitted.states[0].model, loss_fn, data), CONFIG)
    for row in sharpness.rows:
        values = torch.tensor([getattr(one, row.measure) for one in each], dtype=torch.float64)
        close = {"rel": 1e-3, "abs": 1e-6}  # batches of another size round differently, and gaps are differences
        assert row.trained == pytest.approx(getattr(trained, row.measure), **close)
        assert row.mean == pytest.approx(float(values.mean()), **close)
        assert row.sd == pytest.approx(float(values.std()), rel=1e-2, abs=1e-6)
        assert row.standard_error == pytest.approx(row.sd / 2)


def test_dropout_masks_of_a_draw_are_constant():
    fitted = fit_posterior(MCDropout(rate=0.4))
    sharpness = measure_posterior_sharpness(fitted, *make_examples(), replace(CONFIG, rho=0.0, adaptive_rho=0.0), 3)
    rows = {row.measure: row for row in sharpness.rows}
    assert rows["loss"].sd > 0
    for name in ("one_step", "worst", "average", "adaptive"):
        assert rows[name].mean == pytest.approx(0, abs=1e-7)  # with fresh masks every loss would be another


def test_sd_of_one_draw_is_nan():
    row = measure_posterior_sharpness(fit_posterior(MAP()), *make_examples(), CONFIG).rows[0]
    assert row.mean == row.trained
    assert math.isnan(row.sd)
    assert math.isnan(row.standard_error)


def test_hessian_adds_rows():
    fitted = fit_posterior(MAP(), torch.float64)
    sharpness = measure_posterior_sharpness(fitted, *make_examples(), CONFIG, hessian=True)
    surface = LossSurface(fitted.states[0].model, Categorical(3).loss, prepare_batches(fitted, *make_examples()))
    expected = compute_curvature(surface, 2, 2)
    rows = {row.measure: row.trained for row in sharpness.rows}
    assert rows["top_eigenvalue"] == pytest.approx(expected.eigenvalues[0])
    assert rows["eigenvalue_ratio"] == pytest.approx(expected.eigenvalues[0] / expected.eigenvalues[1])
    assert rows["trace"] == pytest.approx(expected.trace)


def test_posteriors_share_directions():
    twins = {"one": fit_posterior(SWAG(rank=2)), "other": fit_posterior(SWAG(rank=2))}
    sharpness = compare_sharpness(twins, *make_examples(), CONFIG, 2)
    assert list(sharpness) == ["one", "other"]
    assert sharpness["one"] == sharpness["other"]


@dataclass(frozen=True)
class Linearised(MAP):
    """Draws a module without parameters."""

    @contextmanager
    def draw(self, state, generator):
        hidden = nn.Module()
        hidden.forward = state.model.forward
        yield hidden


def test_draw_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"mine could not be measured. Module has no trainable weights"):
        compare_sharpness({"mine": fit_posterior(Linearised())}, *make_examples(), CONFIG)


@dataclass(frozen=True)
class Wrapped(MAP):
    """Draws a module around the network."""

    @contextmanager
    def draw(self, state, generator):
        yield nn.Sequential(state.model)


def test_draw_of_another_module_is_noted():
    sharpness = measure_posterior_sharpness(fit_posterior(Wrapped()), *make_examples(), CONFIG)
    assert sharpness.notes == (
        "Draws are Sequential modules around the trained network: its weights are perturbed, and the "
        "difference between draw and trained weights is constant",
    )
    assert all(row.mean == row.trained for row in sharpness.rows)


def test_invalid_input_is_refused():
    fitted, (inputs, targets) = fit_posterior(MAP()), make_examples()
    with pytest.raises(ValueError, match="at least one posterior, got none"):
        compare_sharpness({}, inputs, targets)
    with pytest.raises(ValueError, match="got 0 inputs and 0 targets"):
        measure_posterior_sharpness(fitted, inputs[:0], targets[:0])
    with pytest.raises(ValueError, match="got 36 inputs and 3 targets"):
        measure_posterior_sharpness(fitted, inputs, targets[:3])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        measure_posterior_sharpness(fitted, inputs, targets, batch_size=0)
    with pytest.raises(ValueError, match="at least 1 draw"):
        measure_posterior_sharpness(fitted, inputs, targets, num_draws=0)


def test_exception_restores_the_state(monkeypatch):
    fitted = fit_posterior(SWAG(rank=3))
    before, calls = snapshot(fitted.states[0].model), []

    def failing(self, outputs, targets):
        calls.append(1)
        if len(calls) == 40:
            raise ArithmeticError("on purpose")
        return nn.functional.cross_entropy(outputs, targets)

    monkeypatch.setattr(Categorical, "loss", failing)
    with pytest.raises(ArithmeticError, match="on purpose"):
        measure_posterior_sharpness(fitted, *make_examples(), CONFIG, 5)
    assert_same(before, snapshot(fitted.states[0].model))
