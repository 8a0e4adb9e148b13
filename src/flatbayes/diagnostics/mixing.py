"""Convergence diagnostics of Markov chains: effective sample size and split R-hat of a scalar.

Vehtari, Gelman, Simpson, Carpenter & Buerkner, "Rank-normalization, folding, and localization", Bayesian Analysis
2021. Every chain is split into halves, so that R-hat also detects a drift within a chain.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def effective_sample_size(chains: Float[Tensor, "chains draws"]) -> float:
    """Number of independent draws whose mean has the same variance as the mean of these.

    ESS = chains * draws / tau with tau = -1 + 2 sum_k P_k, where P_k = rho_2k + rho_(2k+1) are sums of two
    successive autocorrelations. In a reversible chain they are positive and decreasing, so the sum ends before the
    first that is not positive, and each is at most the one before (Geyer's initial monotone sequence, Statistical
    Science 1992). The autocorrelations combine all chains (Vehtari et al., equation 10), so chains that disagree
    count as chains with a high autocorrelation.

    Examples:
        >>> effective_sample_size(torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))) > 3000
        True

    Args:
        chains: The scalar, a row per chain, without burn-in.

    Returns:
        The size; more than the number of draws for antithetic chains, NaN if all draws are equal.

    Raises:
        ValueError: There are fewer than 4 draws per chain, or draws that are not finite.
    """
    halves = split_chains(chains)
    within, total = compute_variances(halves)
    if total == 0:
        return math.nan
    count, draws = halves.numel(), halves.shape[1]
    covariances = compute_autocovariances(halves).mean(0)
    rho = 1 - (within - covariances * draws / (draws - 1)) / total
    rho[0] = 1
    pairs = rho[: draws // 2 * 2].view(-1, 2).sum(1)
    positive = int((pairs > 0).long().cumprod(0).sum())
    monotone = pairs[:positive].cummin(0).values
    tau = max(2 * float(monotone.sum()) - 1, 1 / math.log10(count))  # Stan's bound, for antithetic chains
    return count / tau


def split_r_hat(chains: Float[Tensor, "chains draws"], rank_normalized: bool = False) -> float:
    """R-hat = sqrt(V / W), which approaches 1 as chains converge to the same distribution.

    W is the mean variance within half chains and V the variance of all draws, estimated from W and from the variance
    of the means (Gelman & Rubin 1992). Vehtari et al. recommend less than 1.01.

    Examples:
        >>> chains = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
        >>> split_r_hat(chains) < 1.01, split_r_hat(chains + torch.arange(4)[:, None]) > 1.5
        (True, True)

    Args:
        chains: The scalar, a row per chain, without burn-in.
        rank_normalized: Take the larger of R-hat of the normal scores of the draws' ranks, which is robust to heavy
            tails, and of their distances from the median, which detects different scales (section 4).

    Returns:
        R-hat; infinite for constant chains at different values, NaN if all draws are equal.

    Raises:
        ValueError: There are fewer than 4 draws per chain, or draws that are not finite.
    """
    halves = split_chains(chains)
    if not rank_normalized:
        return _compute_r_hat(halves)
    folded = (halves - halves.quantile(0.5)).abs()
    return max(_compute_r_hat(rank_normalize(halves)), _compute_r_hat(rank_normalize(folded)))


def split_chains(chains: Float[Tensor, "chains draws"]) -> Float[Tensor, "2*chains draws//2"]:
    """First and second halves of every chain in float64, without the middle draw of an odd number.

    The first draw of all is subtracted, which reduces rounding errors of variances.

    Raises:
        ValueError: There are fewer than 4 draws per chain, or draws that are not finite.
    """
    if chains.ndim != 2 or chains.shape[0] < 1 or chains.shape[1] < 4:
        raise ValueError(
            f"Convergence diagnostics need at least 1 chain of at least 4 draws, in a tensor (chains, draws); "
            f"got shape "
            f"{tuple(chains.shape)}. Add a first dimension to a single chain: chain[None]."
        )
    if not bool(chains.isfinite().all()):
        raise ValueError("Some draws are not finite; remove the chains that diverged, and report their number.")
    half, shifted = chains.shape[1] // 2, chains.detach().double() - chains[0, 0].item()
    return torch.cat([shifted[:, :half], shifted[:, -half:]])


def compute_variances(chains: Float[Tensor, "chains draws"]) -> tuple[float, float]:
    """Variance W within chains, and of all chains together, (N - 1) / N W + var(means), with N draws per chain."""
    draws = chains.shape[1]
    within = float((chains - chains[:, :1]).var(1).mean())  # exactly zero for a constant chain
    return within, within * (draws - 1) / draws + float(chains.mean(1).var())


def compute_autocovariances(chains: Float[Tensor, "chains draws"]) -> Float[Tensor, "chains draws"]:
    """Autocovariances of every chain at lags 0, 1, ..., each divided by the number of draws.

    >>> compute_autocovariances(torch.tensor([[1.0, -1.0, 1.0, -1.0]])).round(decimals=6).tolist()
    [[1.0, -0.75, 0.5, -0.25]]
    """
    draws = chains.shape[1]
    spectrum = torch.fft.rfft(
        chains - chains.mean(1, keepdim=True), n=2 * draws
    )  # zero padding, against circular correlation
    products: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * draws)
    return products[:, :draws] / draws


def rank_normalize(values: Float[Tensor, "chains draws"]) -> Float[Tensor, "chains draws"]:
    """Quantiles of the standard normal at (rank - 3/8) / (count + 1/4); equal values get their mean rank."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0)
    ranks = (last - (counts - 1) / 2)[inverse].to(values)
    scores: Tensor = torch.special.ndtri((ranks - 0.375) / (values.numel() + 0.25))
    return scores


def _compute_r_hat(halves: Float[Tensor, "chains draws"]) -> float:
    within, total = compute_variances(halves)
    if within == 0:
        return math.inf if total > 0 else math.nan
    return math.sqrt(total / within)
