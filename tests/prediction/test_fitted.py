"""Predictions as averages over draws, their inputs, and the statistics of draws."""

import copy
import gc
import pickle
import weakref
from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatbayes.core.buffers import reestimate_norm_statistics
from flatbayes.likelihoods import Categorical
from flatbayes.posteriors import MAP, SGHMC, SGLD, SWAG, Ensemble, MCDropout
from flatbayes.prediction import FittedPosterior
from flatbayes.prediction.inputs import iter_chunks
from support import assert_same, batch, snapshot


def inputs(n=40):
    return torch.cat([batch(k, size=10)[0] for k in range(n // 10)])


def test_predicts_the_average_of_its_draws(fitted):
    x = inputs()
    predictive = fitted.predict(x, 6, keep_members=True)
    count = len(fitted.sample_ids(6))
    assert predictive.member_probs.shape == (count, 40, 3)
    with torch.no_grad():
        by_hand = [predict_probs(fitted, net, x) for net in fitted.sample_networks(6)]
    torch.testing.assert_close(predictive.mean, torch.stack(by_hand).mean(0))
    torch.testing.assert_close(predictive.mean.sum(-1), torch.ones(40, dtype=torch.float64))


def predict_probs(fitted, net, x):
    return net(fitted.transform(x)).double().softmax(-1)


def test_leaves_everything_as_it_was(fitted):
    before = [snapshot(state.model) for state in fitted.states]
    fitted.predict(inputs(), 4)
    for state, expected in zip(fitted.states, before, strict=True):
        assert_same(snapshot(state.model), expected)


def test_same_seed_same_prediction(fitted):
    x = inputs()
    first, second = fitted.predict(x, 6, seed=3), fitted.predict(x, 6, seed=3)
    assert torch.equal(first.log_probs, second.log_probs)
    if fitted.posterior.stochastic:
        assert not torch.equal(first.log_probs, fitted.predict(x, 6, seed=4).log_probs)


# Not MCDropout: its masks depend on how examples come in batches.
@pytest.mark.parametrize("posterior", [MAP(), SWAG(rank=3), Ensemble(SWAG(rank=2), size=2)], ids=str)
def test_arrays_loaders_and_generators_give_the_same(make, posterior):
    fitted = make(posterior)
    x = inputs()
    expected = fitted.predict(x, 4, batch_size=8).log_probs
    loader = DataLoader(TensorDataset(x, torch.zeros(40)), batch_size=8)
    for kind in (x.numpy(), loader, (b for b in x.split(8)), [(b, None) for b in x.split(8)], x.double()):
        torch.testing.assert_close(fitted.predict(kind, 4, batch_size=8).log_probs, expected)


def test_an_iterable_is_read_once_and_in_chunks(fitted, monkeypatch):
    monkeypatch.setattr("flatbayes.prediction.inputs.MAX_CHUNK_EXAMPLES", 128)
    read = []

    def endless():
        for k in range(70):
            read.append(k)
            yield batch(k % 5, size=4)[0]

    stream = fitted.stream_predictions(endless(), 3)
    first = next(stream)
    assert len(first.log_probs) == 32 * 4
    assert len(read) == 32
    assert sum(len(chunk.log_probs) for chunk in stream) == 38 * 4
    assert len(read) == 70


@pytest.mark.parametrize(
    ("posterior", "num_draws", "num_networks"),
    [(MAP(), 30, 1), (MCDropout(), 7, 7), (SWAG(rank=3), 5, 5), (SWAG(rank=2, scale=0.0), 5, 1),
     (Ensemble(size=3), 30, 3), (Ensemble(SWAG(rank=2), size=2), 5, 6)],
)  # fmt: skip
def test_every_run_has_the_same_number_of_draws(make, posterior, num_draws, num_networks):
    sample_ids = make(posterior).sample_ids(num_draws)
    assert len(sample_ids) == len(set(sample_ids)) == num_networks
    runs = [run for _, run, _ in sample_ids]
    assert len({runs.count(run) for run in range(posterior.num_members)}) == 1


def test_statistics_of_a_draw_are_its_own_and_estimated_once(make, monkeypatch):
    fitted = make(SWAG(rank=3))
    calls = []

    def count_calls(model, batches, *args):
        calls.append(1)
        return reestimate_norm_statistics(model, batches, *args)

    monkeypatch.setattr("flatbayes.prediction.sampling.reestimate_norm_statistics", count_calls)
    x = inputs()
    fitted.predict(x, 4)
    fitted.predict(x[:10], 4)
    assert len(calls) == 4
    sample_id = fitted.sample_ids(1)[0]
    with fitted.sampled_network(sample_id) as net:
        buffers = {name: b.clone() for name, b in net.named_buffers()}
        preprocessed = [fitted.transform(b) for b in fitted.statistics_inputs]
        fresh = reestimate_norm_statistics(net, preprocessed)
    for name, value in fresh.items():
        torch.testing.assert_close(buffers[name], value)
    assert not torch.allclose(buffers["1.running_mean"], fitted.states[0].model[1].running_mean)


def test_posteriors_that_keep_their_weights_keep_the_statistics_of_training(make):
    fitted = make(Ensemble(size=2))
    fitted.statistics_inputs = ()
    fitted.predict(inputs(), 4)


def test_missing_statistics_inputs_are_refused(make):
    fitted = make(SWAG(rank=3))
    fitted.statistics_inputs = ()
    with pytest.raises(ValueError, match="pass `statistics_inputs`"):
        fitted.predict(inputs(), 4)


def test_invalid_arguments_are_refused(fitted):
    with pytest.raises(ValueError, match="at least 1 draw, got num_draws=0"):
        fitted.predict(inputs(), 0)
    with pytest.raises(ValueError, match="inputs are empty"):
        fitted.predict(inputs()[:0])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        fitted.predict(inputs(), batch_size=0)
    with pytest.raises(ValueError, match="inputs are texts"):
        fitted.predict("abc")
    with pytest.raises(ValueError, match="at least one training run"):
        FittedPosterior(fitted.posterior, [], fitted.likelihood)


def test_precision_follows_the_networks(make):
    fitted = make(MAP())
    fitted.states[0].model.double()
    assert fitted.predict(inputs(), 1).mean.dtype == torch.float64


def test_moving_keeps_the_predictions(fitted):
    x = inputs()
    expected = fitted.predict(x, 3).log_probs
    assert torch.equal(fitted.to("cpu").predict(x, 3).log_probs, expected)


def test_chunks_of_tensors_and_iterables(monkeypatch):
    assert [[len(b) for b in chunk] for chunk in iter_chunks(torch.zeros(10, 2), 4)] == [[4, 4, 2]]
    assert [len(chunk) for chunk in iter_chunks(iter([torch.zeros(3, 2)] * 5), 4)] == [5]
    assert list(iter_chunks([], 4)) == []
    monkeypatch.setattr("flatbayes.prediction.inputs.MAX_CHUNK_BYTES", 6 * (8 + 12))  # of 6 examples and predictions
    for examples, sizes in ((torch.zeros(3, 2), [2, 2, 1]), (torch.zeros(7, 2), [1] * 5)):
        assert [len(chunk) for chunk in iter_chunks(iter([examples] * 5), 4, predictive_bytes=12)] == sizes
    monkeypatch.setattr("flatbayes.prediction.inputs.MAX_CHUNK_EXAMPLES", 3)
    assert [len(chunk) for chunk in iter_chunks(iter([torch.zeros(1, 2)] * 5), 4)] == [3, 2]


def test_drawing_from_a_network_without_norm_layers_needs_no_data():
    model = torch.nn.Linear(2, 3)
    posterior = SWAG(rank=2)
    state = posterior.init(model, None, 10)
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        posterior.collect(state)
    assert FittedPosterior(posterior, [state], Categorical(3)).predict(torch.zeros(4, 2), 3).mean.shape == (
        4,
        3,
    )


def test_members_have_draws_of_their_own(make):
    fitted = make(SWAG(rank=3))
    pair = FittedPosterior(
        fitted.posterior, fitted.states * 2, fitted.likelihood, fitted.transform, fitted.statistics_inputs
    )
    first, second = (net[9].weight.detach().clone() for net in pair.sample_networks(2))
    assert not torch.equal(first, second)


SNAPSHOT_POSTERIORS = [SGLD(max_snapshots=8), SGHMC(max_snapshots=8), Ensemble(SGLD(max_snapshots=8), size=2)]


def store_snapshots(posterior, count):
    """States whose snapshots have the weights 1, 2, ... in the first run, 101, 102, ... in the second."""
    states = []
    for member in range(posterior.num_members):
        state = posterior.init(nn.Linear(1, 2, bias=False), None, 10)
        for k in range(count):
            nn.init.constant_(state.model.weight, 100 * member + k + 1)
            posterior.collect(state)
        states.append(state)
    return FittedPosterior(posterior, states, Categorical(2))


@pytest.mark.parametrize("posterior", SNAPSHOT_POSTERIORS, ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_snapshot_is_used_once_before_one_is_repeated(posterior, count):
    fitted, members = store_snapshots(posterior, count), posterior.num_members
    draws = [int(net.weight[0]) for net in fitted.sample_networks(3 * count * members, seed=2)]
    everything = {100 * member + k + 1 for member in range(members) for k in range(count)}
    for cycle in range(3):
        assert {*draws[cycle * count * members : (cycle + 1) * count * members]} == everything
    assert max(Counter(draws[: (count + 1) * members]).values()) <= 2
    assert [int(net.weight[0]) for net in fitted.sample_networks(members, seed=2)] == draws[:members]


@pytest.mark.parametrize("posterior", SNAPSHOT_POSTERIORS, ids=str)
def test_snapshots_come_in_another_order_for_each_seed_member_and_cycle(posterior):
    fitted, members = store_snapshots(posterior, 8), posterior.num_members
    orders = [
        tuple(int(net.weight[0]) % 100 for net in list_member(fitted, seed, member, cycle))
        for seed in range(3)
        for member in range(members)
        for cycle in range(2)
    ]
    assert len({*orders}) == len(orders)
    first = Counter(first_snapshot(fitted, seed) for seed in range(200))
    assert set(first) == set(range(1, 9))
    assert max(first.values()) < 50, "each comes first with probability 1 / 8"


def list_member(fitted, seed, member, cycle):
    for draw in range(8 * cycle, 8 * cycle + 8):
        with fitted.sampled_network((seed, member, draw)) as network:
            yield network


def first_snapshot(fitted, seed):
    with fitted.sampled_network((seed, 0, 0)) as network:
        return int(network.weight[0])


def test_shared_predictions_are_those_of_the_same_inputs_draws_and_options(fitted):
    x = inputs()
    with fitted.share_predictions():
        first = fitted.predict(x, 3)
        with fitted.share_predictions():
            assert fitted.predict(x, 3) is first
        assert fitted.predict(x, 2) is not first
        assert fitted.predict(x, 3, seed=1) is not first
        assert fitted.predict(x.clone(), 3) is not first
        x += 1.0
        assert not torch.equal(fitted.predict(x, 3).log_probs, first.log_probs)
        batches = [x[:8]]
        assert len(fitted.predict(batches, 3).mean) == 8
        with torch.inference_mode():  # which counts no writes
            z = x.clone()
            unchanged = fitted.predict(z, 3).log_probs
            z += 1.0
            assert not torch.equal(fitted.predict(z, 3).log_probs, unchanged)
        kept = weakref.ref(fitted.predict(y := x.clone(), 3))
        del y
        gc.collect()
        assert kept() is None  # with its inputs
    assert fitted.predict(x, 3) is not fitted.predict(x, 3)


@pytest.mark.parametrize("options", [{}, {"vectorized": False}, {"vectorized": True}])
def test_torch_save_and_pickle_keep_no_draws(make, options, tmp_path):
    fitted = make(SWAG(rank=2))
    x = inputs()[:7]
    expected = fitted.predict(x, 4, **options).mean  # whose draws are views of one buffer
    torch.save(fitted, tmp_path / "fitted.pt")
    loaded = torch.load(tmp_path / "fitted.pt", weights_only=False)
    for copied in (loaded, pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert copied._runner.drawn_networks is None
        assert torch.equal(copied.predict(x, 4, **options).mean, expected)
