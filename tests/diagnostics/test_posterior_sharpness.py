"""Sharpness over the draws of a posterior."""

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

PROBE = SharpnessConfig(ascent_steps=2, num_random_starts=1, num_directions=2, num_eigenvalues=2, num_trace_probes=2)


def fit(posterior, dtype=torch.float32):
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


def examples():
    parts = [batch(k) for k in range(3)]
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


KINDS = [MAP(), MCDropout(), SWAG(rank=3), SGLD(), SGVB(), LRT(), Ensemble(size=2), Ensemble(SWAG(rank=2), size=2)]


@pytest.mark.parametrize("posterior", KINDS, ids=lambda p: type(p).__name__)
def test_every_posterior_is_measured_and_left_alone(posterior):
    fitted = fit(posterior)
    before = [snapshot(state.model) for state in fitted.states]
    kept = [{k: v.clone() for k, v in state.statistics.items()} for state in fitted.states]
    found = measure_posterior_sharpness(fitted, *examples(), PROBE, 3, hessian=True)
    for state, weights, statistics in zip(fitted.states, before, kept, strict=True):
        assert_same(weights, snapshot(state.model))
        assert all(torch.equal(state.statistics[k], v) for k, v in statistics.items())
        assert all(p.grad is None for p in state.model.parameters())
    assert len(found.trained) == posterior.num_members
    assert len(found.draws) == len(fitted.sample_ids(3))
    assert [row.measure for row in found.rows] == list(SHARPNESS_MEASURES)
    assert found.num_examples == 36
    assert found.notes == ("Hessian by double backward",)
    assert found == measure_posterior_sharpness(fitted, *examples(), PROBE, 3, hessian=True)
    json.dumps(found.to_dict())


def test_rows_are_what_a_loop_over_draws_finds():
    fitted = fit(SWAG(rank=3))
    inputs, targets = examples()
    found = measure_posterior_sharpness(fitted, inputs, targets, PROBE, 4, batch_size=7, seed=5)
    data = [(fitted.transform(inputs), targets)]
    loss_fn = Categorical(3).loss
    each = [
        measure_sharpness(LossSurface(model, loss_fn, data), PROBE) for model in fitted.sample_networks(4, seed=5)
    ]
    trained = measure_sharpness(LossSurface(fitted.states[0].model, loss_fn, data), PROBE)
    for row in found.rows:
        values = torch.tensor([getattr(one, row.measure) for one in each], dtype=torch.float64)
        close = {"rel": 1e-3, "abs": 1e-6}  # batches of another size round differently, and gaps are differences
        assert row.trained == pytest.approx(getattr(trained, row.measure), **close)
        assert row.mean == pytest.approx(float(values.mean()), **close)
        assert row.sd == pytest.approx(float(values.std()), rel=1e-2, abs=1e-6)
        assert row.standard_error == pytest.approx(row.sd / 2)


def test_dropout_draws_keep_their_masks():
    fitted = fit(MCDropout(rate=0.4))
    found = measure_posterior_sharpness(fitted, *examples(), replace(PROBE, rho=0.0, adaptive_rho=0.0), 3)
    rows = {row.measure: row for row in found.rows}
    assert rows["loss"].sd > 0
    for name in ("one_step", "worst", "average", "adaptive"):
        assert rows[name].mean == pytest.approx(0, abs=1e-7)  # with fresh masks every loss would be another


def test_one_draw_has_no_spread():
    row = measure_posterior_sharpness(fit(MAP()), *examples(), PROBE).rows[0]
    assert row.mean == row.trained
    assert math.isnan(row.sd)
    assert math.isnan(row.standard_error)


def test_hessian_rows():
    fitted = fit(MAP(), torch.float64)
    found = measure_posterior_sharpness(fitted, *examples(), PROBE, hessian=True)
    surface = LossSurface(fitted.states[0].model, Categorical(3).loss, prepare_batches(fitted, *examples()))
    expected = compute_curvature(surface, 2, 2)
    rows = {row.measure: row.trained for row in found.rows}
    assert rows["top_eigenvalue"] == pytest.approx(expected.eigenvalues[0])
    assert rows["eigenvalue_ratio"] == pytest.approx(expected.eigenvalues[0] / expected.eigenvalues[1])
    assert rows["trace"] == pytest.approx(expected.trace)


def test_posteriors_are_compared_in_the_same_directions():
    twins = {"one": fit(SWAG(rank=2)), "other": fit(SWAG(rank=2))}
    found = compare_sharpness(twins, *examples(), PROBE, 2)
    assert list(found) == ["one", "other"]
    assert found["one"] == found["other"]


@dataclass(frozen=True)
class Linearised(MAP):
    """Draws a module that hides its weights."""

    @contextmanager
    def draw(self, state, generator):
        hidden = nn.Module()
        hidden.forward = state.model.forward
        yield hidden


def test_draws_without_weights_say_so():
    with pytest.raises(ValueError, match=r"mine could not be measured. Module has no trainable weights"):
        compare_sharpness({"mine": fit(Linearised())}, *examples(), PROBE)


@dataclass(frozen=True)
class Wrapped(MAP):
    """Draws a module around the network."""

    @contextmanager
    def draw(self, state, generator):
        yield nn.Sequential(state.model)


def test_draws_that_are_other_modules_are_noted():
    found = measure_posterior_sharpness(fit(Wrapped()), *examples(), PROBE)
    assert found.notes == (
        "Draws are Sequential modules around the trained network: its weights are displaced, and how the draw "
        "departs from them is held",
    )
    assert all(row.mean == row.trained for row in found.rows)


def test_bad_input():
    fitted, (inputs, targets) = fit(MAP()), examples()
    with pytest.raises(ValueError, match="no posterior was given"):
        compare_sharpness({}, inputs, targets)
    with pytest.raises(ValueError, match="got 0 inputs and 0 targets"):
        measure_posterior_sharpness(fitted, inputs[:0], targets[:0])
    with pytest.raises(ValueError, match="got 36 inputs and 3 targets"):
        measure_posterior_sharpness(fitted, inputs, targets[:3])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        measure_posterior_sharpness(fitted, inputs, targets, batch_size=0)
    with pytest.raises(ValueError, match="at least 1 draw"):
        measure_posterior_sharpness(fitted, inputs, targets, num_draws=0)


def test_an_exception_in_the_middle_leaves_everything(monkeypatch):
    fitted = fit(SWAG(rank=3))
    before, calls = snapshot(fitted.states[0].model), []

    def failing(self, outputs, targets):
        calls.append(1)
        if len(calls) == 40:
            raise ArithmeticError("on purpose")
        return nn.functional.cross_entropy(outputs, targets)

    monkeypatch.setattr(Categorical, "loss", failing)
    with pytest.raises(ArithmeticError, match="on purpose"):
        measure_posterior_sharpness(fitted, *examples(), PROBE, 5)
    assert_same(before, snapshot(fitted.states[0].model))
