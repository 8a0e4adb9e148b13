"""Equal mixtures of Gaussians in one dimension, member by member along the first axis.

Nothing here knows of networks. Everything is exact but for `quantile`, a bisection to the last digits, and `entropy`,
which has no closed form and is integrated numerically.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

Members = Float[Tensor, "draws *batch"]
Values = Float[Tensor, "*batch"]

NUM_BISECTION_STEPS = 64
GRID_HALF_WIDTH_STDS, MIN_NODES_PER_MEMBER, NUM_GRID_NODES = 8.0, 13, 256
MAX_INTEGRATION_VALUES = 2**22
"""Numbers that the integration of entropies holds at a time."""


def normal_log_density(values: Values, means: Members, stds: Members) -> Members:
    """Of every member t, log N(y; mean_t, std_t^2)."""
    return -0.5 * ((values - means) / stds).square() - stds.log() - 0.5 * math.log(2 * math.pi)


def log_mean_density(log_densities: Members) -> Values:
    """Log of mean_t p_t, from log p_t: exact where densities underflow."""
    return log_densities.logsumexp(0) - math.log(len(log_densities))


def mixture_cdf(values: Values, means: Members, stds: Members) -> Values:
    """P(Y <= y) = mean_t Phi((y - mean_t) / std_t)."""
    of_each: Tensor = torch.special.ndtr((values - means) / stds)
    return of_each.mean(0)


def mixture_quantile(probability: float, means: Members, stds: Members) -> Values:
    """The y with P(Y <= y) = probability, by bisection between the least and the largest quantile of a member.

    Raises:
        ValueError: The probability is not strictly between 0 and 1.
    """
    if not 0 < probability < 1:
        raise ValueError(f"The probability of a quantile lies strictly between 0 and 1, got {probability}.")
    of_members = means + stds * float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))
    low, high = of_members.amin(0), of_members.amax(0)
    for _ in range(NUM_BISECTION_STEPS):
        middle = low + 0.5 * (high - low)
        below = mixture_cdf(middle, means, stds) < probability
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low + 0.5 * (high - low)


def normal_entropy(stds: Values) -> Values:
    """log(std) + log(2 pi e) / 2, in nats."""
    return stds.log() + 0.5 * math.log(2 * math.pi * math.e)


def mixture_entropy(means: Members, stds: Members) -> Values:
    """-int p log p in nats, for the mixture p.

    A Gauss-Legendre rule of two points between neighbours of a grid that has nodes at the same multiples of the
    standard deviation around each member: every member is resolved on its own scale, however narrow it is. The
    error is below 1e-4 nats in all tests.
    """
    draws, shape = len(means), means.shape[1:]
    means, stds = means.reshape(draws, -1), stds.reshape(draws, -1)
    count = max(MIN_NODES_PER_MEMBER, math.ceil(NUM_GRID_NODES / draws))
    offsets = torch.linspace(
        -GRID_HALF_WIDTH_STDS, GRID_HALF_WIDTH_STDS, count, dtype=means.dtype, device=means.device
    )
    size = max(1, MAX_INTEGRATION_VALUES // (2 * count * draws * draws))
    parts = [
        _integrate_entropy(some_means, some_stds, offsets)
        for some_means, some_stds in zip(means.split(size, 1), stds.split(size, 1), strict=True)
    ]
    return torch.cat(parts).reshape(shape)


def _integrate_entropy(means: Tensor, stds: Tensor, offsets: Tensor) -> Tensor:
    nodes = (means + offsets[:, None, None] * stds).flatten(0, 1).sort(0).values
    centre, half = (nodes[1:] + nodes[:-1]) / 2, (nodes[1:] - nodes[:-1]) / 2
    total = torch.zeros_like(means[0])
    for side in (-1, 1):
        points = centre + side * half / math.sqrt(3)
        log_p = log_mean_density(normal_log_density(points, means[:, None], stds[:, None]))
        total -= (half * log_p.exp() * log_p).sum(0)
    return total
