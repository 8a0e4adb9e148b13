"""KL divergences and their inverse against scipy and torch, and selection of the prior scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import rel_entr

from flatbayes.theory import binary_kl, gaussian_kl, inverse_kl, prior_scale_grid, select_prior_scale

probability = st.floats(0, 1, allow_subnormal=False)


# ---- the binary divergence and its inverse


@given(probability, probability)
def test_binary_kl_is_the_relative_entropy(q, p):
    expected = float(rel_entr(q, p) + rel_entr(1 - q, 1 - p))
    assert binary_kl(q, p) == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_binary_kl_at_its_edges():
    assert binary_kl(0.3, 0.3) == binary_kl(0.0, 0.0) == binary_kl(1.0, 1.0) == 0
    assert binary_kl(0.0, 0.2) == pytest.approx(-math.log(0.8))
    assert binary_kl(1.0, 0.2) == pytest.approx(-math.log(0.2))
    assert binary_kl(0.0, 1.0) == binary_kl(0.5, 0.0) == binary_kl(0.5, 1.0) == binary_kl(1.0, 0.0) == math.inf
    assert binary_kl(0.3715965769686672, 0.37159657696866716) == 0  # not -6e-33
    assert binary_kl(0.5, 1e-30) == pytest.approx(-math.log(2) + 15 * math.log(10), rel=1e-12)
    assert binary_kl(0.3, 0.3 + 1e-9) == pytest.approx(1e-18 / (2 * 0.3 * 0.7), rel=1e-6, abs=0)


@given(probability, st.floats(1e-12, 30))
def test_inverse_kl_inverts(q, budget):
    p = inverse_kl(q, budget)
    assert q <= p <= 1
    assert binary_kl(q, min(1.0, p + 1e-12)) >= budget * (1 - 1e-9) or p == 1
    assert binary_kl(q, max(q, p - 1e-12)) <= budget * (1 + 1e-9)


@pytest.mark.parametrize("q", [1e-6, 0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("budget", [1e-4, 0.01, 0.3, 2.0])
def test_inverse_kl_against_a_root_finder(q, budget):
    def excess(p):
        return float(rel_entr(q, p) + rel_entr(1 - q, 1 - p)) - budget

    last = 1 - 2**-53
    root = brentq(excess, q, last, xtol=1e-15, rtol=1e-14) if excess(last) > 0 else last
    assert inverse_kl(q, budget) == pytest.approx(root, abs=1e-12)


def test_inverse_kl_at_its_edges():
    assert inverse_kl(0.0, 0.1) == pytest.approx(1 - math.exp(-0.1), abs=1e-16)
    assert inverse_kl(0.0, 1e-20) == pytest.approx(1e-20, rel=1e-12, abs=0)
    assert inverse_kl(1.0, 0.1) == 1
    assert inverse_kl(0.3, 0.0) == 0.3
    assert inverse_kl(0.3, math.inf) == inverse_kl(0.0, math.inf) == 1
    # δ = √(2 q (1 - q) c) to first order, and all digits of it
    assert inverse_kl(0.25, 1e-20) - 0.25 == pytest.approx(math.sqrt(2 * 0.25 * 0.75 * 1e-20), rel=1e-5, abs=0)


@given(probability, probability, st.floats(0, 10), st.floats(0, 10))
def test_inverse_kl_is_monotone(q1, q2, c1, c2):
    assert inverse_kl(min(q1, q2), c1) <= inverse_kl(max(q1, q2), c1) + 1e-15
    assert inverse_kl(q1, min(c1, c2)) <= inverse_kl(q1, max(c1, c2)) + 1e-15


# ---- Gaussians


def test_gaussian_kl_reference_and_direction():
    mean, std = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.006715348489118068], dtype=torch.float64)
    prior_std = torch.tensor([0.1], dtype=torch.float64)
    assert gaussian_kl(mean, std, 0.0, 0.1) == pytest.approx(2.703029255512378, abs=1e-12)
    assert gaussian_kl(mean * 0, prior_std, mean, std) == pytest.approx(218.54884841030145, abs=1e-10)


def test_gaussian_kl_adds_over_weights_and_is_torchs():
    generator = torch.Generator().manual_seed(0)
    mean, other = torch.randn(2, 7, 3, generator=generator, dtype=torch.float64)
    std, prior_std = torch.rand(2, 7, 3, generator=generator, dtype=torch.float64) + 0.1
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std), torch.distributions.Normal(other, prior_std)
    )
    assert gaussian_kl(mean, std, other, prior_std) == pytest.approx(float(expected.sum()), rel=1e-13)
    assert gaussian_kl(mean, std, mean, std) == 0
    assert gaussian_kl(mean.float(), std.float(), 0.0, 1.0) == pytest.approx(gaussian_kl(mean, std, 0.0, 1.0), 1e-5)


def test_prior_scales_are_geometric():
    scales = prior_scale_grid(0.01, 10.0, 4)
    assert scales == pytest.approx([0.01, 0.1, 1.0, 10.0])
    assert (scales[0], scales[-1]) == (0.01, 10.0)
    assert prior_scale_grid(0.3, 0.3, 1) == [0.3]


def test_the_best_scale_is_found_and_paid_for():
    generator = torch.Generator().manual_seed(0)
    mean = 0.3 * torch.randn(500, generator=generator, dtype=torch.float64) + 0.05
    std = torch.full_like(mean, 0.04)
    scales = prior_scale_grid(1e-3, 10.0, 41)
    found = select_prior_scale(mean, std, 0.05, scales)
    divergences = [gaussian_kl(mean, std, 0.05, scale) for scale in scales]
    assert found.kl == min(divergences)
    assert found.scale == scales[divergences.index(min(divergences))]
    assert found.complexity == found.kl + math.log(41)
    assert 0.2 < found.scale < 0.5


def test_the_cost_of_a_grid_covers_the_mixture_prior():
    """KL(Q || uniform mixture) by quadrature stays below the kl and cost reported, and close in a coarse grid."""
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64)
    for q_std, scales in ((1.0, [0.1, 1.0, 10.0]), (0.5, [0.45, 0.5, 0.55])):
        q = torch.distributions.Normal(0.2, q_std).log_prob(x)
        parts = torch.stack([torch.distributions.Normal(0.0, s).log_prob(x) for s in scales])
        mixture = parts.logsumexp(0) - math.log(len(scales))
        exact = float((q.exp() * (q - mixture)).sum()) * 1e-4
        tensors = torch.tensor([0.2], dtype=torch.float64), torch.tensor([q_std], dtype=torch.float64)
        found = select_prior_scale(*tensors, 0.0, scales)
        assert found.kl < exact <= found.complexity


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binary_kl(1.1, 0.5), "q must lie between 0 and 1, got 1.1"),
        (lambda: binary_kl(0.1, math.nan), "p must lie between 0 and 1, got nan"),
        (lambda: inverse_kl(0.1, -0.1), "budget .* got -0.1"),
        (lambda: inverse_kl(0.1, math.nan), "budget .* got nan"),
        (lambda: gaussian_kl(torch.zeros(3), torch.zeros(3), 0.0, 1.0), "std must be positive, got .* 0.0"),
        (lambda: gaussian_kl(torch.zeros(3), torch.ones(3), 0.0, -1.0), "prior_std must be positive, got .* -1.0"),
        (lambda: gaussian_kl(torch.zeros(3), torch.ones(2), 0.0, 1.0), r"std must .* \(3,\), got \(2,\); flatten"),
        (lambda: gaussian_kl(torch.zeros(3), torch.ones(3), torch.zeros(2), 1.0), "prior_mean must have the shape"),
        (lambda: gaussian_kl(torch.full((3,), math.nan), torch.ones(3), 0.0, 1.0), "mean must be finite"),
        (lambda: gaussian_kl(torch.zeros(3), torch.ones(3), math.nan, 1.0), "prior_mean must be finite"),
        (lambda: gaussian_kl(torch.zeros(3), torch.full((3,), math.inf), 0.0, 1.0), "std must be finite"),
        (lambda: prior_scale_grid(0.0, 1.0, 3), "0 < smallest <= largest < inf, got 0.0 and 1.0"),
        (lambda: prior_scale_grid(0.1, 1.0, 1), "num_scales must be 1 for a single scale .* got 1 from 0.1 to 1.0"),
        (lambda: prior_scale_grid(1.0, 1.0, 2), "got 2 from 1.0 to 1.0"),
        (lambda: select_prior_scale(torch.zeros(3), torch.ones(3), 0.0, []), r"at least one .* got \[\]"),
        (lambda: select_prior_scale(torch.zeros(3), torch.ones(3), 0.0, [1.0, 0.0]), r"got \[1.0, 0.0\]"),
    ],
)
def test_invalid_arguments_raise_with_the_value(call, message):
    with pytest.raises(ValueError, match=message):
        call()
