"""Buffers, training flags and running statistics: restored bit for bit, and re-estimated."""

import pytest
import torch
from torch import nn

from flatbayes.core.buffers import eval_mode, norm_layers, preserve_buffers, reestimate_norm_statistics, swap_buffers
from support import assert_same, batch, network, snapshot


def test_preserve_buffers_restores_statistics_counters_and_modes():
    model = network()
    before = snapshot(model)
    with preserve_buffers(model):
        torch.set_rng_state(before["rng"])
        model(batch()[0])
        model[1].eval()
        assert model[1].num_batches_tracked == 1
    torch.set_rng_state(before["rng"])
    assert_same(snapshot(model), before)


def test_preserve_buffers_restores_a_buffer_that_was_replaced():
    model = nn.BatchNorm1d(3)
    buffer = model.running_mean
    with pytest.raises(ArithmeticError), preserve_buffers(model):
        model.running_mean = torch.full((3,), 5.0)
        raise ArithmeticError
    assert model.running_mean is buffer
    assert (buffer == 0).all()


def test_eval_mode_restores_each_mode():
    model = network()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    with eval_mode(model):
        assert not any(m.training for m in model.modules())
    assert [m.training for m in model.modules()] == modes


def test_reestimated_statistics_are_averages_over_batches_without_dropout():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2))
    batches = [torch.randn(8, 2), torch.randn(8, 2) * 3]
    before = snapshot(model)
    statistics = reestimate_norm_statistics(model, batches)
    assert_same(snapshot(model), before)
    torch.testing.assert_close(statistics["1.running_mean"], torch.stack([b.mean(0) for b in batches]).mean(0))
    torch.testing.assert_close(statistics["1.running_var"], torch.stack([b.var(0) for b in batches]).mean(0))
    assert model[1].momentum == 0.1
    with swap_buffers(model, statistics), eval_mode(model):
        expected = nn.functional.batch_norm(batches[0], statistics["1.running_mean"], statistics["1.running_var"])
        torch.testing.assert_close(model(batches[0]), expected)
    assert_same(snapshot(model), before)


def test_a_model_that_is_itself_a_norm_layer():
    model = nn.BatchNorm1d(2)
    statistics = reestimate_norm_statistics(model, [torch.randn(8, 2)])
    with swap_buffers(model, statistics):
        assert torch.equal(model.running_mean, statistics["running_mean"])
    assert (model.running_mean == 0).all()


def test_norm_layers_are_those_with_running_statistics():
    layers = [
        nn.BatchNorm2d(2),
        nn.BatchNorm1d(2, track_running_stats=False),
        nn.GroupNorm(1, 2),
        nn.InstanceNorm1d(2, track_running_stats=True),
    ]
    assert norm_layers(nn.ModuleList(layers)) == [layers[0], layers[3]]


def test_statistics_of_a_compiled_network_are_reestimated():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.randn(4, 2))
    batch = torch.randn(8, 2)
    statistics = reestimate_norm_statistics(compiled, [batch])
    torch.testing.assert_close(statistics["_orig_mod.1.running_mean"], model[0](batch).mean(0))
