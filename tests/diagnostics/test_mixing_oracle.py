"""Effective sample size and R-hat against arviz-stats."""

import pytest
import torch

from flatbayes.diagnostics.mixing import effective_sample_size, split_r_hat

arviz_base = pytest.importorskip("arviz_stats.base", reason="the oracle arviz-stats is not installed")


def make_chains(phi, num_chains=4, num_draws=500):
    """Autoregressive chains x_(t+1) = phi x_t + sqrt(1 - phi²) noise with different means."""
    noise = torch.randn(num_draws, num_chains, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = [noise[0]]
    for row in noise[1:]:
        path.append(phi * path[-1] + (1 - phi**2) ** 0.5 * row)
    return torch.stack(path, 1) + 0.1 * torch.arange(num_chains)[:, None]


@pytest.mark.parametrize("phi", [-0.3, 0.0, 0.5, 0.9])
def test_diagnostics_equal_those_of_arviz(phi):
    chains = make_chains(phi)
    oracle, axes = arviz_base.array_stats, {"chain_axis": 0, "draw_axis": 1}
    array = chains.numpy()
    assert effective_sample_size(chains) == pytest.approx(float(oracle.ess(array, method="mean", **axes)), rel=0.02)
    assert split_r_hat(chains) == pytest.approx(float(oracle.rhat(array, method="split", **axes)), rel=1e-6)
    rank = float(oracle.rhat(array, method="rank", **axes))
    assert split_r_hat(chains, rank_normalized=True) == pytest.approx(rank, rel=1e-6)
