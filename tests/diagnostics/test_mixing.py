"""Effective sample size and R-hat against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, rankdata

from flatbayes.diagnostics.mixing import (
    compute_autocovariances,
    effective_sample_size,
    rank_normalize,
    split_chains,
    split_r_hat,
)


def autoregressive(phi, chains, draws, seed=0):
    """x_(t+1) = phi x_t + sqrt(1 - phi²) noise, begun in its stationary distribution."""
    noise = torch.randn(draws, chains, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    path = [noise[0]]
    for row in noise[1:]:
        path.append(phi * path[-1] + math.sqrt(1 - phi**2) * row)
    return torch.stack(path, 1)


@pytest.mark.parametrize("phi", [-0.4, 0.0, 0.5, 0.9, 0.97])
@pytest.mark.parametrize("chains", [1, 4])
def test_size_of_an_autoregressive_chain(phi, chains):
    draws, repeats = 16_000 // chains, 10
    found = [effective_sample_size(c) for c in autoregressive(phi, chains * repeats, draws).split(chains)]
    exact = 16_000 * (1 - phi) / (1 + phi)
    error = torch.tensor(found).std().item() / math.sqrt(repeats)
    assert abs(sum(found) / repeats - exact) < 4 * error + 0.02 * exact  # cutting the sum is a bias of its own
    assert error < 0.08 * exact


def test_size_of_independent_draws_is_about_their_number():
    assert effective_sample_size(autoregressive(0.0, 4, 5000)) == pytest.approx(20_000, rel=0.1)


def test_size_agrees_with_the_variance_of_the_mean():
    chains = autoregressive(0.8, 2000, 400)
    implied = chains.var().item() / chains.mean(1).var().item()
    found = sum(effective_sample_size(chain[None]) for chain in chains[:200]) / 200
    assert found == pytest.approx(implied, rel=0.2)


def test_chains_that_disagree_count_for_little():
    chains = autoregressive(0.0, 4, 1000)
    assert effective_sample_size(chains) > 3000
    apart = chains + 3 * torch.arange(4).double()[:, None]
    assert effective_sample_size(apart) < 20
    assert split_r_hat(apart) > 2


def test_a_chain_that_drifts_disagrees_with_itself():
    chain = autoregressive(0.0, 1, 1000) + torch.linspace(-3, 3, 1000).double()
    assert split_r_hat(chain) > 1.5
    assert effective_sample_size(chain) < 20


def test_size_is_bounded_where_chains_alternate():
    chain = torch.tensor([1.0, -1.0]).repeat(500)[None]
    assert effective_sample_size(chain) == pytest.approx(1000 * math.log10(1000))


def test_neither_depends_on_location_scale_or_precision():
    chains = autoregressive(0.5, 3, 501)
    for diagnostic in (effective_sample_size, split_r_hat):
        expected = diagnostic(chains)
        assert diagnostic(-7 * chains + 100) == pytest.approx(expected, rel=1e-9)
        assert diagnostic(chains.float()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rank_normalized", [False, True])
def test_chains_that_agree_have_r_hat_one(rank_normalized):
    assert split_r_hat(autoregressive(0.3, 4, 4000), rank_normalized) == pytest.approx(1, abs=0.003)


def test_r_hat_is_the_root_of_the_ratio_of_variances():
    chains = torch.tensor([[0.0, 2.0, 1.0, 3.0]])
    # halves (0, 2) and (1, 3): W = 2, var(means) = 1/2, V = 2 * 1/2 + 1/2
    assert split_r_hat(chains) == pytest.approx(math.sqrt(1.5 / 2), rel=1e-12)


def test_rank_normalised_r_hat_sees_what_the_plain_one_does_not():
    generator = torch.Generator().manual_seed(0)
    chains = torch.randn(4, 2000, generator=generator, dtype=torch.float64)
    chains[0] *= 4  # same location, other scale
    assert split_r_hat(chains) < 1.01
    assert split_r_hat(chains, rank_normalized=True) > 1.1
    heavy = torch.empty(4, 2000, dtype=torch.float64).cauchy_(generator=generator)
    heavy[0] += 2
    assert split_r_hat(heavy) < 1.01 < 1.05 < split_r_hat(heavy, rank_normalized=True)


def test_ranks_are_averaged_over_ties():
    scores = rank_normalize(torch.tensor([[3.0, 1.0], [3.0, 7.0]], dtype=torch.float64))
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = normal.icdf((torch.tensor([[2.5, 1.0], [2.5, 4.0]]) - 0.375) / 4.25).double()
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-6)


def test_autocovariances_are_those_of_the_definition():
    chain = autoregressive(0.6, 2, 50)
    centred = chain - chain.mean(1, keepdim=True)
    direct = torch.stack([(centred[:, : 50 - k] * centred[:, k:]).sum(1) / 50 for k in range(50)], 1)
    torch.testing.assert_close(compute_autocovariances(chain), direct)


def test_an_odd_middle_draw_is_left_out():
    assert split_chains(torch.tensor([[5.0, 6, 7, 8, 9]])).tolist() == [[0, 1], [3, 4]]


def test_constant_chains():
    still = torch.full((2, 10), 0.1)
    assert math.isnan(effective_sample_size(still))
    assert math.isnan(split_r_hat(still))
    still[1] += 0.3
    assert split_r_hat(still) == math.inf


@pytest.mark.parametrize("shape", [(2, 3), (0, 10), (10,), (2, 10, 1)])
@pytest.mark.parametrize("diagnostic", [effective_sample_size, split_r_hat])
def test_invalid_shapes_raise(diagnostic, shape):
    # where shapes are checked as types, that comes first
    with pytest.raises((ValueError, TypeError), match="at least 1 chain of at least 4 draws|chains draws"):
        diagnostic(torch.zeros(shape))


@pytest.mark.parametrize("diagnostic", [effective_sample_size, split_r_hat])
def test_values_that_are_not_finite_raise(diagnostic):
    with pytest.raises(ValueError, match="not finite"):
        diagnostic(torch.tensor([[0.0, 1.0, math.nan, 2.0]]))


@pytest.mark.parametrize("scale", [1.0, 4.0])  # equal chains, and chains of different scales, which folding detects
def test_rank_normalized_r_hat_is_that_of_its_definition(scale):
    chains = torch.randn(2, 31, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chains = (64 * chains * torch.tensor([[1.0], [scale]])).round() / 64  # the median and distances from it are exact
    halves = np.concatenate([chains.numpy()[:, :15], chains.numpy()[:, -15:]])

    def compute_r_hat(values):
        scores = norm.ppf((rankdata(values).reshape(4, 15) - 0.375) / 60.25)
        within = scores.var(1, ddof=1).mean()
        return math.sqrt((14 / 15 * within + scores.mean(1).var(ddof=1)) / within)

    expected = max(compute_r_hat(halves), compute_r_hat(abs(halves - np.median(halves))))
    assert split_r_hat(chains, rank_normalized=True) == pytest.approx(expected, rel=1e-12)
