"""Whether chains have mixed: effective sample size and R-hat of one scalar followed along several chains.

Vehtari, Gelman, Simpson, Carpenter & Buerkner, "Rank-normalization, folding, and localization", Bayesian Analysis
2021. Every chain is cut in two, so that a chain that drifts disagrees with itself. The scalar may be a weight, but
is better a prediction: weights of a network can be permuted without any change of what it computes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def effective_sample_size(chains: Float[Tensor, "chains draws"]) -> float:
    """Number of independent draws whose mean would be as precise as the mean of these.

    ESS = chains * draws / tau with tau = -1 + 2 sum_k P_k, where P_k = rho_2k + rho_(2k+1) are sums of two
    autocorrelations in a row. In a reversible chain they are positive and fall, so the sum ends at the first that is
    not positive, and none counts more than the one before (Geyer's initial monotone sequence, Statistical Science
    1992). The correlations are of all chains together (Vehtari et al., equation 10): chains that disagree count as
    chains that hardly move.

    Examples:
        >>> effective_sample_size(torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))) > 3000
        True

    Args:
        chains: The scalar, a chain a row, without the burn-in.

    Returns:
        The size; more than the number of draws where they alternate, NaN where nothing varies.

    Raises:
        ValueError: There are fewer than 4 draws a chain, or some that are not finite.
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
    tau = max(2 * float(monotone.sum()) - 1, 1 / math.log10(count))  # as Stan bounds it, for chains that alternate
    return count / tau


def split_r_hat(chains: Float[Tensor, "chains draws"], rank_normalized: bool = False) -> float:
    """How much wider all chains together are than each by itself; one where they agree.

    R-hat = sqrt(V / W), with W the mean variance within half chains and V the variance of all draws, estimated
    from W and from the variance of the means (Gelman & Rubin 1992). Vehtari et al. ask for less than 1.01.

    Args:
        chains: The scalar, a chain a row, without the burn-in.
        rank_normalized: Replace draws by normal scores of their ranks, which makes sense of heavy tails, and take
            the larger of that and the same of their distances from the median, which finds chains that agree in
            location only (Vehtari et al., section 4).

    Returns:
        R-hat; infinite where chains stand still at different values, NaN where nothing varies.

    Raises:
        ValueError: There are fewer than 4 draws a chain, or some that are not finite.
    """
    halves = split_chains(chains)
    if not rank_normalized:
        return _compute_r_hat(halves)
    folded = (halves - halves.quantile(0.5)).abs()
    return max(_compute_r_hat(rank_normalize(halves)), _compute_r_hat(rank_normalize(folded)))


def split_chains(chains: Float[Tensor, "chains draws"]) -> Float[Tensor, "2*chains draws//2"]:
    """First and second half of every chain as chains of their own, in float64; an odd middle draw is left out.

    The very first draw is taken off from all, which changes no variance.

    Raises:
        ValueError: There are fewer than 4 draws a chain, or some that are not finite.
    """
    if chains.ndim != 2 or chains.shape[0] < 1 or chains.shape[1] < 4:
        raise ValueError(
            f"Mixing is judged by at least 1 chain of at least 4 draws, in a tensor (chains, draws); got shape "
            f"{tuple(chains.shape)}. Add a first dimension to a single chain: chain[None]."
        )
    if not bool(chains.isfinite().all()):
        raise ValueError("Some draws are not finite; leave out the chains that diverged, and say so.")
    half, shifted = chains.shape[1] // 2, chains.detach().double() - chains[0, 0].item()
    return torch.cat([shifted[:, :half], shifted[:, -half:]])


def compute_variances(chains: Float[Tensor, "chains draws"]) -> tuple[float, float]:
    """Variance within chains, W, and of all chains together, (N - 1) / N W + var(means), with N draws a chain."""
    draws = chains.shape[1]
    within = float((chains - chains[:, :1]).var(1).mean())  # exactly zero where a chain stands still
    return within, within * (draws - 1) / draws + float(chains.mean(1).var())


def compute_autocovariances(chains: Float[Tensor, "chains draws"]) -> Float[Tensor, "chains draws"]:
    """Autocovariances of every chain at lags 0, 1, ..., each divided by the number of draws.

    >>> compute_autocovariances(torch.tensor([[1.0, -1.0, 1.0, -1.0]])).round(decimals=6).tolist()
    [[1.0, -0.75, 0.5, -0.25]]
    """
    draws = chains.shape[1]
    spectrum = torch.fft.rfft(chains - chains.mean(1, keepdim=True), n=2 * draws)  # zeros, so that ends do not meet
    products: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * draws)
    return products[:, :draws] / draws


def rank_normalize(values: Float[Tensor, "chains draws"]) -> Float[Tensor, "chains draws"]:
    """Quantiles of the standard normal at (rank - 3/8) / (count + 1/4); values that are equal share a mean rank."""
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
