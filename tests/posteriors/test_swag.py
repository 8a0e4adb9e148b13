"""SWAG's moments and samples against closed forms (oracle O21), and against their covariance."""

import math

import pytest
import torch
from torch import nn

from flatbayes.core.tensor_lists import flatten
from flatbayes.core.weights import trainable_parameters
from flatbayes.posteriors import SWAG, swag
from flatbayes.posteriors.snapshot_moments import update_moments
from flatbayes.posteriors.swag import gaussian_sample


def collected(snapshots, rank):
    model = nn.Linear(1, 1, bias=False).double()
    posterior = SWAG(rank=rank, scale=1.0)
    state = posterior.init(model, None, 10)
    for value in snapshots:
        with torch.no_grad():
            model.weight.fill_(value)
        posterior.collect(state)
    return posterior, state


def test_moments_of_three_snapshots():
    _, state = collected([0.0, 2.0, 4.0], rank=20)
    statistics = state.statistics
    assert statistics["mean"].item() == pytest.approx(2, abs=1e-15)
    assert (statistics["sum_squares"] / statistics["count"]).item() == pytest.approx(8 / 3, abs=1e-15)
    assert statistics["deviations"][:3, 0].tolist() == pytest.approx([0, 1, 2], abs=1e-15)


def test_low_rank_variance_is_divided_by_the_columns_in_use():
    deviations = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    variance = sum(
        gaussian_sample(zero, zero, deviations, 1.0, zero, z2).item() ** 2 for z2 in torch.eye(3, dtype=torch.float64)
    )
    assert variance == pytest.approx(2.5, abs=1e-14)


def test_only_the_last_deviations_are_stored():
    _, state = collected([0.0, 1.0, 5.0, 5.0, 9.0], rank=2)
    # means after each: 0, .5, 2, 2.75, 4; the last two deviations are 5 - 2.75 and 9 - 4
    assert sorted(state.statistics["deviations"][:, 0].tolist()) == pytest.approx([2.25, 5.0])
    assert state.statistics["mean"].item() == pytest.approx(4)


def test_moments_are_accurate_where_the_textbook_formula_cancels():
    generator = torch.Generator().manual_seed(0)
    centre = torch.full((10_000,), 0.1)
    snapshots = [centre + 1e-5 * torch.randn(10_000, generator=generator) for _ in range(30)]
    mean, sum_squares = torch.zeros(10_000), torch.zeros(10_000)
    for count, weights in enumerate(snapshots, 1):
        update_moments(mean, sum_squares, weights, count)
    exact = torch.stack(snapshots).double().var(0, correction=0)
    assert (sum_squares >= 0).all()
    assert (sum_squares / 30).double().mean().item() == pytest.approx(exact.mean().item(), rel=0.02)
    textbook = torch.stack(snapshots).square().mean(0) - torch.stack(snapshots).mean(0).square()
    assert (textbook <= 0).float().mean() > 0.2


def test_draws_have_the_mean_and_covariance_of_the_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    posterior = SWAG(rank=4, scale=0.5)
    state = posterior.init(model, None, 10)
    for k in range(6):  # the two layers move together
        with torch.no_grad():
            model[0].weight.fill_(1 + 0.1 * k)
            model[1].weight.fill_(-2 + 0.3 * k)
        posterior.collect(state)
    statistics = state.statistics
    deviations = statistics["deviations"]
    covariance = 0.5 * (torch.diag(statistics["sum_squares"] / 6) + deviations.T @ deviations / 3)
    generator = torch.Generator().manual_seed(1)
    draws = []
    for _ in range(3_000):
        with posterior.draw(state, generator) as network:
            draws.append(torch.stack([network[0].weight.detach().view(()), network[1].weight.detach().view(())]))
    draws = torch.stack(draws)
    scale = covariance.diagonal().sqrt()
    error = (draws.mean(0) - statistics["mean"]).abs() / (scale / math.sqrt(len(draws)))
    assert (error < 5).all()
    torch.testing.assert_close(draws.T.cov() / scale.outer(scale), covariance / scale.outer(scale), rtol=0, atol=0.05)
    correlation = covariance[0, 1] / (scale[0] * scale[1])
    assert correlation > 0.4  # one z2 for the whole network; one per layer would give 0


def test_scale_zero_is_the_mean():
    posterior, state = collected([0.0, 2.0, 4.0], rank=2)
    with SWAG(rank=2, scale=0.0).draw(state, torch.Generator()) as network:
        assert network.weight.item() == pytest.approx(2)
    assert not SWAG(scale=0.0).stochastic
    assert posterior.stochastic


def test_diagonal_stores_no_deviations():
    _, state = collected([0.0, 2.0], rank=0)
    assert state.statistics["deviations"].numel() == 0


def test_frozen_parameters_are_not_drawn():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    posterior = SWAG(rank=2)
    state = posterior.init(model, None, 10)
    for _ in range(3):
        with torch.no_grad():
            model[1].weight.add_(1)
        posterior.collect(state)
    before = model[0].weight.clone()
    with posterior.draw(state, torch.Generator()) as network:
        assert torch.equal(network[0].weight, before)
        assert state.statistics["mean"].numel() == 6


@pytest.mark.parametrize("rank", [1, -1])
def test_refuses_a_rank_without_variance(rank):
    with pytest.raises(ValueError, match="rank must be 0"):
        SWAG(rank=rank)


@pytest.mark.parametrize("scale", [-1.0, math.inf, math.nan])
def test_refuses_an_invalid_scale(scale):
    with pytest.raises(ValueError, match="scale multiplies"):
        SWAG(scale=scale)


def wandered(posterior, count=6):
    """A state after a walk, and the snapshots on its way."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    state, snapshots = posterior.init(model, None, 10), []
    for _ in range(count):
        with torch.no_grad():
            for param in model.parameters():
                param.add_(torch.randn(param.shape))
        posterior.collect(state)
        snapshots.append(flatten(trainable_parameters(model)).double())
    return state, torch.stack(snapshots)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_blocks_collect_the_moments_of_whole_vectors(monkeypatch, size):
    monkeypatch.setattr(swag, "block_size", lambda like: size)
    state, snapshots = wandered(SWAG(rank=3))
    statistics, means = state.statistics, [snapshots[: k + 1].mean(0) for k in range(6)]
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(statistics["mean"].double(), means[-1], **close)
    torch.testing.assert_close(statistics["sum_squares"].double(), snapshots.var(0, correction=0) * 6, **close)
    last = torch.stack([snapshots[k] - means[k] for k in (3, 4, 5)])
    torch.testing.assert_close(statistics["deviations"].double(), last, **close)


def test_collecting_updates_moments_in_place_and_leaves_the_weights_unchanged():
    posterior = SWAG(rank=2)
    state, _ = wandered(posterior)
    places = {name: tensor.data_ptr() for name, tensor in state.statistics.items()}
    before = flatten(trainable_parameters(state.model))
    posterior.collect(state)
    assert {name: tensor.data_ptr() for name, tensor in state.statistics.items()} == places
    assert torch.equal(flatten(trainable_parameters(state.model)), before)


def drawn_weights(posterior, state, seed=0):
    with posterior.draw(state, torch.Generator().manual_seed(seed)) as network:
        return flatten(trainable_parameters(network))


def test_a_draw_does_not_depend_on_where_blocks_end(monkeypatch):
    posterior = SWAG(rank=3)
    state, _ = wandered(posterior)
    whole = drawn_weights(posterior, state)
    monkeypatch.setattr(swag, "block_size", lambda like: 16)
    # Of a vector whose length is no multiple of 16, torch draws the last 16 numbers anew.
    torch.testing.assert_close(drawn_weights(posterior, state)[:10], whole[:10])


def test_storage_changes_no_draw_beyond_the_rounding_of_deviations():
    expected = drawn_weights(SWAG(rank=3), wandered(SWAG(rank=3))[0])
    for posterior in (
        SWAG(rank=3, storage="cpu"),
        SWAG(rank=3, bfloat16=True),
        SWAG(rank=3, storage="cpu", bfloat16=True),
    ):
        state, _ = wandered(posterior)
        weights = drawn_weights(posterior, state)
        assert weights.dtype == torch.float32
        if posterior.bfloat16:
            assert state.statistics["deviations"].dtype == torch.bfloat16
            assert not torch.equal(weights, expected)
            torch.testing.assert_close(weights, expected, rtol=0, atol=0.05)
        else:
            assert torch.equal(weights, expected)
        assert ("deviations" in state.cpu_statistics) is (posterior.storage == "cpu")
        resumed = posterior.init(state.model, None, 10)
        resumed.load_state_dict(state.state_dict())
        assert torch.equal(drawn_weights(posterior, resumed), weights)


@pytest.mark.parametrize("params", ["all", ["*bias"]])
def test_moments_of_a_network_in_half_precision_have_all_snapshots(params):
    torch.manual_seed(0)
    snapshots = [(1 + k / 400 + 0.02 * torch.randn(30)).bfloat16() for k in range(40)]
    model = nn.Linear(9, 3).bfloat16()
    posterior = SWAG(rank=2, params=params)
    state = posterior.init(model, None, 10)
    for snapshot in snapshots:
        with torch.no_grad():
            model.weight.copy_(snapshot[:27].view(3, 9))
            model.bias.copy_(snapshot[27:])
        posterior.collect(state)
    exact = torch.stack(snapshots).double()
    statistics = state.statistics
    others = [] if params == "all" else [statistics["mean_of_others"]]
    torch.testing.assert_close(torch.cat([*others, statistics["mean"]]).double(), exact.mean(0), rtol=1e-5, atol=0)
    variance = exact[:, -len(statistics["mean"]) :].var(0, unbiased=False)
    torch.testing.assert_close((statistics["sum_squares"] / 40).double(), variance, rtol=1e-4, atol=0)


def test_deviations_in_main_memory_stay_there():
    posterior = SWAG(rank=3, storage="cpu")
    state, _ = wandered(posterior)
    state.to("meta")
    assert {name: tensor.device.type for name, tensor in state.statistics.items()} == {
        "count": "cpu",
        "mean": "meta",
        "sum_squares": "meta",
        "deviations": "cpu",
    }
    assert next(state.model.parameters()).device.type == "meta"


class TestSomeOfTheWeights:
    def walked(self, bayesian, count=4, storage="device"):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        posterior = SWAG(rank=3, params=bayesian, storage=storage)
        state, snapshots = posterior.init(model, None, 10), []
        for _ in range(count):
            with torch.no_grad():
                for param in model.parameters():
                    param.add_(torch.randn(param.shape))
            posterior.collect(state)
            snapshots.append({name: param.detach().double() for name, param in model.state_dict().items()})
            snapshots[-1] = {name: value.clone() for name, value in snapshots[-1].items()}
        return posterior, state, snapshots

    def test_other_parameters_have_their_mean_in_every_draw(self):
        posterior, state, snapshots = self.walked("last_layer")
        before = flatten(trainable_parameters(state.model))
        means = {name: torch.stack([shot[name] for shot in snapshots]).mean(0) for name in snapshots[0]}
        draws = []
        for seed in range(2):
            with posterior.draw(state, torch.Generator().manual_seed(seed)) as network:
                draws.append({name: param.detach().clone() for name, param in network.named_parameters()})
        for name, mean in means.items():
            if name.startswith("2."):
                assert not torch.allclose(draws[0][name], draws[1][name])
            else:
                assert torch.equal(draws[0][name], draws[1][name])
                torch.testing.assert_close(draws[0][name].double(), mean, rtol=1e-5, atol=1e-5)
        assert torch.equal(flatten(trainable_parameters(state.model)), before)

    def test_memory_is_that_of_the_selected_parameters(self):
        _, state, _ = self.walked("last_layer")
        assert state.statistics["deviations"].shape == (3, 10)
        assert state.statistics["sum_squares"].shape == (10,)
        assert state.statistics["mean_of_others"].shape == (3 * 4 + 4 + 8,)

    def test_selected_parameters_have_the_moments_of_a_fit_with_all(self):
        _, some, _ = self.walked(["2.*"])
        _, every, _ = self.walked("all")
        assert "mean_of_others" not in every.statistics
        for name in ("mean", "sum_squares"):
            assert torch.equal(some.statistics[name], every.statistics[name][-10:])

    def test_a_selection_without_match_lists_the_parameters(self):
        with pytest.raises(ValueError, match=r"pattern 'head\.\*' of params matches none .* \['0\.weight'"):
            SWAG(params=["head.*"]).init(nn.Sequential(nn.Linear(2, 2)), None, 10)
        with pytest.raises(ValueError, match="params must be weights or"):
            SWAG(params=[])
