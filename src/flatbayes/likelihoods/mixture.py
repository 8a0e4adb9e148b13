"""Equal mixtures of one-dimensional Gaussians: density, CDF, quantiles and entropy.

The members of a mixture are along the first axis. `mixture_quantile` and `mixture_entropy` have no closed
form: the first is found to rounding, the second is integrated numerically. Everything else is exact.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flatbayes.core.devices import has_float64, is_accelerator, iter_row_blocks

Members = Float[Tensor, "draws *batch"]
Values = Float[Tensor, "*batch"]

MAX_ROOT_STEPS = 128
"""Steps to a quantile; every second one halves the interval or the step at least, and 64 halvings reach rounding."""
ROOT_TOLERANCE = 2.0
"""Largest error of a quantile, or of its probability, at which the search ends, in units of rounding."""
GRID_HALF_WIDTH_STDS, MIN_NODES_PER_MEMBER, NUM_GRID_NODES = 8.0, 13, 256
"""Grid of the entropy: half width around each member in standard deviations, fewest nodes of each, nodes of all."""
MAX_INTEGRATION_VALUES = 2**17
"""Largest number of values that the integration of entropies holds at a time, so that they stay in the cache."""


def normal_log_density(values: Values, means: Members, stds: Members) -> Members:
    """Log density log N(y; mean_t, std_t²) of every member t."""
    return -0.5 * ((values - means) / stds).square() - stds.log() - 0.5 * math.log(2 * math.pi)


def log_mean_density(log_densities: Members) -> Values:
    """Log of mean_t p_t, from log p_t: exact where densities underflow."""
    return log_densities.logsumexp(0) - math.log(len(log_densities))


def mixture_cdf(values: Values, means: Members, stds: Members) -> Values:
    """P(Y <= y) = mean_t Phi((y - mean_t) / std_t)."""
    standardized = (values - means) / stds
    on_cpu = standardized if has_float64(standardized.device) else standardized.cpu()  # Apple's have no ndtr either
    member_cdfs: Tensor = torch.special.ndtr(on_cpu)
    return member_cdfs.mean(0).to(standardized.device)


def mixture_score(values: Values, means: Members, stds: Members) -> Values:
    """Normal score Phi^-1(P(Y <= y)), exact in both tails, where the probability rounds to 0 or 1.

    It is computed on the CPU.
    """
    from scipy.special import ndtri_exp  # slow to import

    # torch.special.ndtr rounds to 0 below -8.3 standard deviations, so this is done with logarithms.
    lower, upper = (_log_cdf(distances / stds) for distances in (values - means, means - values))
    score = torch.from_numpy(np.asarray(ndtri_exp(torch.minimum(lower, upper).detach().cpu().numpy())))
    return torch.where(lower < upper, score, -score).to(stds)


def _log_cdf(standardized: Members) -> Values:
    log_cdfs: Tensor = torch.special.log_ndtr(standardized.detach().cpu().double())
    return log_mean_density(log_cdfs)


def mixture_quantile_of_score(score: Values, means: Members, stds: Members) -> Values:
    """The y whose normal score this is, exact in both tails.

    The root is that of the score, which is a linear function of y for one member.
    """
    tolerance = ROOT_TOLERANCE * torch.finfo(means.dtype).eps * (means.abs() + score.abs() * stds).amax(0)

    def evaluate(values: Values) -> tuple[Values, Values, Values]:
        current = mixture_score(values, means, stds)
        log_density = log_mean_density(normal_log_density(values, means, stds))
        slope = (log_density + current.square() / 2 + 0.5 * math.log(2 * math.pi)).exp()
        return current - score, slope, tolerance * slope

    return find_root(evaluate, means + score * stds, tolerance)


def mixture_quantile(probability: float, means: Members, stds: Members) -> Values:
    """The y with P(Y <= y) = probability, between the smallest and the largest quantile of a member.

    Raises:
        ValueError: The probability is not strictly between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"The probability of a quantile lies strictly between 0 and 1, got {probability}.")
    num_members, shape = len(means), means.shape[1:]
    means, stds = means.reshape(num_members, -1), stds.reshape(num_members, -1)
    quantiles = torch.empty_like(means[0])
    for columns in iter_row_blocks(means.T):
        quantiles[columns] = _find_quantiles(probability, means[:, columns], stds[:, columns])
    return quantiles.reshape(shape)


def _find_quantiles(probability: float, means: Tensor, stds: Tensor) -> Tensor:
    """Quantiles of mixtures of the shape (draws, mixtures)."""
    score = float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
    scale = means.abs().amax(0) + abs(score) * stds.amax(0)
    tolerance = ROOT_TOLERANCE * torch.finfo(means.dtype).eps

    def evaluate(values: Values) -> tuple[Values, Values, Values]:
        density = normal_log_density(values, means, stds).exp().mean(0)
        error = mixture_cdf(values, means, stds) - probability
        return error, density, tolerance * (probability + density * scale)

    return find_root(evaluate, means + score * stds, tolerance * scale)


def find_root(
    evaluate: Callable[[Values], tuple[Values, Values, Values]], brackets: Members, tolerance: Values
) -> Values:
    """The zero of an increasing function between the smallest and the largest of several values.

    Newton's method, with a bisection where a step leaves the interval or is no shorter than half of the step before.

    Args:
        evaluate: Returns the function, its slope and the size of a function value that is taken for zero.
        brackets: Values on both sides of the zero, shape (draws, *batch).
        tolerance: Width of an interval that is taken for a point.
    """
    low, high = brackets.amin(0), brackets.amax(0)
    root, last_step = low + 0.5 * (high - low), high - low
    for _ in range(MAX_ROOT_STEPS):
        error, slope, error_tolerance = evaluate(root)
        is_exact = (error.abs() <= error_tolerance) | (high - low <= tolerance)
        if not is_accelerator(root) and bool(is_exact.all()):  # reading it would wait for an accelerator
            break
        low, high = torch.where(error < 0, root, low), torch.where(error < 0, high, root)
        newton = root - error / slope
        is_good = (newton > low) & (newton < high) & (2 * (newton - root).abs() < last_step.abs())
        next_root = torch.where(is_exact, root, torch.where(is_good, newton, low + 0.5 * (high - low)))
        last_step, root = next_root - root, next_root
    return root


def normal_entropy(stds: Values) -> Values:
    """log(std) + log(2 pi e) / 2, in nats."""
    return stds.log() + 0.5 * math.log(2 * math.pi * math.e)


def mixture_entropy(means: Members, stds: Members) -> Values:
    """-int p log p in nats, for the mixture p.

    A Gauss-Legendre rule of two points between neighbours of a grid that has nodes at the same multiples of the
    standard deviation around each member, so that every member is resolved, however narrow it is. The error is below
    1e-4 nats in all tests.
    """
    num_members, shape = len(means), means.shape[1:]
    means, stds = means.reshape(num_members, -1), stds.reshape(num_members, -1)
    count = max(MIN_NODES_PER_MEMBER, math.ceil(NUM_GRID_NODES / num_members))
    offsets = torch.linspace(
        -GRID_HALF_WIDTH_STDS, GRID_HALF_WIDTH_STDS, count, dtype=means.dtype, device=means.device
    )
    chunk_size = max(1, MAX_INTEGRATION_VALUES // (2 * count * num_members * num_members))
    chunks = zip(means.split(chunk_size, 1), stds.split(chunk_size, 1), strict=True)
    return torch.cat([_integrate_entropy(*chunk, offsets) for chunk in chunks]).reshape(shape)


def _integrate_entropy(means: Tensor, stds: Tensor, offsets: Tensor) -> Tensor:
    nodes = (means + offsets[:, None, None] * stds).flatten(0, 1).sort(0).values
    center, half = (nodes[1:] + nodes[:-1]) / 2, (nodes[1:] - nodes[:-1]) / 2
    total = torch.zeros_like(means[0])
    for side in (-1, 1):
        points = center + side * half / math.sqrt(3)
        log_p = log_mean_density(normal_log_density(points, means[:, None], stds[:, None]))
        total -= (half * log_p.exp() * log_p).sum(0)
    return total
