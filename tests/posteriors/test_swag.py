"""SWAG's moments and samples against closed forms (oracle O21), and against their covariance."""

import math

import pytest
import torch
from torch import nn

from flatbayes.posteriors import SWAG
from flatbayes.posteriors.swag import gaussian_sample, update_moments


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
    found = state.statistics
    assert found["mean"].item() == pytest.approx(2, abs=1e-15)
    assert (found["sum_squares"] / found["count"]).item() == pytest.approx(8 / 3, abs=1e-15)
    assert found["deviations"][:3, 0].tolist() == pytest.approx([0, 1, 2], abs=1e-15)


def test_low_rank_variance_is_divided_by_the_columns_in_use():
    deviations = torch.tensor([[0.0], [1.0], [2.0]], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    variance = sum(
        gaussian_sample(zero, zero, deviations, 1.0, zero, z2).item() ** 2 for z2 in torch.eye(3, dtype=torch.float64)
    )
    assert variance == pytest.approx(2.5, abs=1e-14)


def test_only_the_last_deviations_are_kept():
    _, state = collected([0.0, 1.0, 5.0, 5.0, 9.0], rank=2)
    # means after each: 0, .5, 2, 2.75, 4; the last two deviations are 5 - 2.75 and 9 - 4
    assert sorted(state.statistics["deviations"][:, 0].tolist()) == pytest.approx([2.25, 5.0])
    assert state.statistics["mean"].item() == pytest.approx(4)


def test_moments_stay_right_where_the_textbook_formula_cancels():
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
    found = state.statistics
    deviations = found["deviations"]
    covariance = 0.5 * (torch.diag(found["sum_squares"] / 6) + deviations.T @ deviations / 3)
    generator = torch.Generator().manual_seed(1)
    draws = []
    for _ in range(20_000):
        with posterior.draw(state, generator) as network:
            draws.append(torch.stack([network[0].weight.detach().view(()), network[1].weight.detach().view(())]))
    draws = torch.stack(draws)
    scale = covariance.diagonal().sqrt()
    error = (draws.mean(0) - found["mean"]).abs() / (scale / math.sqrt(len(draws)))
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


def test_diagonal_keeps_no_deviations():
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
def test_refuses_a_scale_without_meaning(scale):
    with pytest.raises(ValueError, match="scale multiplies"):
        SWAG(scale=scale)
