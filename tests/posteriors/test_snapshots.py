"""Snapshot storage of samplers: thinning, storage device, and uniform draws."""

from collections import Counter

import pytest
import torch
from torch import nn

from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors.sghmc import SGHMC
from flatbayes.posteriors.sgld import SGLD
from flatbayes.posteriors.snapshots import select_snapshot_indices

SAMPLERS = [SGLD, SGHMC]


def collected(posterior, count):
    """A model whose two weights are (k, -k) at the k-th snapshot, k from 1."""
    model = nn.Linear(2, 1, bias=False).double()
    state = posterior.init(model, None, 10)
    for k in range(1, count + 1):
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[k, -k]]))
        posterior.collect(state)
    return state


@pytest.mark.parametrize("max_snapshots", [1, 2, 3, 4, 7, 30])
def test_stored_snapshots_are_evenly_spaced_and_reach_the_end(max_snapshots):
    for count in range(1, 200):
        stored = select_snapshot_indices(count, max_snapshots)
        assert (min(count, max_snapshots) + 1) // 2 <= len(stored) <= max_snapshots
        assert stored.start == stored.step  # as far from the beginning as from each other
        assert count - stored[-1] < stored.step
    assert list(select_snapshot_indices(max_snapshots, max_snapshots)) == list(range(1, max_snapshots + 1))


@pytest.mark.parametrize("max_snapshots", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("storage", ["device", "cpu"])
def test_rows_are_the_selected_snapshots(max_snapshots, storage):
    for count in range(1, 40):
        state = collected(SGLD(max_snapshots=max_snapshots, storage=storage), count)
        rows, stored = state.statistics["snapshots"], list(select_snapshot_indices(count, max_snapshots))
        assert rows.shape == (max_snapshots, 2)
        assert rows[: len(stored), 0].tolist() == stored
        assert rows[: len(stored), 1].tolist() == [-k for k in stored]
        assert int(state.statistics["count"]) == count


def test_collecting_does_not_reallocate():
    posterior = SGLD(max_snapshots=4)
    state = collected(posterior, 0)
    before = {name: tensor.data_ptr() for name, tensor in state.statistics.items()}
    for _ in range(50):
        posterior.collect(state)
    assert {name: tensor.data_ptr() for name, tensor in state.statistics.items()} == before


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_stored_snapshots_are_drawn_uniformly(sampler):
    posterior = sampler(max_snapshots=5)
    state = collected(posterior, 13)
    generator, seen = torch.Generator().manual_seed(0), Counter()
    for _ in range(3000):
        with posterior.draw(state, generator) as model:
            seen[tuple(model.weight.view(-1).tolist())] += 1
    assert set(seen) == {(4, -4), (8, -8), (12, -12)}
    assert all(abs(times - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for times in seen.values())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_draw_needs_a_snapshot(sampler):
    posterior = sampler()
    state = collected(posterior, 0)
    message = f"{sampler.__name__} needs at least 1 collected snapshot before a draw, got 0; "
    message += "lower collection.start_fraction"
    with pytest.raises(RuntimeError, match=message), posterior.draw(state, torch.Generator()):
        pass
    posterior.collect(state)
    with posterior.draw(state, torch.Generator()) as model:
        assert torch.equal(flatten(trainable_parameters(model)), state.statistics["snapshots"][0])


def test_frozen_parameters_are_not_stored():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    assert SGLD().init(model, None, 10).statistics["snapshots"].shape == (30, 6)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_snapshot_is_one_network(sampler):
    assert sampler().stochastic
    assert not sampler(max_snapshots=1).stochastic


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("max_snapshots", [0, -3])
def test_refuses_an_empty_storage(sampler, max_snapshots):
    with pytest.raises(ValueError, match=f"at least 1, got {max_snapshots}"):
        sampler(max_snapshots=max_snapshots)


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_snapshots_in_main_memory_equal_those_on_the_device(sampler):
    weights = []
    for storage in ("device", "cpu"):
        posterior = sampler(max_snapshots=3, storage=storage)
        model = nn.Linear(2, 1).cuda()
        state = posterior.init(model, None, 10)
        for k in range(8):
            with torch.no_grad():
                model.weight.fill_(k)
            posterior.collect(state)
        assert state.statistics["snapshots"].device.type == ("cuda" if storage == "device" else "cpu")
        with posterior.draw(state, torch.Generator("cuda").manual_seed(0)) as network:
            weights.append(network.weight.detach().clone())
    assert torch.equal(*weights)
